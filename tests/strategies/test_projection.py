"""The projections of A-GEM and GEM, against their formulas and a solver of quadratic programs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from clray.strategies.agem import AGEM, project
from clray.strategies.base import TaskData
from clray.strategies.cone import multipliers
from clray.strategies.gem import GEM
from tests.strategies.by_hand import (
    SIZES,
    assert_close,
    context,
    in_torch,
    random_data,
    random_params,
    torch_gradient,
    torch_logits,
    vector,
)

DIMENSIONS = 60


def nearest(gradients: np.ndarray, gradient: np.ndarray, margin: float) -> np.ndarray:
    """GEM's dual as non-negative least squares in v - margin: min ||G' v + g|| with v >= margin, in double precision."""
    above, _ = nnls(gradients.T, -(gradient + margin * gradients.sum(axis=0)))
    return gradient + (above + margin) @ gradients


def problem(n_tasks: int, alike: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of earlier tasks with a common part and sizes that differ by orders of magnitude, and one that is against some."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=DIMENSIONS)
    gradients = np.sqrt(1 - alike) * rng.normal(size=(n_tasks, DIMENSIONS)) + np.sqrt(alike) * common
    gradient = rng.normal(size=DIMENSIONS) - rng.choice([0.0, 0.5]) * common
    return (gradients * np.exp(2 * rng.normal(size=(n_tasks, 1)))).astype(np.float32), gradient.astype(np.float32)


@pytest.mark.parametrize("n_tasks", [1, 2, 5, 12, 30])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_gem_finds_the_nearest_gradient_of_the_cone(n_tasks: int, margin: float) -> None:
    problems = [problem(n_tasks, alike, seed) for alike in (0.0, 0.5, 0.9, 0.99) for seed in range(25)]
    all_rows, all_gradients = (np.stack(parts) for parts in zip(*problems, strict=True))
    solve = jax.jit(jax.vmap(lambda rows, gradient: multipliers(rows @ rows.T, rows @ gradient, jnp.float32(margin))))
    found = np.asarray(solve(all_rows, all_gradients), np.float64)
    n_changed = 0
    for rows, gradient, v in zip(all_rows.astype(np.float64), all_gradients.astype(np.float64), found, strict=True):
        x, expected = gradient + v @ rows, nearest(rows, gradient, margin)
        # The ridge of 1e-5 that keeps parallel gradients apart is what is left.
        assert np.linalg.norm(x - expected) <= 3e-4 * np.linalg.norm(expected)
        assert (v >= margin * (1 - 1e-5)).all()
        assert (rows @ x >= -1e-4 * np.linalg.norm(rows, axis=1) * np.linalg.norm(x)).all()
        n_changed += (v > margin * (1 + 1e-5)).any()
    assert n_changed > 10, "hardly anything was to be projected"


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_gem_agrees_with_a_solver_of_quadratic_programs_on_the_program_of_the_paper(margin: float) -> None:
    """Equation 11: min 1/2 v' G G' v + g' G' v with v >= margin."""
    quadprog = pytest.importorskip("quadprog")
    solve = jax.jit(lambda rows, gradient: multipliers(rows @ rows.T, rows @ gradient, jnp.float32(margin)))
    for seed in range(20):
        rows, gradient = problem(4, 0.5, seed)
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)  # they differ by orders of magnitude, which quadprog does not bear
        units = rows.astype(np.float64) / norms[:, None]
        expected = quadprog.solve_qp(units @ units.T, -(units @ gradient), np.eye(4), margin * norms)[0] / norms
        found = np.asarray(solve(rows, gradient), np.float64)
        x, wanted = found @ rows + gradient, expected @ rows + gradient
        assert np.linalg.norm(x - wanted) <= 3e-4 * np.linalg.norm(wanted)


def test_gem_takes_the_same_gradient_twice_and_tasks_that_are_not_there() -> None:
    rows, gradient = problem(2, 0.0, 1)
    gradient = gradient - rows[0] / np.linalg.norm(rows[0]) * 3
    doubled = np.concatenate([rows[:1], rows, np.zeros((3, DIMENSIONS), np.float32)])
    v = np.asarray(multipliers(doubled @ doubled.T, doubled @ gradient, jnp.float32(0.0)), np.float64)
    assert not v[3:].any()
    expected = nearest(rows.astype(np.float64), gradient.astype(np.float64), 0.0)
    np.testing.assert_allclose(gradient + v @ doubled, expected, atol=1e-3)


def test_agem_takes_out_what_is_against_the_reference() -> None:
    gradient, reference = random_params(1), random_params(2)
    g, r = vector(gradient), vector(reference)
    sign = -1.0 if g @ r > 0 else 1.0
    against = {name: sign * leaf for name, leaf in reference.items()}
    found = vector(project(gradient, against, jnp.bool_(True)))
    np.testing.assert_allclose(found, g - (g @ r) / (r @ r) * r, rtol=1e-5, atol=1e-6)
    assert abs(found @ r) < 1e-4
    agreeing = {name: -leaf for name, leaf in against.items()}
    assert_close(project(gradient, agreeing, jnp.bool_(True)), gradient, 0.0)
    assert_close(project(gradient, against, jnp.bool_(False)), gradient, 0.0)
    assert_close(project(gradient, {name: 0.0 * leaf for name, leaf in reference.items()}, jnp.bool_(True)), gradient, 0.0)


def one_sample(task: int) -> TaskData:
    """A task that consists of copies of one sample: whatever is drawn from its memory is known."""
    data = random_data(task, n=1)
    return TaskData(jnp.repeat(data.images, SIZES.n_train, axis=0), jnp.repeat(data.labels, SIZES.n_train))


def slow_gradient(params: Any, data: TaskData) -> np.ndarray:
    """Of the mean cross-entropy."""
    import torch

    leaves = in_torch(params)
    labels = torch.tensor(np.asarray(data.labels, np.int64))
    return vector(torch_gradient(torch.nn.functional.cross_entropy(torch_logits(leaves, data.images), labels), leaves))


def remembered(strategy: Any, tasks: list[TaskData]) -> Any:
    params = random_params(0)
    state = strategy.init(params, SIZES)
    for task, data in enumerate(tasks):
        state = strategy.end_task(state, params, data, context(task, seed=task))
    return state


def test_agem_refers_to_the_tasks_that_are_over() -> None:
    strategy, params = AGEM(name="agem", memory_size=7).build(), random_params(3)
    for n_over, seeds in ((1, (0,)), (2, (0, 0))):
        state = remembered(strategy, [one_sample(seed) for seed in seeds])
        reference = slow_gradient(params, one_sample(0))
        gradient = {name: -leaf for name, leaf in random_params(3).items()}
        g = vector(gradient)
        if g @ reference > 0:
            gradient, g = {name: -leaf for name, leaf in gradient.items()}, -g
        found = vector(strategy.gradient(state, gradient, params, None, context(n_over, seed=9)))
        np.testing.assert_allclose(found, g - (g @ reference) / (reference @ reference) * reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_gem_respects_every_earlier_task_and_first_task_is_plain(margin: float) -> None:
    strategy, params = GEM(name="gem", memory_size=12).build(), random_params(3)
    tasks = [random_data(task) for task in range(3)]
    state = remembered(strategy, tasks)
    hook = jax.jit(lambda gradient, task: strategy.gradient(state, gradient, params, None, context(margin=margin)._replace(task=task)))
    # A memory of the size of a task holds all of it, so the gradients of the memories are known.
    rows = np.stack([slow_gradient(params, data) for data in tasks])
    gradient = {name: leaf * 0.3 for name, leaf in random_params(4).items()}
    against = vector(gradient) - rows[0] - 2 * rows[1]
    sizes = np.cumsum([gradient[name].size for name in sorted(gradient)])[:-1]
    parts = np.split(against.astype(np.float32), sizes)
    pushed = {name: jnp.asarray(part).reshape(gradient[name].shape) for name, part in zip(sorted(gradient), parts, strict=True)}
    assert (rows[:2] @ against < 0).all()
    for n_over in (1, 2):
        found = vector(hook(pushed, jnp.int32(n_over)))
        np.testing.assert_allclose(found, nearest(rows[:n_over], against, margin), rtol=1e-3, atol=1e-3)
    assert_close(hook(pushed, jnp.int32(0)), pushed, 0.0)


def test_gem_leaves_a_gradient_that_hurts_nobody() -> None:
    strategy, params = GEM(name="gem", memory_size=12).build(), random_params(3)
    state = remembered(strategy, [random_data(0)])
    helpful = jax.grad(
        lambda params: context().losses(context().forward(params, context().scale(random_data(0).images))[0], random_data(0)).mean()
    )(params)
    assert_close(strategy.gradient(state, helpful, params, None, context(1, margin=0.5)), helpful, 0.0)


@pytest.mark.parametrize(("options", "n_kept"), [(AGEM(name="agem", memory_size=15), 5), (GEM(name="gem", memory_size=7), 7)])
def test_memory_holds_different_samples_of_each_task(options: Any, n_kept: int) -> None:
    tasks = [random_data(task) for task in range(2)]
    state = remembered(options.build(), tasks)
    for task, data in enumerate(tasks):
        kept = {image.tobytes() for image in np.asarray(state.images[task])}
        assert len(kept) == n_kept
        assert kept <= {image.tobytes() for image in np.asarray(data.images)}
