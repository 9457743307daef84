"""What is committed stays, what is missing runs, and the result is the same to the last bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.core.tiny import Arrays, OneTrial, arrays_of, assert_same_bits, prepare, tiny


class StopAfter:
    """A report callback that ends the run when a task is committed."""

    def __init__(self, task: int, error: BaseException):
        self.task, self.error = task, error

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event.get("task") == self.task:
            raise self.error


def nonces(folder: Path) -> dict[str, str]:
    """Committed folder to the nonce of its commit: another one if the folder was written again."""
    return {path.parent.name: json.loads(path.read_text())["nonce"] for path in folder.glob("*/COMMIT.json")}


def interrupted(folder: Path, task: int) -> Path:
    """The folder of the tiny trial, stopped as by Ctrl-C after ``task``."""
    (trial,) = prepare(tiny(), folder=folder, report=StopAfter(task, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        trial.run()
    return trial.folder


def finish(folder: Path) -> OneTrial:
    """Runs the tiny trial in ``folder`` to its end, in another attempt."""
    (trial,) = prepare(tiny(), folder=folder)
    trial.run()
    return trial


def without_states(arrays: Arrays) -> Arrays:
    """What readers look at; states are kept for the last two tasks that were written."""
    return {name: array for name, array in arrays.items() if "state.msgpack" not in name}


@pytest.mark.parametrize("task", [0, 1, 2])
def test_resumed_run_equals_an_uninterrupted_one_and_repeats_nothing(tmp_path: Path, base_trial: OneTrial, task: int) -> None:
    folder = interrupted(tmp_path / "sweep", task)
    before = nonces(folder)
    assert sorted(before) == ["initial", *(f"task_{done:03d}" for done in range(task + 1))]
    assert not (folder / "RESULT.json").exists()
    trial = finish(tmp_path / "sweep")
    assert_same_bits(arrays_of(trial.folder), arrays_of(base_trial.folder))
    after = nonces(folder)
    assert {name: after[name] for name in before} == before
    assert sorted(after) == ["initial", "task_000", "task_001", "task_002"]
    result, expected = (json.loads((path / "RESULT.json").read_text()) for path in (folder, base_trial.folder))
    assert (result["metrics"], result["attempts"]) == (expected["metrics"], 2)


def test_finished_trial_is_left_as_it_is(tmp_path: Path) -> None:
    folder = finish(tmp_path / "sweep").folder
    before = nonces(folder)
    finish(tmp_path / "sweep")
    assert nonces(folder) == before


def test_damaged_state_costs_the_tasks_since_the_one_before(tmp_path: Path, base_trial: OneTrial) -> None:
    folder = interrupted(tmp_path / "sweep", 1)
    before = nonces(folder)
    state = folder / "task_001" / "state.msgpack"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    trial = finish(tmp_path / "sweep")
    after = nonces(folder)
    assert after["task_000"] == before["task_000"]
    assert after["task_001"] != before["task_001"]
    found = {name: array for name, array in arrays_of(trial.folder).items() if not name.startswith(".")}
    assert_same_bits(found, arrays_of(base_trial.folder))


def test_lost_folder_is_written_again_and_later_ones_are_kept(tmp_path: Path, base_trial: OneTrial) -> None:
    folder = finish(tmp_path / "sweep").folder
    before = nonces(folder)
    shutil.rmtree(folder / "task_001")
    (folder / "RESULT.json").unlink()
    finish(tmp_path / "sweep")
    after = nonces(folder)
    assert {name for name in after if after[name] != before[name]} == {"task_001"}
    assert_same_bits(without_states(arrays_of(folder)), without_states(arrays_of(base_trial.folder)))


def test_a_failing_trial_of_a_pack_ends_alone_and_resumes(tmp_path: Path, base_trial: OneTrial) -> None:
    other = tiny(optimizer={**tiny()["optimizer"], "learning_rate": 0.2})
    failing, fine = prepare(tiny(), other, folder=tmp_path / "sweep", width=4)
    failing.member.report = StopAfter(1, RuntimeError("disk full"))
    outcomes = failing.pack.run()
    assert isinstance(outcomes[0], RuntimeError)
    assert outcomes[1]["status"] == "done"
    assert sorted(nonces(failing.folder)) == ["initial", "task_000", "task_001"]
    assert sorted(nonces(fine.folder)) == ["initial", "task_000", "task_001", "task_002"]
    again = prepare(tiny(), other, folder=tmp_path / "sweep", width=4)
    before = nonces(fine.folder)
    assert not any(isinstance(outcome, Exception) for outcome in again[0].pack.run())
    assert_same_bits(arrays_of(failing.folder), arrays_of(base_trial.folder))
    assert nonces(fine.folder) == before
