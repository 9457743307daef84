"""Learning rates over batches, against the formulas."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clray.core.step import schedule_factor
from clray.options import Schedule

TOTAL = 40


def factors(total: int = TOTAL, **options: object) -> np.ndarray:
    """(total,) factor of every batch, compiled as in training."""
    schedule = Schedule.model_validate(options)
    return np.asarray(jax.jit(jax.vmap(lambda done: schedule_factor(schedule, done, total) * jnp.float32(1.0)))(jnp.arange(total)))


def test_constant_is_one() -> None:
    np.testing.assert_array_equal(factors(name="constant", final=0.5), np.ones(TOTAL))


def test_cosine_is_half_a_cosine_from_one_to_final() -> None:
    expected = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * done / TOTAL)) for done in range(TOTAL)]
    np.testing.assert_allclose(factors(name="cosine", final=0.2), expected, rtol=1e-6)


def test_warmup_rises_in_equal_steps_to_one_and_then_falls_along_half_a_cosine() -> None:
    found = factors(name="warmup_cosine", warmup_fraction=0.25, final=0.0)
    np.testing.assert_allclose(found[:10], np.arange(1, 11) / 10, rtol=1e-6)
    falling = [0.5 * (1 + math.cos(math.pi * (done - 10) / 30)) for done in range(10, TOTAL)]
    np.testing.assert_allclose(found[10:], falling, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("total", [1, 3, 40, 400])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.5, 0.95])
def test_no_batch_has_a_rate_of_zero_or_above_the_one_that_is_given(total: int, warmup: float) -> None:
    found = factors(total, name="warmup_cosine", warmup_fraction=warmup)
    assert found.min() > 0.0
    assert found.max() <= 1.0


def test_warmup_of_nothing_is_cosine() -> None:
    np.testing.assert_array_equal(factors(name="warmup_cosine", warmup_fraction=0.0, final=0.1), factors(name="cosine", final=0.1))
