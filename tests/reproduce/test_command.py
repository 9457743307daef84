"""``clray reproduce`` as people meet it, on a digits sweep of a few seconds whose published numbers are made up around what it measures."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import clray
import clray.trials.show_run
from clray.cli import main
from clray.store.layout import REPRODUCTION_SCHEMA
from tests.trials.sweeps import experiment, sweep, write

REPOSITORY = Path(__file__).parents[2]
RATES = [0.3, 0.1, 0.03]
BROKEN = {"name": "tests.reproduce.broken:Broken"}


@pytest.fixture
def clray_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs the command in this process and returns exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clray", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out = capsys.readouterr()
        return int(end.value.code or 0), out.out, out.err

    return run


def tiny(*more: dict[str, Any]) -> dict[str, Any]:
    """A sweep over three learning rates."""
    return sweep("tiny", experiment(n_repeats=4), cases=[*({"optimizer.learning_rate": rate} for rate in RATES), *more])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sweep has run already."""
    folder = tmp_path_factory.mktemp("tiny")
    clray.sweep(tiny(), folder / "results", local=True)
    return folder / "results"


@pytest.fixture
def measured(results: Path) -> pd.DataFrame:
    """Means and standard errors in percent by learning rate."""
    trials = clray.open(results / "tiny").trials.set_index("param.optimizer.learning_rate")
    return 100.0 * trials[["acc_mean", "acc_sem"]]


def written(folder: Path, means: dict[float, float], data: dict[str, Any] | None = None, more: list[dict[str, Any]] | None = None) -> str:
    """The two files in ``folder``; the path of the sweep file."""
    rows = [
        {"method": f"rate {rate}", "point": {"optimizer.learning_rate": rate}, "mean": mean, "sem": 0.1, "n": 20, "source": "table 1"}
        for rate, mean in means.items()
    ]
    write(folder / "tiny.published.yaml", {"rows": rows + (more or [])})
    return str(write(folder / "tiny.yaml", data or tiny()))


def verdicts(folder: Path) -> list[str]:
    """Of the rows, from the file."""
    found: list[str] = pq.read_table(folder / "tiny" / "reproduction.parquet")["verdict"].to_pylist()
    return found


def test_a_table_that_is_reproduced_ends_with_0(clray_says: Any, tmp_path: Path, results: Path, measured: pd.DataFrame) -> None:
    file = written(tmp_path, {rate: round(measured.loc[rate, "acc_mean"] + 1.0, 2) for rate in RATES})
    code, out, err = clray_says("reproduce", file, "-o", str(results), "--local")
    assert (code, err.splitlines()[0]) == (0, "3 trials: 0 to run, 3 finished before")
    assert "3 of 3 rows match. A row matches where the difference is at most 3 combined standard errors" in out
    assert verdicts(results) == ["matches"] * 3


def test_above_and_below_are_both_told_and_end_with_1(clray_says: Any, tmp_path: Path, results: Path, measured: pd.DataFrame) -> None:
    away = {rate: max(3.0 * math.hypot(measured.loc[rate, "acc_sem"], 0.1), 1.5) + 1.0 for rate in RATES}
    means = {0.3: away[0.3], 0.1: -away[0.1], 0.03: 0.0}
    file = written(tmp_path, {rate: measured.loc[rate, "acc_mean"] + shift for rate, shift in means.items()})
    code, out, _ = clray_says("reproduce", file, "-o", str(results), "--local")
    assert code == 1
    assert "1 of 3 rows match; 1 above, 1 below." in out
    assert verdicts(results) == ["below", "above", "matches"]
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("rate ")}
    mean, sem = measured.loc[0.3, "acc_mean"], measured.loc[0.3, "acc_sem"]
    assert f" {mean:.2f} ± {sem:.2f} (4) " in lines["0.3"]
    assert f"{mean + away[0.3]:.2f} ± 0.10 (20)" in lines["0.3"]
    assert lines["0.3"].split()[-3:] == [f"{-away[0.3]:+.2f}", f"{-away[0.3] / math.hypot(sem, 0.1):+.1f}", "below"]
    assert lines["0.1"].split()[-1] == "above"
    code, out, err = clray_says("reproduce", file, "-o", str(results), "--local", "--quiet")
    assert (code, out) == (1, "")
    assert err == f"1 of 3 rows match; 1 above, 1 below: {results}/tiny/reproduction.md\n"


