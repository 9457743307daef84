"""Logs of a task are written where those of a task before were, once nobody reads them any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import clray.core.lanes
from clray.core.lanes import ChunkedLanes, HostLogs, plan_chunks
from clray.core.program import Room
from clray.core.task import fresh_room, train_task
from clray.core.transfer import compiled_zeros
from clray.memory import estimate
from tests.core.test_compile_once import compilations
from tests.core.tiny import OneTrial, prepare, tiny


class Tasks:
    """Trains tasks one after the other and says where their weights lie."""

    def __init__(self, trial: OneTrial):
        self.trial = trial
        plan = plan_chunks(2, jax.local_devices()[:1], 2)
        self.lanes = ChunkedLanes(trial.pack.spec, trial.lanes(learning_rate=[0.1, 0.05]), trial.pack.pools, plan)
        self.states = self.lanes.init()
        self.horizon = trial.pack.sizes.n_tasks * trial.pack.sizes.total_batches

    def train(self, task: int) -> tuple[HostLogs, int]:
        self.states, logs = self.lanes.train(self.states, self.lanes.place(self.trial.data(task), [0, 1]), task, self.horizon)
        jax.block_until_ready(logs)
        return self.lanes.fetch_logs(logs), logs[0].weights["head.kernel"].unsafe_buffer_pointer()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Room]:
    """Grows with every fresh room: an address alone says little, as the C library hands out again what was freed."""
    rooms: list[Room] = []

    def counted(*given: Any) -> Room:
        rooms.append(fresh_room(*given))
        return rooms[-1]

    monkeypatch.setattr(clray.core.lanes, "fresh_room", counted)
    return rooms


@pytest.fixture
def tasks(base_trial: OneTrial, made: list[Room]) -> Tasks:
    return Tasks(base_trial)


def weights(host: HostLogs) -> np.ndarray:
    return np.stack(list(host.weights("head.kernel", [0, 1])))


def test_a_closed_task_leaves_its_memory_to_the_next(tasks: Tasks, made: list[Room]) -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("elsewhere the memory is free once the logs have been fetched")
    first, where = tasks.train(0)
    kept, second_where = tasks.train(1)
    assert second_where != where, "the first one is not closed"
    first.close()
    _, third_where = tasks.train(0)
    assert third_where == where
    assert len(made) == 2
    kept.close()


def test_logs_that_are_read_are_not_overwritten(tasks: Tasks) -> None:
    first, _ = tasks.train(0)
    held = next(first.weights("head.kernel", [0]))
    before, all_weights = held.copy(), weights(first)
    first.close()  # although somebody holds a view
    second, _ = tasks.train(1)
    assert (weights(second) != all_weights).any()
    assert np.array_equal(held, before)


def test_metrics_outlive_closing_and_closing_twice_gives_the_memory_once(tasks: Tasks) -> None:
    first, _ = tasks.train(0)
    accuracy = first.accuracy.copy()
    first.close()
    first.close()
    one, where = tasks.train(1)
    other, other_where = tasks.train(0)
    assert where != other_where
    assert np.array_equal(first.accuracy, accuracy)
    assert weights(one).shape == weights(other).shape


def test_joined_logs_give_the_memory_of_their_parts_back_once(tasks: Tasks, made: list[Room]) -> None:
    (first, where), (second, other_where) = tasks.train(0), tasks.train(1)
    both = [weights(host) for host in (first, second)]
    whole = first.followed_by(second)
    for part in (first, second):
        part.close()  # the whole is responsible for them now
    assert np.array_equal(weights(whole), np.concatenate(both))
    whole.close()
    found = [tasks.train(0) for _ in range(3)]
    assert {position for _, position in found[:2]} == {where, other_where}
    assert found[2][1] not in (where, other_where)
    assert len(made) == 3


def test_nobody_reads_what_a_segment_of_a_later_task_is_logged_in(
    tmp_path: Path, made: list[Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAX copies, and says nothing, where a buffer that it may overwrite is still read by somebody."""
    in_place = []

    def recorded(*given: Any) -> Any:
        before = given[-1].weights["head.kernel"].unsafe_buffer_pointer()
        out = train_task(*given)
        if not any(given[-1] is room for room in made):  # fresh ones may be memory of the host's, which JAX copies
            in_place.append(out[1].weights["head.kernel"].unsafe_buffer_pointer() == before)
        return out

    monkeypatch.setattr(clray.core.lanes, "train_task", recorded)
    experiment = tiny(sequence={"n_tasks": 6, "policy": "reuse"})
    (whole,) = prepare(experiment, folder=tmp_path / "whole")
    two_tasks = 2 * estimate(whole.experiment, whole.pack.sizes).logs
    (trial,) = prepare(experiment, folder=tmp_path / "segments", log_bytes=1 + two_tasks // 3)
    assert trial.pack.spec.n_segments == 3
    trial.run()
    assert len(in_place) + len(made) == 2 * 6 * 3, "two chunks, six tasks, three segments"
    assert all(in_place)
    assert len(made) <= 2 * 2 * 3, "two chunks, two tasks at once"


def test_rooms_of_a_gpu_are_made_by_one_program_on_their_device() -> None:
    shapes = Room(jax.ShapeDtypeStruct((2, 3), np.float32), {"kernel": jax.ShapeDtypeStruct((4,), np.int32)})
    for device in jax.local_devices():
        compiled_zeros(shapes, device)
        with compilations() as compiled:
            compiled_zeros(shapes, device)
        assert not compiled
        room = compiled_zeros(shapes, device)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), room) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes)
        assert all(leaf.committed and leaf.devices() == {device} and not leaf.any() for leaf in jax.tree.leaves(room))


def test_devices_without_lanes_make_no_room_for_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_devices: list[jax.Device]
) -> None:
    def segments(n_lanes: int, devices: list[jax.Device]) -> int:
        experiment = tiny(n_repeats=n_lanes, logging={"log_frequency": 1, "n_subsamples": 6})
        return prepare(experiment, folder=tmp_path / "sweep", devices=devices)[0].pack.spec.n_segments

    (one,) = prepare(tiny(n_repeats=1, logging={"log_frequency": 1, "n_subsamples": 6}), folder=tmp_path / "sweep")
    two_tasks = 2 * estimate(one.experiment, one.pack.sizes).logs
    monkeypatch.setattr("clray.experiment.LOG_SHARE", 1.0)
    monkeypatch.setattr("clray.experiment.device_bytes", lambda device: two_tasks)
    assert segments(1, two_devices[:1]) == 1
    assert segments(2, two_devices) == 1
    assert segments(2, two_devices[:1]) > 1
    assert segments(3, two_devices) > 1, "two lanes on one of them"
    monkeypatch.setattr("clray.experiment.device_bytes", lambda device: two_tasks // 2)
    assert segments(1, two_devices) == segments(1, two_devices[:1]) > 1
