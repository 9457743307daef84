"""TensorBoard, Weights & Biases (offline) and MLflow (a database file) hold every value once, whatever was killed when."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clray.loggers.mlflow import TASKS_TAG
from tests.loggers.backends import HELD_BY, INSTALLED, MISSING, NAMES, TABLES, held_by_tensorboard, mlflow_run, wandb_records
from tests.loggers.emitting import BATCHES, emit
from tests.report.fake_sweep import DOCUMENT, EVERY, LOGS, write_sweep

REPOSITORY = Path(__file__).parents[2]
needs_all = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.skipif(bool(MISSING[name]), reason=f"needs {MISSING[name]}")) for name in NAMES]
)
needs_any = pytest.mark.skipif(not INSTALLED, reason="needs tensorboard, wandb or mlflow")
OWN = "tests.loggers.backends:Lines"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A trial of three tasks, logged by an attempt that was killed once task 1 was committed, then by one that did the rest."""
    folder = tmp_path_factory.mktemp("logged") / "fake"
    plan = write_sweep(str(folder), {**DOCUMENT, "grid": {"seed": [0]}}, ("one diverged",), alive=False)
    trial_id = plan.trials[0].trial_id
    # First in line, so that it ends the process when the others have not seen task 1 yet.
    killer = {"name": OWN, "folder": str(folder.parent), "order": "kill before", "task": 1}
    loggers = [killer, *(TABLES[name] for name in INSTALLED)]
    command = [sys.executable, "-m", "tests.loggers.emitting", str(folder), trial_id, json.dumps(loggers), "2"]
    killed = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stdout + killed.stderr
    assert emit(str(folder), trial_id, loggers[1:], 3, end=True) == []
    return folder, trial_id


def expected(folder: Path, trial_id: str) -> dict[tuple[str, int], float]:
    """Means over the repeats that did not diverge, by pandas from the files."""
    found: dict[tuple[str, int], float] = {}
    trial = folder / "trials" / trial_id
    for task in range(3):
        tables = {name: pd.read_parquet(trial / f"task_{task:03d}" / f"{name}.parquet") for name in ("metrics", "train", "end")}
        metrics = pd.concat([tables["metrics"], tables["end"].assign(step=BATCHES)])
        if task == 0:
            metrics = pd.concat([pd.read_parquet(trial / "initial/end.parquet").assign(step=0), metrics])
        for key in ("accuracy", "loss"):
            means = metrics.groupby(["step", "eval_task"])[key].mean().unstack()
            for step, row in means.iterrows():
                at = task * BATCHES + int(step)
                found |= {(f"{key}/task_{number:03d}", at): value for number, value in row.items()}
                found[f"{key}/seen", at] = row.loc[:task].mean()
                found[f"{key}/current", at] = row.loc[task]
            for step, value in tables["train"].groupby("step")[key].mean().items():
                found[f"train/{key}", task * BATCHES + int(step)] = value
    result = json.loads((trial / "RESULT.json").read_text())
    return found | {(f"final/{key}", 3 * BATCHES): value["mean"] for key, value in result["metrics"].items()}


@needs_all
def test_every_value_is_there_once_after_a_kill_and_a_resumption(results: tuple[Path, str], name: str) -> None:
    folder, trial_id = results
    held, wanted = HELD_BY[name](folder, trial_id), expected(folder, trial_id)
    if name == "wandb":  # final values stand in the summary
        wanted = {place: value for place, value in wanted.items() if not place[0].startswith("final/")}
    assert {place for place, values in held.items() if len(values) != 1} == set()
    assert set(held) == set(wanted)
    np.testing.assert_allclose([held[place][0] for place in wanted], list(wanted.values()), rtol=1e-6)
    assert len({step for _, step in held}) == 1 + 3 * (LOGS + 1)
    assert EVERY in {step for _, step in held}


@needs_all
def test_without_clrays_own_note_the_backend_says_how_far_it_got(results: tuple[Path, str], name: str, tmp_path: Path) -> None:
    folder, trial_id = results
    copy = tmp_path / "fake"
    shutil.copytree(folder, copy)
    (copy / "trials" / trial_id / ".logged.json").unlink()
    before = HELD_BY[name](copy, trial_id)
    if name == "mlflow":  # killed after the values, before it was said that they are all there
        run, client = mlflow_run(copy, trial_id)
        client.set_tag(run.info.run_id, TASKS_TAG, "2")
    assert emit(str(copy), trial_id, [TABLES[name]], 3) == []
    assert HELD_BY[name](copy, trial_id) == before


@pytest.mark.skipif("tensorboard" not in INSTALLED, reason="needs tensorboard")
def test_tensorboard_writes_to_any_storage(results: tuple[Path, str], tmp_path: Path) -> None:
    folder, trial_id = results
    import fsspec

    url = "memory://logger-tests/fake"
    write_sweep(url, {**DOCUMENT, "grid": {"seed": [0]}}, ("one diverged",), alive=False)
    assert emit(url, trial_id, ["tensorboard"], 3, end=True) == []
    memory = fsspec.filesystem("memory")
    memory.get("/logger-tests/fake/tensorboard", str(tmp_path / "tensorboard"), recursive=True)
    memory.rm("/logger-tests", recursive=True)
    assert held_by_tensorboard(tmp_path, trial_id) == held_by_tensorboard(folder, trial_id)


@pytest.mark.skipif("mlflow" not in INSTALLED, reason="needs mlflow and sqlalchemy")
def test_mlflow_run_has_name_project_tags_and_settings(results: tuple[Path, str]) -> None:
    run, _ = mlflow_run(*results)
    assert run.info.status == "FINISHED"
    assert (run.data.tags["pilot"], run.data.tags["stage"], run.data.tags[TASKS_TAG]) == ("", "first", "3")
    assert run.data.params["sequence.n_tasks"] == "3"
    assert run.data.params["optimizer.name"] == "sgd"


@pytest.mark.skipif("wandb" not in INSTALLED, reason="needs wandb")
def test_wandb_run_has_id_project_entity_tags_and_a_summary(results: tuple[Path, str]) -> None:
    folder, trial_id = results
    records = wandb_records(folder, trial_id)
    runs = [record.run for record in records if record.HasField("run")]
    assert {(run.run_id, run.project, run.entity, tuple(run.tags)) for run in runs} == {(trial_id, "tests", "people", ("pilot", "digits"))}
    assert "model" in {item.key for item in runs[0].config.update}
    summary = {item.key or "/".join(item.nested_key) for record in records for item in record.summary.update}
    assert any("final/acc" in key for key in summary)
    codes = [record.exit.exit_code for record in records if record.HasField("exit")]
    assert codes[-1] == 0


@pytest.mark.skipif("wandb" not in INSTALLED, reason="needs wandb")
def test_without_a_key_wandb_is_a_warning(results: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, trial_id = results
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    warnings = emit(str(folder), trial_id, ["wandb"], 3, end=True)
    assert len(warnings) == 1
    assert warnings[0][0] == trial_id
    assert "wandb failed" in warnings[0][1]
    assert "wandb login" in warnings[0][1]
