"""What is committed stays, what is missing runs, and the result is the same to the last bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from clray.core.task import train_task
from clray.store.sealed import checksum_of
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


RATES = (0.05, 0.1, 0.2)


def one_repeat(rate: float) -> dict[str, Any]:
    """The tiny trial with a single repeat, so that devices outnumber lanes, and a strategy of which a lone lane rounds otherwise."""
    return tiny(n_repeats=1, optimizer={"name": "sgd", "learning_rate": rate}, strategy=[{"name": "ewc"}])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[Arrays]:
    """Three trials of one repeat that ran in one pack."""
    trials = prepare(*map(one_repeat, RATES), folder=tmp_path_factory.mktemp("packed"), devices=jax.local_devices()[:2])
    assert not any(isinstance(outcome, Exception) for outcome in trials[0].pack.run())
    return [arrays_of(trial.folder) for trial in trials]


def begun(folder: Path, stops: Sequence[int], devices: list[jax.Device]) -> None:
    """The three trials as if their pack had been stopped while they were at different tasks."""
    trials = prepare(*map(one_repeat, RATES), folder=folder, devices=devices)
    for trial, stop in zip(trials, stops, strict=True):
        trial.member.report = StopAfter(stop, RuntimeError("stopped"))
    trials[0].pack.run()


def test_a_pack_resumed_from_different_tasks_is_regrouped_and_equals_the_uninterrupted_one(
    tmp_path: Path, uninterrupted: list[Arrays], two_devices: list[jax.Device]
) -> None:
    """The group that is furthest behind has one lane, and so needs one of the two devices only."""
    begun(tmp_path / "sweep", (0, 1, 1), two_devices)
    trials = prepare(*map(one_repeat, RATES), folder=tmp_path / "sweep", devices=two_devices)
    before = train_task._cache_size()
    outcomes = trials[0].pack.run()
    assert [outcome["status"] for outcome in outcomes if not isinstance(outcome, Exception)] == ["done"] * 3
    assert [trial.member.first for trial in trials] == [1, 2, 2]
    assert train_task._cache_size() == before  # both groups run the program of the first attempt
    for trial, expected in zip(trials, uninterrupted, strict=True):
        assert_same_bits(arrays_of(trial.folder), expected)


def test_what_is_left_of_a_pack_equals_what_the_pack_would_have_made(
    tmp_path: Path, uninterrupted: list[Arrays], two_devices: list[jax.Device]
) -> None:
    begun(tmp_path / "sweep", (0, 2, 2), two_devices)
    (last,) = prepare(one_repeat(RATES[0]), folder=tmp_path / "sweep", devices=two_devices)
    last.run()
    assert_same_bits(arrays_of(last.folder), uninterrupted[0])


def width_of(trial: OneTrial, task: int = 0) -> int:
    """What a task says of the program that trained it."""
    return int(json.loads((trial.folder / f"task_{task:03d}" / "COMMIT.json").read_text())["width"])


def test_lone_lanes_go_on_as_such_in_a_pack(tmp_path: Path, two_devices: list[jax.Device]) -> None:
    """Three of them, on two devices: together they would be given wider chunks. A fourth trial begins beside them."""
    for rate in RATES:
        (alone,) = prepare(one_repeat(rate), folder=tmp_path / "alone", devices=two_devices)
        alone.run()
        assert width_of(alone) == 1
        (stopped,) = prepare(one_repeat(rate), folder=tmp_path / "sweep", devices=two_devices, report=StopAfter(0, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            stopped.run()
    trials = prepare(*map(one_repeat, (*RATES, 0.3)), folder=tmp_path / "sweep", devices=two_devices)
    assert not any(isinstance(outcome, Exception) for outcome in trials[0].pack.run())
    for trial in trials[:3]:
        assert_same_bits(arrays_of(trial.folder), arrays_of(tmp_path / "alone" / "trials" / trial.member.folders.trial_id))
    assert width_of(trials[3]) == 2


def test_a_diverged_trial_leaves_no_trace_in_those_packed_with_it(
    tmp_path: Path, uninterrupted: list[Arrays], two_devices: list[jax.Device]
) -> None:
    """Two trials of one lane each on two devices, with and without a third one that diverges."""
    trials = prepare(*map(one_repeat, (*RATES[:2], 1e30)), folder=tmp_path / "ill", devices=two_devices)
    assert [dict(outcome)["status"] for outcome in trials[0].pack.run()] == ["done", "done", "diverged"]
    without = prepare(*map(one_repeat, RATES[:2]), folder=tmp_path / "healthy", devices=two_devices)
    without[0].pack.run()
    for healthy, other, third in zip(without, trials, uninterrupted, strict=False):
        assert_same_bits(arrays_of(healthy.folder), arrays_of(other.folder))
        assert_same_bits(arrays_of(healthy.folder), third)


def test_a_trial_goes_on_with_the_width_that_it_began_with(tmp_path: Path, two_devices: list[jax.Device]) -> None:
    """Not with what a pack of another size, or another machine's measurement, would be given: XLA may round otherwise."""
    experiments = [one_repeat(rate) | {"n_repeats": 5, "model": {"name": "mlp", "hidden": [64, 64]}} for rate in RATES[:2]]
    whole = prepare(*experiments, folder=tmp_path / "whole", devices=two_devices, width=4)
    assert not any(isinstance(outcome, Exception) for outcome in whole[0].pack.run())
    begun = prepare(*experiments, folder=tmp_path / "sweep", devices=two_devices, width=4)
    begun[0].member.report = StopAfter(0, RuntimeError("stopped"))
    begun[0].pack.run()
    (last,) = prepare(experiments[0], folder=tmp_path / "sweep", devices=two_devices)
    last.run()
    assert [width_of(last, task) for task in range(3)] == [4, 4, 4]
    assert_same_bits(arrays_of(last.folder), arrays_of(whole[0].folder))


def test_folders_that_do_not_say_their_width_go_on_as_they_come(tmp_path: Path, two_devices: list[jax.Device]) -> None:
    """As they did before widths were written down: a lane by itself in a program of its own."""
    (alone,) = prepare(one_repeat(RATES[0]), folder=tmp_path / "alone", devices=two_devices)
    alone.run()
    (stopped,) = prepare(one_repeat(RATES[0]), folder=tmp_path / "sweep", devices=two_devices, report=StopAfter(0, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    for path in stopped.folder.glob("*/COMMIT.json"):
        document = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("width", "checksum")}
        path.write_text(json.dumps({**document, "checksum": checksum_of(document)}))
    (resumed,) = prepare(one_repeat(RATES[0]), folder=tmp_path / "sweep", devices=two_devices)
    resumed.run()
    assert_same_bits(arrays_of(resumed.folder), arrays_of(alone.folder))
