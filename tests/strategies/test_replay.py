"""ER, DER and DER++: what is replayed, and what it adds to the loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clray.core.step import row_losses
from clray.strategies.base import Context, Step, Strategy
from clray.strategies.der import DER, DERPlusPlus
from clray.strategies.er import ER
from clray.types import Batch
from tests.strategies.by_hand import N_INPUTS, N_OUTPUTS, SIZES, assert_close, context, forward, random_params, scale

B, N_BATCHES = SIZES.batch_size, 5


def stream(number: int) -> Batch:
    """Batch ``number``: every image is unlike all others."""
    rng = np.random.default_rng(number)
    images = rng.integers(0, 256, (B, N_INPUTS)).astype(np.uint8)
    return Batch(jnp.asarray(images), jnp.asarray(rng.integers(0, N_OUTPUTS, B), jnp.int32), jnp.ones(B))


def run(strategy: Strategy, n_batches: int = N_BATCHES, **hyper: float) -> list[tuple[Any, Batch, Any]]:
    """State, unscaled batch and parameters at every step of plain gradient descent, the penalty of the strategy included."""

    def loss_of(params: Any, state: Any, batch: Batch, ctx: Context) -> Any:
        logits = forward(params, batch.images)[0]
        mean = jnp.sum(row_losses(logits, batch) * batch.weights) / jnp.sum(batch.weights)
        return mean + strategy.penalty(state, params, logits, batch, ctx), logits

    @jax.jit
    def step(state: Any, params: Any, batch: Batch, number: Any) -> Any:
        ctx = context(**hyper)._replace(task=number // 3, key=jax.random.key(number))
        state, raw = strategy.batch(state, batch, ctx)
        scaled = raw._replace(images=scale(raw.images))
        (_, logits), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, state, scaled, ctx)
        after = {name: leaf - 0.5 * gradient[name] for name, leaf in params.items()}
        return state, raw, after, strategy.after_step(state, Step(params, after, gradient, logits, scaled), ctx)

    params = random_params(0)
    state, found = strategy.init(params, SIZES), []
    for number in range(n_batches):
        seen, raw, after, state = step(state, params, stream(number), jnp.int32(number))
        found.append((seen, raw, params))
        params = after
    return found


def rows(images: Any) -> list[bytes]:
    return [image.tobytes() for image in np.asarray(images)]


OPTIONS = {"memory_size": 12, "replay_batch": 6}
"""Smaller than the stream of 20, so that rows are lost."""


@pytest.mark.parametrize("selection", ["reservoir", "class_balanced", "ring"])
def test_replayed_rows_are_rows_of_earlier_batches_with_their_labels_as_they_are_stored(selection: Any) -> None:
    found = run(ER(name="er", **OPTIONS, selection=selection).build(), alpha=0.3)
    label_of = {
        row: label
        for number in range(N_BATCHES)
        for row, label in zip(rows(stream(number).images), stream(number).labels.tolist(), strict=True)
    }
    replayed = set()
    for number, (_, batch, _) in enumerate(found):
        assert (batch.images.dtype, batch.images.shape) == (jnp.uint8, (B + 6, N_INPUTS))
        assert rows(batch.images[:B]) == rows(stream(number).images)
        if number:
            earlier = {row for past in range(number) for row in rows(stream(past).images)}
            assert set(rows(batch.images[B:])) <= earlier
            assert batch.labels[B:].tolist() == [label_of[row] for row in rows(batch.images[B:])]
            replayed |= set(rows(batch.images[B:]))
    assert len(replayed) > 5


def test_weights_give_the_past_its_share_and_nothing_while_the_buffer_is_empty() -> None:
    for options, shares in (({"weighting": "alpha"}, [0.0] + [0.3] * 4), ({"weighting": "by_task"}, [0.0, 0.0, 0.0, 0.5, 0.5])):
        for (_, batch, _), share in zip(run(ER(name="er", **OPTIONS, **options).build(), alpha=0.3), shares, strict=True):
            weights = np.asarray(batch.weights)
            np.testing.assert_allclose(weights[:B], (1 - share) / B, rtol=1e-6)
            np.testing.assert_allclose(weights[B:], share / 6, rtol=1e-6)


def test_replay_weighs_what_an_earlier_strategy_of_the_chain_has_weighed() -> None:
    strategy = ER(name="er", **OPTIONS).build()
    state = strategy.init({}, SIZES)
    for number in range(2):
        weighed = stream(number)._replace(weights=jnp.array([1.0, 2.0, 3.0, 4.0]))
        state, batch = strategy.batch(state, weighed, context(seed=number, alpha=0.3))
    np.testing.assert_allclose(batch.weights[:B], 0.7 * np.array([0.1, 0.2, 0.3, 0.4]), rtol=1e-6)


def memory(state: Any) -> dict[bytes, np.ndarray]:
    """Image to logits of the filled slots."""
    stored, filled = state.buffer.stored.value, int(jnp.minimum(state.buffer.selection, 40))
    return dict(zip(rows(stored.images[:filled]), np.asarray(stored.logits[:filled]), strict=True))


@pytest.mark.parametrize(("options", "strengths"), [(DER, {"alpha": 0.4}), (DERPlusPlus, {"alpha": 0.4, "beta": 0.7})])
def test_der_matches_the_logits_of_the_time_when_the_sample_was_seen(options: Any, strengths: dict[str, float]) -> None:
    strategy = options(name="der", memory_size=40, replay_batch=6).build()
    found = run(strategy, **strengths)
    seen: dict[bytes, np.ndarray] = {}
    for number, (state, batch, params) in enumerate(found):
        np.testing.assert_array_equal(sorted(seen), sorted(memory(state)))
        for row, logits in memory(state).items():
            np.testing.assert_allclose(logits, seen[row], rtol=1e-6)
        assert not batch.weights[B:].any()
        logits = np.asarray(forward(params, scale(batch.images))[0], np.float64)
        value = strategy.penalty(state, params, jnp.asarray(logits, jnp.float32), batch, context(**strengths))
        expected = 0.0
        if number:
            wanted = np.stack([seen[row] for row in rows(batch.images[B : B + 6])])
            expected = 0.4 * ((logits[B : B + 6] - wanted) ** 2).sum(axis=1).mean()
            if "beta" in strengths:
                again, labels = logits[B + 6 :], np.asarray(batch.labels[B + 6 :])
                assert len(again) == 6
                assert rows(batch.images[B : B + 6]) != rows(batch.images[B + 6 :]), "the two draws are one"
                expected += 0.7 * (np.log(np.exp(again).sum(axis=1)) - again[np.arange(6), labels]).mean()
        np.testing.assert_allclose(value, expected, rtol=1e-4)
        own = np.asarray(forward(params, scale(stream(number).images))[0])
        seen |= dict(zip(rows(stream(number).images), own, strict=True))


def test_der_finds_its_rows_behind_those_of_an_earlier_strategy_of_the_chain() -> None:
    strategy = DER(name="der", memory_size=40, replay_batch=6).build()
    state, _, params = run(strategy, alpha=0.4)[3]
    after, alone = strategy.batch(state, stream(9), context(alpha=0.4))
    behind = Batch(*(jnp.concatenate([leaf, leaf[:3]]) for leaf in stream(9)))
    shifted, chained = strategy.batch(state, behind, context(alpha=0.4))

    def gradient(state: Any, batch: Batch) -> Any:
        def value(params: Any) -> Any:
            return strategy.penalty(state, params, forward(params, scale(batch.images))[0], batch, context(alpha=0.4))

        return jax.grad(value)(params)

    assert chained.labels.shape[0] == alone.labels.shape[0] + 3
    assert_close(gradient(shifted, chained), gradient(after, alone), 1e-6)
