"""Paths, names and columns are those that users and other programs rely on."""

from __future__ import annotations

import pyarrow as pa
import pytest

from clray.errors import OutputError
from clray.store import layout
from clray.store.layout import SweepLayout, TrialLayout

TRIAL = SweepLayout().trial("t_0123456789")


def test_paths_of_a_sweep() -> None:
    sweep = SweepLayout("digits-lr")
    assert sweep.sweep == "digits-lr/sweep.yaml"
    assert sweep.trials_table == "digits-lr/trials.parquet"
    assert sweep.trials == "digits-lr/trials"
    assert sweep.trial("t_0123456789") == TrialLayout("digits-lr/trials/t_0123456789")
    assert SweepLayout().sweep == "sweep.yaml"


def test_paths_of_a_trial() -> None:
    below = {
        "config.yaml": TRIAL.config,
        "classes.npy": TRIAL.classes,
        "eval_samples.npy": TRIAL.eval_samples,
        "RESULT.json": TRIAL.result,
        "attempts/001.json": TRIAL.attempt(1),
        "attempts/1000.json": TRIAL.attempt(1000),
        "attempts/log.txt": TRIAL.log,
        "attempts/traceback.txt": TRIAL.traceback,
        "task_003": TRIAL.folder("task_003"),
        "task_003/COMMIT.json": TRIAL.commit("task_003"),
        "task_003.tmp-001-9f3c2a": TRIAL.staging("task_003", "001-9f3c2a"),
        "task_003/001-9f3c2a": TRIAL.keys("task_003", "001-9f3c2a"),
    }
    assert {f"trials/t_0123456789/{path}": full for path, full in below.items()} == {full: full for full in below.values()}


def test_folders_of_a_trial() -> None:
    assert TRIAL.folder_names(2) == ["initial", "task_000", "task_001"]
    assert TRIAL.folder_names(0, joint=True) == ["initial", "joint"]
    assert [layout.task_folder(task) for task in (0, 12, 999, 1000)] == ["task_000", "task_012", "task_999", "task_1000"]


def test_names_are_read_back() -> None:
    assert all(layout.task_of(layout.task_folder(task)) == task for task in (0, 12, 999, 1000, 12345))
    assert [layout.task_of(name) for name in ("initial", "task_1", "task_0001", "task_003.tmp-001-a", "task_003\n")] == [None] * 5
    assert [TRIAL.attempt_of(name) for name in ("001.json", "1000.json", "log.txt", "01.json")] == [1, 1000, None, None]
    assert layout.parameter_of(layout.weights_file("head.kernel")) == "head.kernel"
    assert layout.parameter_of("representations.npy") is None


@pytest.mark.parametrize("name", ["", "..", "../t_0", "a b", "t_0/../..", "/t_0", "t\\0", "t_0\n"])
def test_trial_ids_cannot_leave_the_sweep(name: str) -> None:
    with pytest.raises(OutputError, match="not a valid name"):
        SweepLayout("digits").trial(name)


def test_parameters_with_odd_names_are_refused() -> None:
    with pytest.raises(OutputError, match=r"weights\.layer/\.\./a\.npy"):
        layout.weights_file("layer/../a")


def test_columns() -> None:
    def columns(schema: pa.Schema) -> dict[str, str]:
        return {field.name: str(field.type) for field in schema}

    evaluated = {"eval_task": "int32", "accuracy": "float", "loss": "float"}
    assert columns(layout.METRICS_SCHEMA) == {"step": "int32", "repeat": "int16"} | evaluated
    assert columns(layout.EXPERT_SCHEMA) == {"step": "int32", "repeat": "int16"} | evaluated
    assert columns(layout.END_SCHEMA) == {"repeat": "int16"} | evaluated
    assert columns(layout.TRAIN_SCHEMA) == {"step": "int32", "repeat": "int16", "accuracy": "float", "loss": "float"}
