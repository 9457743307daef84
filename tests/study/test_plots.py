"""Figures of a study, and one message where there is none."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from clray.errors import UserError
from clray.report.figures.study import similarity_figure
from clray.report.plots import plot
from clray.report.study_files import read_study
from clray.report.sweep_files import open_sweep
from clray.study.run import StudyPack
from tests.study.tiny import METHODS, prepared, run

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def folder(study: tuple[StudyPack, Path]) -> str:
    """The study as a sweep's folder."""
    root = study[1].parents[1]
    (root / "sweep.yaml").write_text("name: tiny\n")
    return str(root)


@pytest.mark.parametrize("kind", ["similarity", "downstream"])
@pytest.mark.parametrize("metric", ["acc", "mse", "norm_ratio"])
def test_figures_name_methods_and_axes(folder: str, tmp_path: Path, kind: str, metric: str) -> None:
    text = Path(plot(folder, kind, None, metric, (), str(tmp_path / "figure.svg"))).read_text()
    for name in ("random", "class_balanced", "reservoir", "kmeans", "gss", "lambda", "herding"):
        assert f">{name}<" in text
    assert "fraction of every past task in memory" in text
    measured = {"acc": "cosine", "mse": "mean squared difference", "norm_ratio": "norm relative to"}[metric]
    assert measured in text
    assert "line: median, band: 16% to 84% of " in text
    if kind == "similarity":
        assert ">whole gradient<" in text
        assert ">hidden.0.kernel<" in text
    else:
        assert "accuracy on past tasks" in text


@pytest.mark.parametrize("metric", ["cosine", "mse", "norm_ratio"])
def test_lines_lie_within_their_bands(folder: str, metric: str) -> None:
    sweep = open_sweep(folder)
    (trial_id,) = [path.name for path in Path(folder).glob("trials/t_*")]
    figure = similarity_figure(read_study(sweep.trial(trial_id)), metric)
    for axes in figure.axes:
        lines = [np.asarray(line.get_ydata()) for line in axes.lines]
        lines = lines if metric == "mse" else lines[1:]  # without the one at 1
        assert len(lines) == 3 * len(METHODS)  # of each method the median, then the ends of the band
        for middle, low, high in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
            assert (low <= middle).all()
            assert (middle <= high).all()


def test_what_a_study_does_not_have_is_told(folder: str, tmp_path: Path) -> None:
    out = str(tmp_path / "x.png")
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        plot(folder, "similarity", None, "cosin", (), out)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (trial,) = copy.glob("trials/*")
    shutil.rmtree(trial / "joined")
    with pytest.raises(UserError, match="no networks were trained with the memory sets"):
        plot(str(copy), "downstream", None, "acc", (), out)
    for similarity in trial.glob("similarity_*"):
        shutil.rmtree(similarity)
    with pytest.raises(UserError, match="no similarities are committed yet"):
        plot(str(copy), "similarity", None, "acc", (), out)


def test_a_study_without_numbers_is_told(tmp_path: Path) -> None:
    only_everything = {"methods": ["random"], "fractions": [1], "num_samples": 1}
    root = run(prepared(tmp_path / "out", memory=only_everything, downstream=None)).parents[1]
    (root / "sweep.yaml").write_text("name: tiny\n")
    plot(str(root), "similarity", None, "cosine", (), str(tmp_path / "x.png"))
    with pytest.raises(UserError, match="nothing to plot: mse is nowhere a number: all networks"):
        plot(str(root), "similarity", None, "mse", (), str(tmp_path / "x.png"))


def test_python_of_the_page_runs_on_the_files_of_a_study(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (REPOSITORY / "docs" / "memory.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "results").mkdir()
    os.symlink(folder, tmp_path / "results" / "memory-digits")
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(code, found)
    assert len(found["whole"]) == 3  # type: ignore[arg-type]
    assert len(found["by_method"]) == 7 * 3  # type: ignore[arg-type]


def test_the_selection_of_the_page_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "memory.md").read_text(), re.DOTALL)
    (tmp_path / "my_selection.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    memory = {"methods": ["random", {"name": "my_selection:Brightest"}], "fractions": [0.1, 1], "num_samples": 2}
    pack = prepared(tmp_path / "out", memory=memory, downstream=None)
    trial = run(pack)
    rows = np.load(trial / "memory_000" / "rows.Brightest.npy")
    assert rows.shape == (2, 1, 8)
    ink = pack.draw.images(pack.draw.indices[0, :, 0]).sum(axis=1)
    assert sorted(ink[rows[0, 0]]) == sorted(np.sort(ink)[-8:])
    assert (trial / "similarity_Brightest" / "similarity.cosine.npy").exists()


def test_the_page_shows_the_file_that_is_there() -> None:
    page = (REPOSITORY / "docs" / "memory.md").read_text()
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    file = (REPOSITORY / "sweeps" / "memory" / "digits.yaml").read_text()
    assert shown == "".join(line for line in file.splitlines(keepends=True) if not line.startswith("#"))
