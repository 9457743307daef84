"""A lane whose loss or update is not finite stops where it is, says so, and disturbs nobody."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from clray.core.lanes import ChunkedLanes, plan_chunks
from clray.draw import Draw
from tests.core.plain_loop import Mlp, Plain, digits, torch_sgd
from tests.core.tiny import Arrays, OneTrial, arrays_of, assert_same_bits, table, tiny
from tests.core.tiny import train as train_lanes

HEALTHY = [0.05, 0.2, 0.01, 0.1]
ILL = 1
EXPLODES = 1e30
"""The first update is finite, the second loss is not."""
OVERFLOWS = 3e38
"""The first loss is finite, the first update is not."""


def with_rate(trial: OneTrial, rate: float) -> list[Arrays]:
    """The four lanes, one of them with another rate."""
    rates = [rate if lane == ILL else healthy for lane, healthy in enumerate(HEALTHY)]
    return train_lanes(trial, trial.lanes(learning_rate=rates), jax.local_devices()[:1], width=4)


@pytest.fixture(scope="module")
def healthy(base_trial: OneTrial) -> list[Arrays]:
    """Four lanes that converge."""
    return with_rate(base_trial, HEALTHY[ILL])


@pytest.fixture(scope="module", params=[EXPLODES, OVERFLOWS], ids=["loss not finite", "update not finite"])
def ill(request: pytest.FixtureRequest, base_trial: OneTrial) -> tuple[float, list[Arrays]]:
    """The rate of the ill lane, and what the four lanes logged."""
    return request.param, with_rate(base_trial, request.param)


def test_neighbours_of_a_diverged_lane_keep_every_bit(ill: tuple[float, list[Arrays]], healthy: list[Arrays]) -> None:
    for lane in {0, 1, 2, 3} - {ILL}:
        assert_same_bits(ill[1][lane], healthy[lane])
    assert [bool(lane["state .diverged"]) for lane in ill[1]] == [lane == ILL for lane in range(4)]


def test_evaluations_of_a_diverged_lane_are_nan(ill: tuple[float, list[Arrays]]) -> None:
    found = ill[1][ILL]
    for task in (0, 1):
        for name in ("accuracy", "loss", "end_accuracy", "end_loss"):
            assert np.isnan(found[f"{task} {name}"]).all()


def test_training_metrics_of_a_diverged_lane_are_nan_after_the_window_in_which_it_diverged(ill: tuple[float, list[Arrays]]) -> None:
    found = ill[1][ILL]
    assert np.isnan(np.concatenate([found["0 train_loss"][1:], found["1 train_loss"]])).all()
    assert np.isnan(np.concatenate([found["0 train_accuracy"][1:], found["1 train_accuracy"]])).all()


def test_a_diverged_lane_keeps_its_last_finite_parameters(ill: tuple[float, list[Arrays]], base_trial: OneTrial) -> None:
    rate, found = ill[0], ill[1][ILL]
    plain = Plain(digits(), Mlp(), torch_sgd(rate, momentum=0.9, weight_decay=1e-3), base_trial)
    start = plain.initial()[ILL]
    images, labels = plain.data(0, ILL)
    first = base_trial.data(0).order[0, ILL]
    after_one, _ = plain.update(start, plain.model.gradient(start, images[first], labels[first]), None, 0)
    expected = after_one if rate == EXPLODES else start
    for name, value in expected.items():
        logged = [found[f"state .params['{name}']"], *found[f"0 {name}"][:, 0], *found[f"1 {name}"][:, 0]]
        for array in logged:
            np.testing.assert_array_equal(array, logged[0])
        # Parameters after the exploding update are of the order of the rate; what is below its rounding cannot be seen.
        np.testing.assert_allclose(logged[0], value, rtol=1e-5, atol=rate * 1e-7 if rate == EXPLODES else 0.0)
        assert np.isfinite(logged[0]).all()


def test_optimizer_and_counters_stop_with_the_parameters(ill: tuple[float, list[Arrays]], base_trial: OneTrial) -> None:
    rate, found = ill
    fresh = ChunkedLanes(base_trial.pack.spec, base_trial.lanes(), base_trial.pack.pools, plan_chunks(4, jax.local_devices()[:1], 4))
    start = {f"state {name}": leaf[ILL] for name, leaf in fresh.fetch_state(fresh.init()).items()}
    assert found[ILL]["state .batches"] == (1 if rate == EXPLODES else 0)
    assert all(np.isfinite(leaf).all() for name, leaf in found[ILL].items() if name.startswith("state"))
    if rate == OVERFLOWS:
        ended = {name: leaf for name, leaf in found[ILL].items() if name.startswith("state") and name != "state .diverged"}
        assert_same_bits(ended, {name: start[name] for name in ended})


def test_a_lane_with_broken_data_stays_as_it_was_even_when_good_data_follows(base_trial: OneTrial, healthy: list[Arrays]) -> None:
    pack = base_trial.pack
    lanes = ChunkedLanes(pack.spec, base_trial.lanes(learning_rate=HEALTHY), pack.pools, plan_chunks(4, jax.local_devices()[:1], 4))
    fresh = lanes.init()
    before = lanes.fetch_state(fresh)
    states = fresh
    for task in (0, 1):
        data = base_trial.data(task)
        if task == 0:
            data.images[:, ILL, 0] = np.nan
        states, _ = lanes.train(states, lanes.place(data, range(4)), task, 45)
    after = lanes.fetch_state(states)
    assert after[".diverged"].tolist() == [lane == ILL for lane in range(4)]
    for name in before:
        if name != ".diverged":
            np.testing.assert_array_equal(after[name][ILL], before[name][ILL], err_msg=name)
        for lane in {0, 1, 2, 3} - {ILL}:
            np.testing.assert_array_equal(after[name][lane], healthy[lane][f"state {name}"], err_msg=name)


def result_of(trial: OneTrial) -> dict[str, Any]:
    """RESULT.json."""
    return json.loads((trial.folder / "RESULT.json").read_text())


def test_a_trial_with_one_repeat_that_diverges_in_the_last_task_is_done_and_leaves_it_out_of_all_means(
    base_trial: OneTrial, finished: Callable[..., OneTrial], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Draw.task

    def broken(draw: Draw, task: int, **options: Any) -> Any:
        data = whole(draw, task, **options)
        if task == 2:
            data.images[:, ILL, 0] = np.nan
        return data

    monkeypatch.setattr(Draw, "task", broken)
    trial = finished(tiny())
    result, healthy = result_of(trial), result_of(base_trial)
    assert (result["status"], result["n_diverged"], result["diverged_repeats"]) == ("done", 1, [ILL])
    for name, metric in healthy["metrics"].items():
        kept = [value for repeat, value in enumerate(metric["repeats"]) if repeat != ILL]
        found = result["metrics"][name]
        assert found["repeats"] == [None if repeat == ILL else value for repeat, value in enumerate(metric["repeats"])]
        assert found["mean"] == pytest.approx(np.mean(kept), rel=1e-12)
        assert found["sem"] == pytest.approx(np.std(kept, ddof=1) / np.sqrt(3), rel=1e-12)
    expected = arrays_of(base_trial.folder)
    for name, array in arrays_of(trial.folder).items():
        if not name.startswith("task_002"):
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
        elif name.endswith(("metrics.parquet:accuracy", "metrics.parquet:loss", "end.parquet:accuracy", "end.parquet:loss")):
            repeats = expected[name.rpartition(":")[0] + ":repeat"]
            assert np.isnan(array[repeats == ILL]).all()
            np.testing.assert_array_equal(array[repeats != ILL], expected[name][repeats != ILL], err_msg=name)


def test_a_trial_whose_repeats_all_diverge_is_diverged(finished: Callable[..., OneTrial]) -> None:
    trial = finished(tiny(optimizer={**tiny()["optimizer"], "learning_rate": EXPLODES}))
    result = result_of(trial)
    assert (result["status"], result["n_diverged"], result["diverged_repeats"]) == ("diverged", 4, [0, 1, 2, 3])
    assert all(metric == {"mean": None, "sem": None, "repeats": [None] * 4} for metric in result["metrics"].values())
    assert np.isnan(table(trial.folder / "task_002", "end.parquet")["accuracy"]).all()
    assert not np.isnan(table(trial.folder / "initial", "end.parquet")["accuracy"]).any()
