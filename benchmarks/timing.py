"""Interleaved repetitions and medians; and the machine they were measured on."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


def interleave(cases: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Median seconds of each case; cases take turns, so that a slow minute of the machine hits all of them."""
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repetitions):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def peer(module: str, *arguments: str, python: str | None = None, temporary: Path | None = None) -> dict[str, Any]:
    """Runs a peer in a process of its own and reads the JSON line it prints; ``temporary``: where it writes its files."""
    command = [python or os.environ.get("CLRAY_BENCH_PYTHON", sys.executable), "-m", module, *arguments]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **({"TMPDIR": str(temporary)} if temporary else {})}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    return json.loads(out.strip().splitlines()[-1])  # type: ignore[no-any-return]


def machine() -> str:
    """One line: processor, cores, versions."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?"
    )
    packages = []
    for name in ("jax", "flax", "optax", "torch", "numpy", "ray"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # Ray, say, where one GPU is measured without it
            packages.append(f"{name} {metadata.version(name)}")
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}, {', '.join(packages)}"


Row = tuple[str, str, str]
"""What was measured, the result and the goal."""


def report(title: str, rows: Iterable[Row]) -> None:
    """Prints a Markdown table, a row as soon as it is there."""
    print(f"\n## {title}\n\n`python -m {title}`: {machine()}\n")
    print("| what | measured | goal |\n| --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
