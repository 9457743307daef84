"""Tables of metrics by setting: the right numbers in forms that other programs read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from clray.errors import UserError
from clray.report.commands import register
from clray.report.measure_store import MeasureStore
from clray.report.sweep_files import SweepFiles, open_sweep, with_metrics
from clray.report.tables import latex_text, metrics_table, render, with_settings
from tests.report.fake_sweep import DOCUMENT, write_sweep


@pytest.fixture(scope="module")
def sweep(sweep_folder: Path) -> SweepFiles:
    opened = open_sweep(str(sweep_folder))
    return with_metrics(opened, MeasureStore(opened.storage, writable=False))


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    made = typer.Typer()
    register(made)
    return made


def small() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "optimizer.learning_rate": [0.01, 0.1],
            "strategy.name": ["a_b|c", "er"],
            "trials": [1, 2],
            "acc_mean": [0.75, 0.5],
            "acc_sem": [0.01, np.nan],
            "forgetting_mean": [0.3, 0.1],
            "forgetting_sem": [0.02, 0.02],
        }
    )


KEYS, NAMES = ["optimizer.learning_rate", "strategy.name"], ["acc", "forgetting"]


def test_text_has_aligned_columns() -> None:
    assert render(small(), KEYS, NAMES, "text").splitlines() == [
        "learning_rate  strategy.name  trials            ACC     forgetting",
        "0.01           a_b|c               1  0.750 ± 0.010  0.300 ± 0.020",
        "0.1            er                  2          0.500  0.100 ± 0.020",
    ]


def test_markdown_marks_the_best_and_escapes_bars() -> None:
    assert render(small(), KEYS, NAMES, "markdown").splitlines() == [
        "| learning_rate | strategy.name | trials | ACC | forgetting |",
        "| --- | --- | ---: | ---: | ---: |",
        "| 0.01 | a_b\\|c | 1 | **0.750 ± 0.010** | 0.300 ± 0.020 |",
        "| 0.1 | er | 2 | 0.500 | **0.100 ± 0.020** |",
    ]


def test_latex_marks_the_best_and_escapes_what_latex_reads() -> None:
    lines = render(small(), KEYS, NAMES, "latex").splitlines()
    assert lines[1:3] == [r"\begin{tabular}{llrrr}", r"\toprule"]
    assert lines[3] == r"learning\_rate & strategy.name & trials & ACC & forgetting \\"
    assert lines[5] == r"0.01 & a\_b|c & 1 & $\mathbf{0.750 \pm 0.010}$ & $0.300 \pm 0.020$ \\"
    assert lines[6] == r"0.1 & er & 2 & $0.500$ & $\mathbf{0.100 \pm 0.020}$ \\"
    assert lines[-1] == r"\end{tabular}"
    assert latex_text(r"50% of $x_1 {a}\b~^&#") == r"50\% of \$x\_1 \{a\}\textbackslash{}b\textasciitilde{}\textasciicircum{}\&\#"


def test_csv_reads_back() -> None:
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(render(small(), KEYS, NAMES, "csv"))), small())


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'latex'"):
        render(small(), KEYS, NAMES, "latx")


def test_settings_may_be_given_by_their_ends_and_need_not_have_been_varied(sweep: SweepFiles) -> None:
    extended, keys = with_settings(sweep, ["learning_rate", "strategy.name"])
    assert keys == ["optimizer.learning_rate", "strategy.name"]
    table = metrics_table(extended, keys, ["acc"])
    assert list(table["optimizer.learning_rate"]) == [0.001, 0.01]
    assert list(table["strategy.name"]) == ["finetune", "finetune"]
    assert list(table["trials"]) == [2, 2]


def test_rows_are_sorted_by_the_settings_in_order(sweep: SweepFiles) -> None:
    sweep, keys = with_settings(sweep, ["model.hidden", "learning_rate"])
    table = metrics_table(sweep, keys, ["acc"])
    assert [tuple(row) for row in table[keys].to_numpy()] == [("[6]", 0.001), ("[6]", 0.01), ("[8]", 0.001), ("[8]", 0.01)]


def test_without_settings_there_is_one_row(sweep: SweepFiles) -> None:
    assert list(metrics_table(sweep, [], ["acc"])["trials"]) == [4]


def test_command_prints_a_table(app: typer.Typer, sweep_folder: Path) -> None:
    done = CliRunner().invoke(app, ["table", str(sweep_folder), "--metric", "ACC", "--by", "strategy.name", "--format", "markdown"])
    assert done.exit_code == 0, done.exception
    lines = done.stdout.splitlines()
    assert lines[0] == "| strategy.name | trials | ACC |"
    assert lines[2].startswith("| finetune | 4 | 0.")


def test_command_takes_the_varied_settings_and_the_main_metrics_by_default(app: typer.Typer, sweep_folder: Path) -> None:
    done = CliRunner().invoke(app, ["table", str(sweep_folder)])
    assert done.stdout.splitlines()[0].split() == ["hidden", "learning_rate", "trials", "ACC", "forgetting"]


def test_command_reports_to_a_folder_beside_the_results(app: typer.Typer, tmp_path: Path) -> None:
    write_sweep(str(tmp_path), {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01]}}, ("failed",))
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--show", "0"])
    assert done.exit_code == 0, done.exception
    assert done.stdout.strip() == f"report: {tmp_path}/report/index.html"


def test_a_sweep_without_results_says_so(app: typer.Typer, tmp_path: Path) -> None:
    write_sweep(str(tmp_path), {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01]}}, ("failed",))
    for arguments in (["table", str(tmp_path)], ["plot", str(tmp_path), "compare"]):
        done = CliRunner().invoke(app, arguments)
        assert isinstance(done.exception, UserError)
        assert "no trial is done yet" in str(done.exception)
