"""Lanes do not see each other: not their neighbours, nor the width of their chunk, nor the number of devices."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clray.core.lanes import ChunkedLanes, plan_chunks
from clray.experiment import _Sequence
from clray.memory import estimate
from tests.core.tiny import Arrays, OneTrial, arrays_of, assert_same_bits, prepare, tiny
from tests.core.tiny import train as train_lanes

RATES = [0.05, 0.2, 0.01, 0.1]


@pytest.fixture(scope="session")
def four(base_trial: OneTrial) -> list[Arrays]:
    """Four lanes with rates of their own as one chunk on one device."""
    return train_lanes(base_trial, base_trial.lanes(learning_rate=RATES), jax.local_devices()[:1], width=4)


def test_lanes_differ(four: list[Arrays]) -> None:
    losses = [tuple(lane["1 end_loss"]) for lane in four]
    assert len(set(losses)) == 4


@pytest.mark.parametrize("width", [2, 3])
def test_width_does_not_change_a_bit(base_trial: OneTrial, four: list[Arrays], width: int) -> None:
    found = train_lanes(base_trial, base_trial.lanes(learning_rate=RATES), jax.local_devices()[:1], width)
    for lane in range(4):
        assert_same_bits(found[lane], four[lane])


def assert_same_but_reported_loss(alone: Arrays, together: Arrays) -> None:
    """Same bits, but for the training loss of a chunk of one lane: XLA sums that batch in another order (it is only reported;
    gradients, weights and evaluations do not come from it). Two roundings of a number of order 1 are let through."""
    reported = [name for name in together if name.endswith(("train_loss", "train.parquet:loss"))]
    assert reported
    for name in reported:
        np.testing.assert_allclose(alone[name], together[name], rtol=2.4e-7, atol=2.4e-7, err_msg=name)
    assert_same_bits(*({name: array for name, array in arrays.items() if name not in reported} for arrays in (alone, together)))


def test_a_chunk_of_one_lane_changes_no_bit_of_weights_evaluations_and_state(base_trial: OneTrial, four: list[Arrays]) -> None:
    found = train_lanes(base_trial, base_trial.lanes(learning_rate=RATES), jax.local_devices()[:1], width=1)
    for lane in range(4):
        assert_same_but_reported_loss(found[lane], four[lane])


def test_number_of_devices_does_not_change_a_bit(base_trial: OneTrial, four: list[Arrays], two_devices: list[jax.Device]) -> None:
    assert {chunk.device for chunk in plan_chunks(4, two_devices, 2)} == set(two_devices)
    found = train_lanes(base_trial, base_trial.lanes(learning_rate=RATES), two_devices, width=2)
    for lane in range(4):
        assert_same_bits(found[lane], four[lane])


def test_position_and_neighbours_do_not_change_a_bit(base_trial: OneTrial, four: list[Arrays]) -> None:
    turned = [2, 0, 2, 3]  # one lane elsewhere, one twice, one missing
    lanes = jax.tree.map(lambda leaf: leaf[turned], base_trial.lanes(learning_rate=RATES))
    found = train_lanes(base_trial, lanes, jax.local_devices()[:1], width=4)
    for lane, origin in zip(found, turned, strict=True):
        assert_same_bits(lane, four[origin])


def of_repeat(arrays: Arrays, repeat: int, position: int, n_repeats: int) -> Arrays:
    """What the files of a trial say of one repeat: ``repeat`` in tables, ``position`` on the R axis of tensors."""
    found: Arrays = {}
    for name, array in arrays.items():
        if name == "eval_samples.npy":
            found[name] = array
        elif ".parquet:" in name:
            found[name] = array[arrays[f"{name.partition(':')[0]}:repeat"] == repeat]
        elif "state.msgpack" in name:
            found[name] = array[position : position + 1]
        else:
            assert array.shape[1] == n_repeats
            found[name] = array[:, position : position + 1]
    return found


def test_repeat_alone_equals_its_slice(base_trial: OneTrial, finished: Callable[..., OneTrial]) -> None:
    alone = arrays_of(finished(tiny(repeats=[3])).folder)
    assert {array.dtype.name for name, array in alone.items() if name.endswith(":repeat")} == {"int16"}
    assert_same_but_reported_loss(alone, of_repeat(arrays_of(base_trial.folder), 3, 3, 4))


def test_packed_trials_equal_themselves_alone(base_trial: OneTrial, finished: Callable[..., OneTrial], tmp_path: Path) -> None:
    """Three trials as twelve lanes, in chunks of four and of three: the last is padded, and chunks mix trials."""
    others = [tiny(optimizer={**tiny()["optimizer"], "learning_rate": 0.2}), tiny(seed=4)]
    alone = [arrays_of(trial.folder) for trial in (base_trial, *(finished(copy.deepcopy(other)) for other in others))]
    for width in (4, 3):
        packed = prepare(tiny(), *others, folder=tmp_path / f"width-{width}", width=width)
        assert not any(isinstance(outcome, Exception) for outcome in packed[0].pack.run())
        for trial, expected in zip(packed, alone, strict=True):
            assert_same_bits(arrays_of(trial.folder), expected)


SHARING = {
    "plain": {},
    "pixels are gathered on the device": {},
    "data is read at the end of a task": {"strategy": [{"name": "ewc"}]},
    "samples are kept": {"strategy": [{"name": "er", "memory_size": 20}]},
    "batches of all tasks so far": {"strategy": [{"name": "cumulative"}]},
    "baselines": {"baselines": ["expert", "joint"]},
}


@pytest.mark.parametrize("what", SHARING)
def test_trials_of_a_chunk_share_the_data_of_their_repeats(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a chunk holds all trials of a pack: four copies of the data for eight lanes, not eight."""
    both = [tiny(**SHARING[what], optimizer__learning_rate=rate) for rate in (0.05, 0.2)]
    found, place = {}, ChunkedLanes._place
    for kind in ("shared", "a column each"):
        if kind != "shared":
            monkeypatch.setattr(ChunkedLanes, "_place", lambda self, data, rows, n, *rest: place(self, data, rows, len(rows), *rest))
        trials = prepare(*both, folder=tmp_path / kind, width=8, gather=True if "gathered" in what else None)
        assert not any(isinstance(outcome, Exception) for outcome in trials[0].pack.run())
        found[kind] = [arrays_of(trial.folder) for trial in trials]
        sequence = _Sequence(trials[0].pack, trials[0].pack.members)
        (data,) = sequence.lanes.place(sequence._build(0), sequence.row_of_lane, trials[0].pack.source_on)
        assert {leaf.shape[1] for leaf in (data.images, data.labels, data.order)} == {4 if kind == "shared" else 8}
    for trial, expected in zip(*found.values(), strict=True):
        assert_same_bits(trial, expected)