def test_what_is_written_says_what_was_printed(clray_says: Any, tmp_path: Path, results: Path, measured: pd.DataFrame) -> None:
    file = written(tmp_path, {0.3: 50.0, 0.1: 0.0})
    clray_says("reproduce", file, "-o", str(results), "--local")
    table = pq.read_table(results / "tiny" / "reproduction.parquet")
    assert table.schema.equals(REPRODUCTION_SCHEMA)
    row = table.to_pylist()[1]
    assert (row["method"], row["scenario"], row["verdict"], row["source"]) == ("rate 0.1", "domain", "above", "table 1")
    assert row["trial_id"] == clray.open(results / "tiny").trials.set_index("param.optimizer.learning_rate").loc[0.1, "trial_id"]
    mean, sem = measured.loc[0.1]
    assert (row["measured_n"], row["n_diverged"], row["published_n"], row["published_mean"]) == (4, 0, 20, 0.0)
    assert (row["measured_mean"], row["measured_sem"], row["difference"]) == pytest.approx((mean, sem, mean))
    assert (row["limit"], row["difference_in_sem"]) == pytest.approx((3 * math.hypot(sem, 0.1), mean / math.hypot(sem, 0.1)))
    page = (results / "tiny" / "reproduction.md").read_text()
    assert f"| rate 0.1 | domain | {mean:.2f} ± {sem:.2f} (4) | 0.00 ± 0.10 (20) | +{mean:.2f} |" in page
    assert "| above | table 1 |" in page


def test_a_trial_that_failed_says_so_instead_of_a_number(clray_says: Any, tmp_path: Path, measured: pd.DataFrame) -> None:
    more = [{"method": "never", "point": {"strategy": BROKEN}, "mean": 50.0, "sem": 1.0, "n": 20, "source": "table 2"}]
    data = sweep("tiny", experiment(n_repeats=4), cases=[{"optimizer.learning_rate": 0.1}, {"strategy": BROKEN}])
    file = written(tmp_path, {}, data, more)
    code, out, err = clray_says("reproduce", file, "-o", str(tmp_path), "--local")
    assert code == 1
    assert "0 of 1 rows match; 1 failed." in out
    assert "broken on purpose" in err
    (line,) = [line for line in out.splitlines() if line.startswith("never")]
    assert " ".join(line.split()) == "never domain failed 50.00 ± 1.00 (20) failed"
    (row,) = pq.read_table(tmp_path / "tiny" / "reproduction.parquet").to_pylist()
    assert (row["verdict"], row["measured_mean"], row["difference"], row["published_mean"]) == ("failed", None, None, 50.0)


