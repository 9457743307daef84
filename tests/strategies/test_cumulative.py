"""Cumulative training: every batch from all data of the tasks so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from clray.core.task import train_task
from clray.data.order import batch_order
from clray.errors import ConfigError
from clray.memory import estimate
from clray.options import StrategyOptions
from clray.sizes import sizes_of
from clray.store.checkpoint import unpack_state
from clray.strategies.base import Context, StaticSizes, Strategy, TaskData
from clray.trials.plan import plan_run
from clray.types import Params, Purpose
from tests.core.plain_loop import TOLERANCE, Mlp, Plain, digits, torch_sgd
from tests.core.test_resume import StopAfter
from tests.core.tiny import OneTrial, arrays_of, assert_same_bits, prepare, tiny

CUMULATIVE = {"name": "cumulative"}


def trial_of(folder: Path, strategy: Any = CUMULATIVE, options: Mapping[str, Any] | None = None, **changes: Any) -> OneTrial:
    """The tiny experiment, ready to run; ``options`` of ``TrialPack``."""
    (trial,) = prepare(tiny(n_repeats=2, strategy=strategy, **changes), folder=folder, **(options or {}))
    return trial


def finished(folder: Path, strategy: Any = CUMULATIVE, options: Mapping[str, Any] | None = None, **changes: Any) -> OneTrial:
    trial = trial_of(folder, strategy, options, **changes)
    trial.run()
    return trial


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> OneTrial:
    before = train_task._cache_size()
    trial = finished(tmp_path_factory.mktemp("cumulative"))
    assert train_task._cache_size() == before + 1, "one program for all tasks"
    return trial


def union(plain: Plain, task: int, repeat: int) -> tuple[np.ndarray, np.ndarray]:
    """All data of the tasks so far, one task after the other."""
    images, labels = zip(*(plain.data(earlier, repeat) for earlier in range(task + 1)), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_it_is_a_loop_over_batches_of_the_union_of_the_tasks_so_far(whole: OneTrial) -> None:
    plain = Plain(digits(), Mlp(), torch_sgd(0.05, momentum=0.9, weight_decay=1e-3), whole)
    for repeat, params in enumerate(plain.initial()):
        state = None
        for task in range(3):
            images, labels = union(plain, task, repeat)
            assert len(images) == (task + 1) * 84
            for chosen in batch_order(plain.experiment.seed, repeat, task, len(images), 16, 15):
                params, state = plain.update(params, plain.model.gradient(params, images[chosen], labels[chosen]), state, 0)
            found = unpack_state((whole.folder / f"task_{task:03d}" / "state.msgpack").read_bytes()) if task else {}
            for name, value in params.items() if task else ():
                leaf = np.asarray(found[f".params['{name}']"])[repeat]
                np.testing.assert_allclose(leaf, value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"task {task} {name}")


def test_first_task_is_plain_training_and_the_length_of_tasks_that_of_plain_training(whole: OneTrial, tmp_path: Path) -> None:
    plain = arrays_of(finished(tmp_path / "plain", {"name": "finetune"}).folder)
    found = arrays_of(whole.folder)
    first = {name for name in found if name.startswith(("initial", "task_000"))}
    for name in first:
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-6, atol=1e-6, err_msg=name)
    for name in ("task_002/metrics.parquet:step", "task_002/train.parquet:step"):
        np.testing.assert_array_equal(found[name], plain[name])
    assert np.abs(found["task_001/weights.head.kernel.npy"] - plain["task_001/weights.head.kernel.npy"]).max() > 0.01


def visits(trial: OneTrial, task: int, repeat: int) -> Counter[tuple[bytes, int]]:
    data, pool = trial.data(task), trial.pack.pools.train
    rows, labels = data.order[:, repeat].ravel(), data.order_labels[:, repeat].ravel()
    return Counter((pool[row].tobytes(), int(label)) for row, label in zip(rows, labels, strict=True))


@pytest.mark.parametrize("per_class", [42, "all"])
def test_an_epoch_over_the_union_visits_every_sample_of_every_task_once_with_its_label(per_class: Any, tmp_path: Path) -> None:
    """Also where tasks differ in size: none is filled up."""
    trial = trial_of(tmp_path, dataset__train_per_class=per_class, training={"steps": 900, "batch_size": 1}, logging__log_frequency=900)
    source = digits().train
    for task, repeat in ((0, 0), (2, 1)):
        classes = trial.draw.classes[: task + 1, repeat]
        own = [(image, y) for row in classes for y, k in enumerate(row) for image in source[k][: None if per_class == "all" else per_class]]
        expected = Counter((image.astype(np.float32).tobytes(), y) for image, y in own)
        data = visits(trial, task, repeat)
        n_whole = 900 // len(own)
        assert set(data) == set(expected)
        assert all(n_whole * n <= data[sample] <= (n_whole + 1) * n for sample, n in expected.items())


def test_packed_stopped_and_resumed_in_segments_or_with_more_room_it_is_the_same(whole: OneTrial, tmp_path: Path) -> None:
    expected = arrays_of(whole.folder)
    other = tiny(n_repeats=2, strategy=CUMULATIVE, seed=4)
    packed = prepare(tiny(n_repeats=2, strategy=CUMULATIVE), other, folder=tmp_path / "packed", width=2)
    assert not any(isinstance(outcome, Exception) for outcome in packed[0].pack.run())
    assert_same_bits(arrays_of(packed[0].folder), expected)
    alone = finished(tmp_path / "alone", seed=4)
    assert_same_bits(arrays_of(packed[1].folder), arrays_of(alone.folder))
    (stopped,) = prepare(
        tiny(n_repeats=2, strategy=CUMULATIVE), folder=tmp_path / "resumed", report=StopAfter(1, KeyboardInterrupt()), gather=True
    )
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert_same_bits(arrays_of(finished(tmp_path / "resumed").folder), expected)
    built = finished(tmp_path / "built", options={"gather": False})
    assert built.pack.pools.train is None
    assert_same_bits(arrays_of(built.folder), expected)
    segmented = trial_of(tmp_path / "segments", options={"log_bytes": 2 * estimate_logs(whole) // 2})
    assert segmented.pack.spec.n_segments > 1
    segmented.run()
    for name, array in arrays_of(segmented.folder).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


def estimate_logs(trial: OneTrial) -> int:
    return estimate(trial.experiment, trial.pack.sizes).logs


class Census(StrategyOptions):
    """Writes down what a strategy is shown of each task when it ends."""

    def build(self) -> Strategy:
        def init(params: Params, sizes: StaticSizes) -> Any:
            del params
            return jnp.zeros((sizes.n_tasks, *sizes.input_shape)), jnp.zeros(sizes.n_tasks)

        def end_task(state: Any, params: Params, data: TaskData, ctx: Context) -> Any:
            del params
            images, labels = state
            return images.at[ctx.task].set(data.images.sum(axis=0)), labels.at[ctx.task].set(data.labels.sum())

        return Strategy(init=init, end_task=end_task)


def test_penalties_beside_it_see_the_current_task_and_experts_are_those_of_plain_training(whole: OneTrial, tmp_path: Path) -> None:
    census = tiny(n_repeats=2, strategy=[CUMULATIVE, Census(name="census")], baselines=["expert"])
    (trial,) = prepare(census, folder=tmp_path / "census")
    trial.run()
    found = arrays_of(trial.folder)
    plain = Plain(digits(), Mlp(), torch_sgd(0.05, momentum=0.9, weight_decay=1e-3), trial)
    for repeat, fresh in enumerate(plain.initial(2, Purpose.EXPERT)):
        ends = plain.task(fresh, None, 2, repeat, 0, tasks=(2,))[2]["end_loss"]
        np.testing.assert_allclose(found["task_002/expert.parquet:loss"][-2:][repeat], ends[0], rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(
        found["task_002/end.parquet:loss"], arrays_of(whole.folder)["task_002/end.parquet:loss"], rtol=TOLERANCE, atol=TOLERANCE
    )
    state = unpack_state((trial.folder / "task_002" / "state.msgpack").read_bytes())
    for repeat in range(2):
        for task in range(3):
            images, labels = plain.data(task, repeat)
            np.testing.assert_allclose(np.asarray(state[".strategy[1][0]"])[repeat, task], images.sum(axis=0), rtol=1e-5)
            assert np.asarray(state[".strategy[1][1]"])[repeat, task] == labels.sum()


def test_it_holds_no_copies_of_earlier_tasks_whatever_their_number() -> None:
    def needs(n_tasks: int) -> Any:
        given = tiny(strategy=CUMULATIVE, sequence={"n_tasks": n_tasks}, logging__eval_tasks=[0])
        trial = plan_run(given).trials[0].experiment
        return estimate(trial, sizes_of(trial, trial.dataset.describe()))

    few, many = needs(2), needs(5)
    assert (few.data, few.pools, few.device, few.host) == (many.data, many.pools, many.device, many.host)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"strategy": CUMULATIVE, "sequence": {"n_tasks": 3, "policy": "reuse"}},
        "strategy.name: cumulative trains on all tasks so far at once, but with policy reuse",
    ),
    (
        {"strategy": [CUMULATIVE, {"name": "ewc"}, {"name": "der++", "memory_size": 20}]},
        "strategy.2.name: der++ keeps samples of earlier tasks, which cumulative trains on anyway",
    ),
    ({"strategy": [{"name": "gem"}, CUMULATIVE]}, "strategy.0.name: gem keeps samples"),
    ({"strategy": [CUMULATIVE, {"name": "agem"}]}, "strategy.1.name: agem keeps samples"),
    ({"strategy": {"name": "cumulative", "memory_size": 3}}, "strategy.memory_size: unknown key; valid: name"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_run(tiny(**changes))
    assert message in str(refused.value)


def test_it_composes_with_penalties() -> None:
    plan_run(tiny(strategy=[CUMULATIVE, {"name": "ewc"}, {"name": "si"}, {"name": "lwf"}]))
