"""The loss of learning without forgetting, and its gradient, against PyTorch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from clray.core.step import row_losses
from clray.strategies.lwf import LwF
from clray.types import Batch
from tests.strategies.by_hand import (
    SIZES,
    assert_close,
    context,
    forward,
    in_torch,
    random_data,
    random_params,
    scale,
    torch_gradient,
    torch_logits,
)

TEACHER, STUDENT, DATA = random_params(0), random_params(1), random_data(5, n=SIZES.batch_size)
BATCH = Batch(scale(DATA.images), DATA.labels, jnp.ones(SIZES.batch_size))


def after_first_task(options: LwF) -> Any:
    strategy = options.build()
    return strategy, strategy.boundary(strategy.init(STUDENT, SIZES), None, TEACHER, context())


def loss_of(strategy: Any, state: Any, task: int, batch: Batch = BATCH, **hyper: float) -> tuple[float, Any]:
    """Cross-entropy and penalty, as the core adds them."""

    def loss(params: Any) -> Any:
        logits = forward(params, batch.images)[0]
        mean = jnp.sum(row_losses(logits, batch) * batch.weights) / jnp.sum(batch.weights)
        return mean + strategy.penalty(state, params, logits, batch, context(task, **hyper))

    value, gradient = jax.value_and_grad(loss)(STUDENT)
    return float(value), gradient


def slow_loss(share: float, temperature: float) -> tuple[float, dict[str, np.ndarray]]:
    student = in_torch(STUDENT)
    logits = torch_logits(student, DATA.images)
    current = torch.nn.functional.cross_entropy(logits, torch.tensor(np.asarray(DATA.labels, np.int64)))
    taught = torch_logits(in_torch(TEACHER), DATA.images).detach()
    # Cross-entropy with soft targets, from its divergence and the entropy of the targets.
    soft = torch.softmax(taught / temperature, dim=1)
    divergence = torch.nn.functional.kl_div(torch.log_softmax(logits / temperature, dim=1), soft, reduction="batchmean")
    distilled = temperature**2 * (divergence - (soft * soft.log()).sum(dim=1).mean())
    loss = (1 - share) * current + share * distilled
    return loss.item(), torch_gradient(loss, student)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_loss_and_gradient(alpha: float, temperature: float) -> None:
    strategy, state = after_first_task(LwF(name="lwf"))
    found, expected = loss_of(strategy, state, 1, alpha=alpha, temperature=temperature), slow_loss(alpha, temperature)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert_close(found[1], expected[1])


@pytest.mark.parametrize("task", [1, 2, 4])
def test_by_task_every_task_so_far_counts_the_same(task: int) -> None:
    strategy, state = after_first_task(LwF(name="lwf", weighting="by_task"))
    found, expected = loss_of(strategy, state, task, temperature=2.0), slow_loss(task / (task + 1), 2.0)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert_close(found[1], expected[1])


def test_first_task_is_plain_training_and_replayed_rows_are_not_distilled() -> None:
    strategy = LwF(name="lwf").build()
    fresh = strategy.init(STUDENT, SIZES)
    assert_close(loss_of(strategy, fresh, 0, alpha=0.5, temperature=2.0)[1], slow_loss(0.0, 2.0)[1])
    state = after_first_task(LwF(name="lwf"))[1]
    more = Batch(*(jnp.concatenate([leaf, leaf[:2]]) for leaf in BATCH))._replace(weights=jnp.array([1.0] * 4 + [0.0] * 2))
    assert_close(loss_of(strategy, state, 1, more, alpha=0.5, temperature=2.0)[1], slow_loss(0.5, 2.0)[1])
