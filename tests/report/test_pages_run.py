"""docs/report.md, docs/analysis.md and docs/report.ipynb run as written, over made-up results with the shapes of `make quickstart`."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from ruamel.yaml import YAML

from tests.report.fake_sweep import write_sweep

REPOSITORY = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDED = ("duckdb", "polars")


def blocks(page: str) -> list[dict[str, str]]:
    """The blocks of a page that run, in order, as tests/docs_support/run_page.py takes them."""
    text = (REPOSITORY / page).read_text()
    found = []
    for match in FENCE.finditer(text):
        if match["language"] in ("bash", "python") and not re.search(r"<!-- not run: .+ -->\s*\Z", text[: match.start()]):
            where = f"{page}:{text.count(chr(10), 0, match.start()) + 1}"
            found.append({"where": where, "language": match["language"], "body": match["body"]})
    return found


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in NEEDED), reason=f"needs {' and '.join(NEEDED)}: pip install {' '.join(NEEDED)}"
)
def test_the_pages_run_as_written(tmp_path: Path) -> None:
    document = YAML(typ="safe", pure=True).load(REPOSITORY / "sweeps/quickstart.yaml")
    write_sweep(str(tmp_path / "results/quickstart"), document, ("done",) * 6, alive=False)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests/docs_support/run_page.py")],
        input=json.dumps([*blocks("docs/report.md"), *blocks("docs/analysis.md")]),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert (tmp_path / "forgetting.svg").read_bytes().startswith(b"<?xml")
    assert r"\begin{tabular}" in done.stdout
    for name in ("drift-of-task-0", "accuracy", "matrix", "forgetting"):
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF"), name


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell as Jupyter does: the value of a last expression is what it shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


def test_the_notebook_makes_the_figures_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = YAML(typ="safe", pure=True).load(REPOSITORY / "sweeps/quickstart.yaml")
    write_sweep(str(tmp_path / "results/quickstart"), document, ("done",) * 6, alive=False)
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((REPOSITORY / "docs/report.ipynb").read_text())
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (4, len(notebook["cells"]))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []  # kept without results
    names: dict[str, Any] = {}
    shown = [run_cell("".join(cell["source"]), names) for cell in code]
    figures = [value for value in shown if isinstance(value, Figure)]
    assert len(figures) == len(code) - 2  # all cells but the first, a table, and the last, which writes files
    assert all(figure.get_supxlabel() or any(axes.get_xlabel() or axes.texts for axes in figure.axes) for figure in figures)
    assert list(shown[0].columns[-2:]) == ["acc_mean", "forgetting_mean"]
    for name in shown[-1]:
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF"), name
