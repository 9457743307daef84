"""The core calls the hooks of strategies when and with what their interface says."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from clray.store.checkpoint import unpack_state
from clray.strategies.base import Context, Strategy, chain
from clray.types import Batch
from tests.core.plain_loop import TOLERANCE, Mlp, Plain, digits, torch_sgd
from tests.core.probes import Diary, Ridge, Shrink, Weightless
from tests.core.tiny import OneTrial, arrays_of, prepare, table, tiny
from tests.quick import compiled_quickly

PLAIN_SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}

PENALTY = 6e-4
"""Of the tiny experiment's weight decay of 1e-3."""


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> OneTrial:
    """The tiny experiment with its weight decay partly as a penalty, partly in the gradient, with rows of weight zero and a diary."""
    decay = [Ridge(name="ridge", strength=PENALTY), Shrink(name="shrink", strength=1e-3 - PENALTY)]
    strategy = [Weightless(name="weightless"), *decay, Diary(name="diary")]
    (trial,) = prepare(tiny(optimizer=PLAIN_SGD, strategy=strategy), folder=tmp_path_factory.mktemp("probed"))
    with compiled_quickly():
        trial.run()
    return trial


def test_penalty_and_gradient_hooks_reach_the_optimizer_and_rows_of_weight_zero_do_not(probed: OneTrial, base_trial: OneTrial) -> None:
    found, expected = arrays_of(probed.folder), arrays_of(base_trial.folder)
    compared = [name for name in expected if name.endswith((".npy", "metrics.parquet:loss", "end.parquet:loss"))]
    assert len(compared) > 20
    for name in compared:
        np.testing.assert_allclose(found[name], expected[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_training_accuracy_is_counted_on_the_rows_of_the_task(probed: OneTrial, base_trial: OneTrial) -> None:
    for task in range(3):
        found, expected = (table(trial.folder / f"task_{task:03d}", "train.parquet") for trial in (probed, base_trial))
        np.testing.assert_allclose(found["accuracy"], expected["accuracy"], atol=2e-7)


def test_training_loss_is_what_is_minimised_penalty_included(probed: OneTrial, base_trial: OneTrial) -> None:
    found, without = (table(trial.folder / "task_000", "train.parquet")["loss"].reshape(3, 4) for trial in (probed, base_trial))
    plain = Plain(digits(), Mlp(), torch_sgd(0.05, momentum=0.9, weight_decay=1e-3), base_trial)
    penalties = np.empty((15, 4))
    for repeat, params in enumerate(plain.initial()):
        (images, labels), state = plain.data(0, repeat), None
        for batch, chosen in enumerate(base_trial.data(0).order[:, repeat]):
            penalties[batch, repeat] = 0.5 * PENALTY * sum((leaf.astype(np.float64) ** 2).sum() for leaf in params.values())
            params, state = plain.update(params, plain.model.gradient(params, images[chosen], labels[chosen]), state, batch)
    np.testing.assert_allclose(found - without, penalties[:12].reshape(3, 4, 4).mean(axis=1), atol=TOLERANCE)
    assert penalties.min() > 100 * TOLERANCE


def test_hooks_are_called_in_turn_once_a_batch_or_once_a_task_each_time_with_another_key(probed: OneTrial) -> None:
    state = unpack_state((probed.folder / "task_002" / "state.msgpack").read_bytes())
    diary = {name.split("'")[1]: leaf.tolist() for name, leaf in state.items() if name.startswith(".strategy[3]")}
    keys = [tuple(key) for key in diary.pop("key")]
    assert diary == {
        "begun": [3] * 4,
        "batches": [45] * 4,
        "stepped": [45] * 4,
        "told": [3] * 4,
        "ended": [3] * 4,
        "last_task": [2] * 4,
        "out_of_turn": [0] * 4,
        "wrong_rows": [0] * 4,
        "repeated_keys": [0] * 4,
    }
    assert len(set(keys)) == 4, "lanes share a key"


def test_chained_strategies_see_their_own_options_and_keys_in_order() -> None:
    calls: list[tuple[str, dict[str, float], tuple[int, ...]]] = []

    def spy(name: str) -> Strategy:
        def batch(state: int, batch: Batch, ctx: Context) -> tuple[int, Batch]:
            calls.append((name, dict(ctx.hyper), tuple(jax.random.key_data(ctx.key).tolist())))
            return state + 1, batch._replace(weights=batch.weights * 2 + len(name))

        return Strategy(init=lambda params, sizes: 10 * len(name), batch=batch, penalty=lambda *args: float(len(name)))

    both = chain([spy("a"), spy("bb")])
    states = both.init({}, None)
    ctx = Context({"0.x": 1.0, "1.x": 2.0, "10.x": 3.0, "1.y": 4.0}, 0, 0, jax.random.key(0), lambda params, images: None, None, None, None)
    states, batch = both.batch(states, Batch(None, None, np.float32(1.0)), ctx)
    assert states == (11, 21)
    assert batch.weights == (1 * 2 + 1) * 2 + 2
    assert both.penalty(states, {}, None, batch, ctx) == 3.0
    assert [(name, hyper) for name, hyper, _ in calls] == [("a", {"x": 1.0}), ("bb", {"x": 2.0, "y": 4.0})]
    assert calls[0][2] != calls[1][2]