@pytest.mark.parametrize("left", ["nothing", "interrupted"])
def test_a_trial_that_is_missing_says_so(
    clray_says: Any, tmp_path: Path, results: Path, measured: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    real = clray.trials.show_run.execute

    def without_the_second(*args: Any, **options: Any) -> Any:
        done = real(*args, **options)
        second = [] if left == "nothing" else [done.rows[1] | {"status": "interrupted", "acc_mean": None, "error": "no answer"}]
        return dataclasses.replace(done, rows=[done.rows[0], *second, done.rows[2]])

    monkeypatch.setattr(clray.trials.show_run, "execute", without_the_second)
    file = written(tmp_path, {rate: measured.loc[rate, "acc_mean"] for rate in RATES})
    code, out, _ = clray_says("reproduce", file, "-o", str(results), "--local")
    assert code == 1
    assert "2 of 3 rows match; 1 missing." in out
    assert verdicts(results) == ["matches", "missing", "matches"]


def test_repeats_that_diverged_are_said(
    clray_says: Any, tmp_path: Path, results: Path, measured: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = clray.trials.show_run.execute

    def diverged(*args: Any, **options: Any) -> Any:
        done = real(*args, **options)
        one = done.rows[0] | {"n_diverged": 1}
        all_of_them = done.rows[2] | {"n_diverged": 4, "status": "diverged", "acc_mean": None, "acc_sem": None}
        return dataclasses.replace(done, rows=[one, done.rows[1], all_of_them])

    monkeypatch.setattr(clray.trials.show_run, "execute", diverged)
    file = written(tmp_path, {rate: measured.loc[rate, "acc_mean"] for rate in RATES})
    code, out, _ = clray_says("reproduce", file, "-o", str(results), "--local")
    assert code == 1
    assert "2 of 3 rows match; 1 diverged." in out
    assert "rate 0.3, domain: 1 repeat diverged and is left out of the measured mean" in out
    assert "rate 0.03, domain: 4 repeats diverged and are left out of the measured mean" in out
    assert pq.read_table(results / "tiny" / "reproduction.parquet")["measured_n"].to_pylist() == [3, 4, None]


def test_settings_hold_for_rows_too_and_are_noted_and_nothing_imports_ray(tmp_path: Path) -> None:
    file = written(tmp_path, {0.1: 50.0}, sweep("tiny", experiment(), cases=[{"optimizer.learning_rate": 0.1}]))
    code = "import sys\nfrom clray.cli import main\ntry:\n    main()\nfinally:\n    print('ray' in sys.modules)"
    settings = ["--set", "n_repeats=1", "--set", "training.batch_size=4", "--set", "dataset.root=/nowhere"]
    command = [sys.executable, "-c", code, "reproduce", file, "-o", str(tmp_path), "--local", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=REPOSITORY)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    note = "Settings differ from the paper's: n_repeats=1, training.batch_size=4"  # the folder of the data changes nothing
    assert note in done.stdout.splitlines()
    assert f"{note}.\n" in (tmp_path / "tiny" / "reproduction.md").read_text()
    (row,) = pq.read_table(tmp_path / "tiny" / "reproduction.parquet").to_pylist()
    trial = clray.open(tmp_path / "tiny").trial(row["trial_id"])
    assert (trial.experiment.n_repeats, trial.experiment.training.batch_size, row["measured_n"]) == (1, 4, 1)
    assert (row["measured_sem"], row["difference_in_sem"], row["limit"]) == (None, None, 1.5)


def test_an_interrupted_reproduction_says_how_to_go_on_and_compares_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, time, clray.trials.show_run as shown\nfrom clray.cli import main\n"
        "def execute(*args, **options):\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\nshown.execute = execute\nmain()"
    )
    command = [sys.executable, "-c", code, "reproduce", written(tmp_path, {0.3: 50.0}), "-o", str(tmp_path / "out"), "--local"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr.startswith(f"interrupted; finished work is kept. To go on: clray reproduce {tmp_path}/tiny.yaml -o ")
    assert not list((tmp_path / "out").rglob("reproduction.*"))


def test_a_dry_run_checks_the_rows_and_runs_nothing(clray_says: Any, tmp_path: Path) -> None:
    file = written(tmp_path, {0.3: 50.0})
    code, out, _ = clray_says("reproduce", file, "-o", str(tmp_path / "out"), "--dry-run")
    assert code == 0
    assert "3 trials" in out
    assert not (tmp_path / "out").exists()
    code, _, err = clray_says("reproduce", written(tmp_path, {0.2: 50.0}), "-o", str(tmp_path / "out"), "--dry-run")
    assert code == 2
    assert f"{tmp_path}/tiny.published.yaml:3: rows[0] (rate 0.2): no trial of the sweep" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["split_mnits"], "clray: no published table 'split_mnits'; did you mean 'split_mnist'? valid: permuted_mnist, split_mnist."),
        (["split_mnist", "--set", "strategy.name=er"], "clray: --set strategy.name: the sweep varies strategy itself;"),
        (["split_mnist", "--local", "--address", "auto"], "clray: --local runs without Ray"),
    ],
)
def test_wrong_input_ends_with_2(clray_says: Any, arguments: list[str], message: str) -> None:
    code, out, err = clray_says("reproduce", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
