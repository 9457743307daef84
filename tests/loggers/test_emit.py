"""How committed tasks get to loggers: in order, once, and without harm to the trial."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import clray
from clray.errors import ConfigError, LeaseLostError
from clray.loggers import emit as emit_module
from clray.trials.entry import execute
from clray.trials.plan import plan_run
from tests.loggers.backends import INSTALLED, calls_in, tasks_in
from tests.loggers.emitting import emit
from tests.report.fake_sweep import DOCUMENT, write_sweep
from tests.trials.sweeps import experiment, sweep

REPOSITORY = Path(__file__).parents[2]
OWN = "tests.loggers.backends:Lines"


@pytest.fixture
def trial(tmp_path: Path) -> tuple[str, str, Path]:
    """Folder and id of a complete trial of three tasks, and the file where ``Lines`` writes."""
    folder = tmp_path / "fake"
    plan = write_sweep(str(folder), {**DOCUMENT, "grid": {"seed": [0]}}, ("done",), alive=False)
    return str(folder), plan.trials[0].trial_id, tmp_path / f"{plan.trials[0].trial_id}.jsonl"


def lines(file: Path, **options: Any) -> dict[str, Any]:
    return {"name": OWN, "folder": str(file.parent), **options}


def killed(folder: str, trial_id: str, logger: dict[str, Any]) -> None:
    """An attempt that its logger kills."""
    command = [sys.executable, "-m", "tests.loggers.emitting", folder, trial_id, json.dumps([logger]), "3"]
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True)
    assert done.returncode == -9
    Path(logger["folder"], "mended").touch()


def test_tasks_come_in_order_then_the_final_metrics(trial: tuple[str, str, Path]) -> None:
    folder, trial_id, file = trial
    assert emit(folder, trial_id, [lines(file)], 3, end=True) == []
    calls = calls_in(file)
    assert [call for call, _ in calls] == ["begin", "log", "log", "log", "finish"]
    assert tasks_in(file) == [0, 1, 2]
    status, metrics = calls[-1][1]
    result = json.loads((Path(folder) / "trials" / trial_id / "RESULT.json").read_text())
    assert (status, metrics) == ("done", {name: value["mean"] for name, value in result["metrics"].items()})


def test_a_later_attempt_goes_on_where_an_earlier_one_stopped(trial: tuple[str, str, Path]) -> None:
    folder, trial_id, file = trial
    emit(folder, trial_id, [lines(file)], 1)
    assert calls_in(file)[-1] == ["finish", ["interrupted", {}]]
    emit(folder, trial_id, [lines(file)], 3, end=True)
    assert tasks_in(file) == [0, 1, 2]


def test_killed_between_commit_and_logging_a_task_is_logged_later_once(trial: tuple[str, str, Path]) -> None:
    folder, trial_id, file = trial
    logger = lines(file, order="kill before", task=1)
    killed(folder, trial_id, logger)
    assert tasks_in(file) == [0]
    emit(folder, trial_id, [logger], 3, end=True)
    assert tasks_in(file) == [0, 1, 2]


@pytest.mark.parametrize(("tells", "logged"), [(True, [0, 1, 2]), (False, [0, 1, 1, 2])])
def test_killed_between_logging_and_note_a_task_comes_again_unless_the_logger_tells(
    trial: tuple[str, str, Path], tells: bool, logged: list[int]
) -> None:
    folder, trial_id, file = trial
    logger = lines(file, order="kill after", task=1, tells=tells)
    killed(folder, trial_id, logger)
    emit(folder, trial_id, [logger], 3, end=True)
    assert tasks_in(file) == logged


def test_a_failing_logger_is_told_once_and_given_the_task_again(trial: tuple[str, str, Path]) -> None:
    folder, trial_id, file = trial
    logger = lines(file, order="raise", task=1)
    warnings = emit(folder, trial_id, [logger], 3, end=True)
    assert warnings[0][0] == trial_id
    assert re.fullmatch(rf"logger {OWN} failed: ConnectionError: no network \(.*\.py:\d+\)", warnings[0][1]), "and where"
    assert len(warnings) == 1
    assert tasks_in(file) == [0]
    file.with_name("mended").touch()
    assert emit(folder, trial_id, [logger], 3, end=True) == []
    assert tasks_in(file) == [0, 1, 2]


@pytest.mark.parametrize(("owned", "calls"), [(0, []), (2, ["begin", "log"]), (3, ["begin", "log", "log"])])
def test_a_worker_whose_trial_was_taken_over_logs_nothing_more_and_does_not_end_the_run(
    trial: tuple[str, str, Path], owned: int, calls: list[str]
) -> None:
    """The owner of the trial is asked for before the first call, before each task and before the end."""
    folder, trial_id, file = trial
    asked = iter([None] * owned)

    def check() -> None:
        if next(asked, "no") == "no":
            raise LeaseLostError("taken over")

    assert emit(folder, trial_id, [lines(file)], 3, end=True, check=check) == []
    assert [call for call, _ in calls_in(file)] == calls
    emit(folder, trial_id, [lines(file)], 3, end=True)
    assert tasks_in(file) == [0, 1, 2]


def test_a_note_that_comes_late_does_not_make_a_task_come_again(trial: tuple[str, str, Path]) -> None:
    folder, trial_id, file = trial
    emit(folder, trial_id, [lines(file)], 3)
    note = Path(folder) / "trials" / trial_id / ".logged.json"
    known = note.read_bytes()
    note.write_text("{}")
    asked = itertools.count()

    def check() -> None:
        if next(asked) == 1:  # before the first task is logged: somebody else logs all of them
            note.write_bytes(known)

    emit(folder, trial_id, [lines(file)], 1, check=check)
    assert note.read_bytes() == known


def test_one_logger_that_fails_is_nothing_to_another(trial: tuple[str, str, Path]) -> None:
    folder, trial_id, file = trial
    (file.parent / "other").mkdir()
    emit(folder, trial_id, [lines(file, order="raise"), lines(file.parent / "other" / file.name)], 3, end=True)
    assert tasks_in(file.parent / "other" / file.name) == [0, 1, 2]


def test_a_logger_that_hangs_is_not_waited_for_twice(trial: tuple[str, str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit_module, "WAIT_SECONDS", 0.3)
    folder, trial_id, file = trial
    since = time.monotonic()
    ((_, text),) = emit(folder, trial_id, [lines(file, order="hang")], 3, end=True)
    assert time.monotonic() - since < 5
    assert "did not keep up" in text


def test_trials_of_one_program_are_logged_each_and_failures_do_not_stop_them(tmp_path: Path) -> None:
    loggers = [{"name": OWN, "folder": str(tmp_path / "none"), "order": "raise"}, {"name": OWN, "folder": str(tmp_path)}]
    (tmp_path / "none").mkdir()
    base = experiment(loggers=loggers)
    found = clray.sweep(sweep("packed", base, grid={"seed": [0, 1]}), output=str(tmp_path), local=True)
    assert list(found.trials["status"]) == ["done", "done"]
    for trial_id in found.trials["trial_id"]:
        assert tasks_in(tmp_path / f"{trial_id}.jsonl") == [0, 1]
        call, (status, _) = calls_in(tmp_path / f"{trial_id}.jsonl")[-1]
        assert (call, status) == ("finish", "done")
    logs = "".join((tmp_path / "packed" / "trials" / t / "attempts/log.txt").read_text() for t in found.trials["trial_id"])
    assert logs.count("failed: ConnectionError: no network") == 1


@pytest.mark.ray
def test_workers_of_ray_log(tmp_path: Path, ray_address: str) -> None:
    loggers: list[Any] = [{"name": OWN, "folder": str(tmp_path)}, *({"tensorboard"} & set(INSTALLED))]
    data = sweep("on-ray", experiment(loggers=loggers), grid={"seed": [0, 1]})
    found = clray.sweep(data, output=str(tmp_path), address=ray_address)
    for trial_id in found.trials["trial_id"]:
        assert tasks_in(tmp_path / f"{trial_id}.jsonl") == [0, 1]
        if "tensorboard" in INSTALLED:
            assert len(list((tmp_path / "on-ray" / "tensorboard" / trial_id).iterdir())) == 3


def test_a_resumed_run_continues_its_log(tmp_path: Path) -> None:
    plan = plan_run(experiment(name="resumed", loggers=[{"name": OWN, "folder": str(tmp_path)}]))
    trial_id = plan.trials[0].trial_id
    folder, file = tmp_path / "resumed" / "trials" / trial_id, tmp_path / f"{trial_id}.jsonl"

    def stop(trial: str, event: Any) -> None:
        if event["event"] == "task" and not file.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan, str(tmp_path), stop, local=True)
    assert not (folder / "RESULT.json").exists()
    assert execute(plan, str(tmp_path), lambda *event: None, local=True).failed == []
    assert tasks_in(file) == [0, 1]


def test_loggers_are_names_or_tables_and_no_part_of_the_trial() -> None:
    plain = plan_run(experiment()).trials[0]
    for loggers in (
        ["tests.loggers.backends:Plain"],
        {"name": "tests.loggers.backends:Plain", "tags": ["a"]},
        "tests.loggers.backends:Plain",
    ):
        logged = plan_run(experiment(loggers=loggers)).trials[0]
        assert [type(options).__name__ for options in logged.experiment.loggers] == ["Plain"]
        assert logged.trial_id == plain.trial_id


@pytest.mark.parametrize(
    ("loggers", "said"),
    [
        (["wandbb"], "did you mean 'wandb'?"),
        ([{"name": "wandb", "projekt": "x"}], "projekt"),
        ([{"name": "tensorboard", "entity": "x"}], "entity"),
        ([7], "must be a table with a name"),
        ([{"name": "tests.loggers.backends:Elsewhere"}], "needs no_such_module, not installed here"),
    ],
)
def test_what_is_wrong_with_loggers_is_said_before_anything_runs(loggers: Any, said: str) -> None:
    with pytest.raises(ConfigError, match="loggers") as error:
        plan_run(experiment(loggers=loggers))
    assert said in str(error.value)
