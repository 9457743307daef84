"""Runs benchmarks one after the other, each in a process of its own, and writes what they print to benchmarks/RESULTS.md.

    python -m benchmarks [NAME ...]

Without names: all that need no GPU. A section of RESULTS.md is replaced when its benchmark is run again. Nothing else should run on the
machine. ``pip install -e '.[bench]'`` brings Avalanche; MNIST is taken from ``CLRAY_DATA_DIR``.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
COMMANDS = {
    "step": ["--avalanche"],
    "lanes": [],
    "tasks": ["--avalanche"],
    "driver": [],
    "mnist": [],
    "report": [],
    "scale": [],
    "study": [],
    "boundaries": [],
    "fisher": [],
}
HEAD = """# Results

What `python -m benchmarks` measured: every comparison within one run, against peers that do the same work, medians of several
repetitions unless a line says otherwise. Why numbers are what they are, and what was tried: [NOTES.md](NOTES.md).
"""


def main() -> None:
    """Runs and writes."""
    for name in sys.argv[1:] or COMMANDS:
        command = ["python", "-m", f"benchmarks.{name}", *COMMANDS.get(name, [])]
        done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
        if done.returncode:
            print(f"{name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
            continue
        found = re.search(r"^\n?## .*?\n\n`[^`]*`: (.*?)\n(.*)\Z", done.stdout[done.stdout.index("\n## ") :], re.S)
        assert found, done.stdout
        section = f"## {name}\n\n`{' '.join(command)}`, {datetime.date.today()}\n\n{found[1]}\n{found[2].rstrip()}\n"
        write(name, section)
        print(section)


def write(name: str, section: str) -> None:
    """Replaces a section of RESULTS.md, or appends it."""
    text = RESULTS.read_text() if RESULTS.exists() else HEAD
    pattern = re.compile(rf"## {re.escape(name)}\n.*?(?=\n## |\Z)", re.S)
    text = pattern.sub(lambda _: section, text) if pattern.search(text) else f"{text.rstrip()}\n\n{section}"
    RESULTS.write_text(text)


if __name__ == "__main__":
    main()