def test_chunks_of_one_program_have_the_same_number_of_columns(base_trial: OneTrial) -> None:
    data = base_trial.data(0)
    for rows, columns in {
        (0, 1, 0, 1, 2): [[0, 1, 0], [0, 1, 1]],  # the second chunk holds 1, 2 and another 2 that pads it
        (0, 0, 0, 0, 0): [[0, 0, 0], [0, 0, 0]],
        (0, 1, 2, 0, 0): [None, None],
    }.items():
        lanes = jax.tree.map(lambda leaf, rows=rows: leaf[list(rows)], base_trial.lanes())
        chunks = plan_chunks(5, jax.local_devices()[:1], 3)
        placed = ChunkedLanes(base_trial.pack.spec, lanes, base_trial.pack.pools, chunks).place(data, rows)
        assert len({jax.tree.map(lambda leaf: leaf.shape, each) for each in placed}) == 1
        for chunk, each, expected in zip(chunks, placed, columns, strict=True):
            assert (None if each.column is None else each.column.tolist()) == expected
            which = range(3) if each.column is None else each.column.tolist()
            for lane, column in zip(chunk.lanes, which, strict=True):
                assert np.array_equal(each.images[:, column], data.images[:, rows[lane]])


def test_logs_fetched_in_segments_are_the_same(base_trial: OneTrial, finished: Callable[..., OneTrial]) -> None:
    """Where the logs of a task do not fit on the device, it is trained in several calls of one program."""
    logs_of_two_tasks = 2 * estimate(base_trial.experiment, base_trial.pack.sizes).logs
    trial = finished(tiny(), log_bytes=1 + logs_of_two_tasks // 3)
    assert (base_trial.pack.spec.n_segments, trial.pack.spec.n_segments) == (1, 3)
    assert_same_bits(arrays_of(trial.folder), arrays_of(base_trial.folder))


@given(st.integers(1, 300), st.integers(1, 9), st.none() | st.integers(1, 20))
def test_chunks_hold_every_lane_once_in_equal_widths_dealt_round_robin(n_lanes: int, n_devices: int, width: int | None) -> None:
    devices = [type("Device", (), {"platform": "cpu", "id": i})() for i in range(n_devices)]
    chunks = plan_chunks(n_lanes, devices, width)
    assert [lane for chunk in chunks for lane in chunk.lanes[: chunk.n_real]] == list(range(n_lanes))
    assert len({len(chunk.lanes) for chunk in chunks}) == 1
    for number, chunk in enumerate(chunks):
        assert chunk.device is devices[number % n_devices]
        assert set(chunk.lanes[chunk.n_real :]) <= {chunk.lanes[chunk.n_real - 1]}
    if width is None:
        assert len(chunks[0].lanes) <= 2
        assert len(chunks) >= min(n_devices, n_lanes) // 2, "devices stay idle"
    else:
        assert len(chunks[0].lanes) == width


@pytest.mark.parametrize(
    ("n_lanes", "n_devices", "expected"), [(8, 2, [2] * 4), (4, 2, [2, 2]), (5, 2, [2] * 3), (1, 4, [1]), (12, 2, [2] * 6)]
)
def test_chunks_on_cpu_are_narrow_and_even(n_lanes: int, n_devices: int, expected: list[int]) -> None:
    devices = [type("Device", (), {"platform": "cpu"})() for _ in range(n_devices)]
    assert [len(chunk.lanes) for chunk in plan_chunks(n_lanes, devices)] == expected


def test_a_gpu_gets_its_share_in_one_chunk() -> None:
    devices = [type("Device", (), {"platform": "gpu"})() for _ in range(2)]
    assert [(len(chunk.lanes), chunk.n_real) for chunk in plan_chunks(9, devices)] == [(5, 5), (5, 4)]


def test_state_on_the_host_and_back_is_the_same(base_trial: OneTrial) -> None:
    lanes = ChunkedLanes(base_trial.pack.spec, base_trial.lanes(), base_trial.pack.pools, plan_chunks(4, jax.local_devices()[:1], 3))
    flat = lanes.fetch_state(lanes.init())
    again = lanes.fetch_state(lanes.restore_state(flat))
    assert_same_bits(again, flat)
    assert flat[".params['head.kernel']"].shape == (4, 16, 2)
    for broken in (
        {name: leaf for name, leaf in flat.items() if name != ".batches"},
        flat | {".batches": flat[".batches"].astype(np.int64)},
        flat | {".batches": flat[".batches"][:3]},
    ):
        with pytest.raises(ValueError, match="state"):
            lanes.restore_state(broken)
