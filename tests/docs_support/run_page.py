"""Runs the blocks of a page in the current directory, in one process: `python run_page.py < blocks.json`.

Called by tests/test_docs.py with a list of {where, language, body}, in the order in which they run. Exits with 1 after a message that
names the page and line of the block that failed.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FILE = re.compile(r"# (in )?([\w./-]+\.(?:yaml|py))\n")
EXPECTED = re.compile(r"#\s*->\s*(.*)$")


def run_clray(words: list[str]) -> None:
    """One `clray` command by its console entry point, without the seconds that a process of its own takes to import JAX."""
    from clray.cli import main

    sys.argv = words
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{shlex.join(words)}: exit code {stop.code}") from None


def run_bash(script: str) -> None:
    """A shell block. Where it is only `clray` commands they run in this process."""
    lines = [shlex.split(line, comments=True) for line in script.replace("\\\n", " ").splitlines()]
    commands = [words for words in lines if words]
    if all(words[0] == "clray" and not set("".join(words)) & set("|&;<>$`") for words in commands):
        for words in commands:
            run_clray(words)
        return
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=True)


def write_file(text: str) -> None:
    """A block whose first line names its file: `# a.yaml` is the file, `# in a.yaml` sets its keys in one that is there."""
    match = FILE.match(text)
    if match is None:
        raise RuntimeError("the first line must name the file: '# name.yaml', or '# in name.yaml' to change one that is there")
    path = Path(match.group(2))
    if match.group(1):
        text = merged(path, text)
    path.write_text(text)


def merged(path: Path, text: str) -> str:
    """The YAML file with the keys of the block set in its tables."""
    yaml = YAML(typ="safe", pure=True)
    whole, part = yaml.load(path), yaml.load(text)
    for key, value in part.items():
        whole[key] = {**whole[key], **value} if isinstance(value, dict) else value
    return json.dumps(whole)


def run_python(source: str, names: dict[str, Any], where: str) -> None:
    """A Python block, statement by statement. An expression followed by `# -> text` must have that text as its str."""
    lines = source.splitlines()
    for node in ast.parse(source, where).body:
        expected = EXPECTED.search(lines[(node.end_lineno or node.lineno) - 1])
        if not isinstance(node, ast.Expr):
            if expected:
                raise RuntimeError(f"line {node.lineno}: '# ->' stands after something that has no value")
            exec(compile(ast.Module([node], []), where, "exec"), names)
            continue
        value = str(eval(compile(ast.Expression(node.value), where, "eval"), names))
        if expected and value != expected.group(1).strip():
            raise RuntimeError(f"line {node.lineno}: {ast.unparse(node)} is {value}, not {expected.group(1)}")


def main() -> None:
    """Runs all blocks that standard input lists."""
    sys.path.insert(0, "")
    names: dict[str, Any] = {}
    for block in json.load(sys.stdin):
        where, language, body = block["where"], block["language"], block["body"]
        print(f"--- {where} {language}", flush=True)
        try:
            if language == "bash":
                run_bash(body)
            elif language == "yaml" or FILE.match(body):
                write_file(body)
            else:
                run_python(body, names, where)
        except Exception as error:
            sys.exit(f"{where}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
