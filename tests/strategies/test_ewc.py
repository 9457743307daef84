"""The penalties of EWC, MAS and L2 against sums over tasks written from the papers, in double precision."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clray.strategies import ewc, l2, mas
from clray.strategies.base import Strategy
from clray.strategies.fisher import fisher_diagonal
from tests.strategies.by_hand import SIZES, assert_close, context, random_data, random_params, vector

TASKS = range(3)
AFTER = [random_params(task) for task in TASKS]
"""The weights after each task."""
HERE = random_params(10)
"""Where the penalty is asked for."""


def learnt(strategy: Strategy, **hyper: float) -> Any:
    """The state after three tasks."""

    @jax.jit
    def learn(state: Any, after: Any, data: Any, task: Any) -> Any:
        state = strategy.boundary(state, state, after, context(task, **hyper))
        return strategy.end_task(state, after, data, context(task, **hyper))

    state = strategy.init(AFTER[0], SIZES)
    for task in TASKS:
        state = learn(state, AFTER[task], random_data(task), task)
    return state


def penalty_of(strategy: Strategy, state: Any, **hyper: float) -> tuple[float, np.ndarray]:
    """Value and gradient of the penalty at HERE."""

    def value(params: Any) -> Any:
        return strategy.penalty(state, params, None, None, context(3, **hyper))

    found, gradient = jax.value_and_grad(value)(HERE)
    return float(found), vector(gradient)


@functools.cache
def fisher_of(task: int) -> np.ndarray:
    return vector(jax.jit(exact_fisher)(AFTER[task], random_data(task)))


def exact_fisher(params: Any, data: Any) -> Any:
    """What ``test_fisher.py`` compares with a loop."""
    return fisher_diagonal(params, data, "exact", None, context())


def assert_penalty(found: tuple[float, np.ndarray], value: float, gradient: np.ndarray) -> None:
    np.testing.assert_allclose(found[0], value, rtol=1e-5)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())


def test_separate_ewc_is_a_term_for_every_task() -> None:
    strategy = ewc.EWC(name="ewc").build()
    here, value, gradient = vector(HERE), 0.0, np.zeros(len(vector(HERE)))
    for task in TASKS:
        away = here - vector(AFTER[task])
        value += 0.5 * 7.0 * (fisher_of(task) * away**2).sum()
        gradient += 7.0 * fisher_of(task) * away
    assert_penalty(penalty_of(strategy, learnt(strategy), importance=7.0), value, gradient)


@pytest.mark.parametrize("gamma", [1.0, 0.6, 0.0])
def test_online_ewc_decays_older_tasks_and_stays_near_the_latest(gamma: float) -> None:
    strategy = ewc.EWC(name="ewc", mode="online").build()
    away = vector(HERE) - vector(AFTER[2])
    fisher = gamma**2 * fisher_of(0) + gamma * fisher_of(1) + fisher_of(2)
    found = penalty_of(strategy, learnt(strategy, gamma=gamma), importance=7.0, gamma=gamma)
    strength = 7.0 * gamma  # of the latest task too: eq. 9 of the paper
    assert_penalty(found, 0.5 * strength * (fisher * away**2).sum(), strength * fisher * away)


def test_parameters_without_importance_are_free() -> None:
    """A unit that is never active has a Fisher information of 0 in all tasks: no division by it."""
    found = ewc.add_term(ewc.init(HERE, SIZES), AFTER[0], {name: jnp.zeros_like(leaf) for name, leaf in HERE.items()})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert_close(found.anchor, HERE)


def test_mas_adds_importances_and_stays_near_the_latest_weights() -> None:
    strategy = mas.MAS(name="mas").build()
    sensitivity = jax.jit(lambda params, data: mas.sensitivity(params, data, None, context()))
    omega = sum(vector(sensitivity(AFTER[task], random_data(task))) for task in TASKS)
    away = vector(HERE) - vector(AFTER[2])
    assert_penalty(penalty_of(strategy, learnt(strategy), importance=3.0), 3.0 * (omega * away**2).sum(), 6.0 * omega * away)


def test_l2_stays_near_the_latest_weights() -> None:
    strategy = l2.L2(name="l2").build()
    away = vector(HERE) - vector(AFTER[2])
    assert_penalty(penalty_of(strategy, learnt(strategy), importance=3.0), 1.5 * (away**2).sum(), 3.0 * away)


@pytest.mark.parametrize("options", [ewc.EWC(name="ewc"), ewc.EWC(name="ewc", mode="online"), mas.MAS(name="mas"), l2.L2(name="l2")])
def test_there_is_no_penalty_in_the_first_task(options: Any) -> None:
    strategy = options.build()
    found, gradient = penalty_of(strategy, strategy.init(AFTER[0], SIZES), importance=5.0, gamma=1.0)
    assert found == 0.0
    assert not gradient.any()
