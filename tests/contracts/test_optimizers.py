"""Every registered optimizer: built from traced hyperparameters inside a vmapped scan, it does what torch.optim does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from clray import plugins
from clray.optimizers import TABLE
from clray.options import OptimizerOptions

N_STEPS = 20
TOLERANCE = 1e-5
"""torch computes in double precision here; 20 float32 steps on numbers of order 1 are off by less than 2e-6."""

Torch = Callable[[Any], torch.optim.Optimizer]

AS_IN_TORCH: dict[str, list[tuple[dict[str, Any], Torch]]] = {
    "sgd": [
        ({"learning_rate": 0.05}, lambda p: torch.optim.SGD(p, 0.05)),
        ({"learning_rate": 0.05, "weight_decay": 0.1}, lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.1)),
        ({"learning_rate": 0.05, "momentum": 0.9}, lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)),
        (
            {"learning_rate": 0.05, "momentum": 0.8, "weight_decay": 0.1},
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.8, weight_decay=0.1),
        ),
        (
            {"learning_rate": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
        ),
    ],
    "adam": [
        ({}, lambda p: torch.optim.Adam(p, 1e-3)),
        (
            {"learning_rate": 0.02, "b1": 0.8, "b2": 0.95, "eps": 1e-3, "weight_decay": 0.1},
            lambda p: torch.optim.Adam(p, 0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
        ),
    ],
    "adamw": [
        ({}, lambda p: torch.optim.AdamW(p, 1e-3)),
        (
            {"learning_rate": 0.02, "b1": 0.8, "b2": 0.95, "eps": 1e-3, "weight_decay": 0.3},
            lambda p: torch.optim.AdamW(p, 0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3),
        ),
    ],
    "rmsprop": [
        ({}, lambda p: torch.optim.RMSprop(p, 1e-2)),
        (
            {"learning_rate": 0.005, "decay": 0.9, "eps": 1e-2, "momentum": 0.7, "weight_decay": 0.1},
            lambda p: torch.optim.RMSprop(p, 0.005, alpha=0.9, eps=1e-2, momentum=0.7, weight_decay=0.1),
        ),
    ],
}

CASES = [(name, options, make) for name, cases in AS_IN_TORCH.items() for options, make in cases]

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4))
START = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}


def loss_of(params: Any, x: Any) -> Any:
    """A loss whose gradient changes from step to step; the same text for both libraries."""
    return (((x @ params["kernel"] + params["bias"]) ** 2 - 1.0) ** 2).mean()


def options_of(name: str, **options: Any) -> OptimizerOptions:
    found = plugins.options_class("optimizers", name).model_validate({"name": name, **options})
    assert isinstance(found, OptimizerOptions)
    return found


def start() -> dict[str, Any]:
    return {name: jnp.asarray(value, jnp.float32) for name, value in START.items()}


def hyper_of(options: OptimizerOptions) -> dict[str, Any]:
    return {name: np.float32(value) for name, value in options.traced().items()}


def build(options: OptimizerOptions, hyper: dict[str, Any]) -> optax.GradientTransformation:
    """As the core does: from the structure alone, with the numbers traced."""
    return options.structure().build(hyper, hyper["learning_rate"])


def one_step(options: OptimizerOptions, hyper: dict[str, Any], params: Any, state: Any) -> tuple[Any, Any]:
    gradient = jax.grad(loss_of)(params, jnp.asarray(X, jnp.float32))
    updates, state = build(options, hyper).update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def train(options: OptimizerOptions, hyper: dict[str, Any]) -> Any:
    """(params, state) after 20 steps of one lane."""
    params = start()
    state = build(options, hyper).init(params)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        return one_step(options, hyper, *carry), None

    return jax.lax.scan(step, (params, state), None, length=N_STEPS)[0]


def test_every_optimizer_is_compared_with_torch() -> None:
    assert set(AS_IN_TORCH) == set(TABLE)


@pytest.mark.parametrize(("name", "options", "make"), CASES)
def test_twenty_steps_are_those_of_torch(name: str, options: dict[str, Any], make: Torch) -> None:
    chosen = options_of(name, **options)
    found, _ = jax.jit(lambda hyper: train(chosen, hyper))(hyper_of(chosen))
    expected = {key: torch.tensor(value, requires_grad=True) for key, value in START.items()}
    optimizer = make(expected.values())
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        loss_of(expected, torch.tensor(X)).backward()
        optimizer.step()
    for key, value in expected.items():
        moved = np.abs(value.detach().numpy() - START[key]).max()
        assert moved > 100 * TOLERANCE, "these steps are too small to compare anything"
        np.testing.assert_allclose(found[key], value.detach().numpy(), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", list(TABLE))
def test_lanes_with_other_hyperparameters_share_a_program_and_nothing_else(name: str) -> None:
    options, hyper = AS_IN_TORCH[name][-1][0], hyper_of(options_of(name, **AS_IN_TORCH[name][-1][0]))
    chosen = options_of(name, **options)
    packed = jax.jit(jax.vmap(lambda hyper: train(chosen, hyper)))
    wide = {key: np.array([1.0, 0.5, 0.75], np.float32) * value for key, value in hyper.items()}
    found = packed(wide)
    alone = jax.jit(lambda hyper: train(chosen, hyper))
    for lane in range(3):
        expected = alone({key: value[lane] for key, value in wide.items()})
        jax.tree.map(lambda a, b, lane=lane: np.testing.assert_allclose(a[lane], b, rtol=TOLERANCE, atol=TOLERANCE), found, expected)
    kernels = np.asarray(found[0]["kernel"])
    assert np.abs(kernels[0] - kernels[1]).max() > 100 * TOLERANCE
    assert (packed._cache_size(), alone._cache_size()) == (1, 1)


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, options, _ in CASES])
def test_state_keeps_structure_shapes_dtypes_and_weak_types(name: str, options: dict[str, Any]) -> None:
    chosen = options_of(name, **options)
    params = start()
    state = jax.eval_shape(lambda hyper: build(chosen, hyper).init(params), hyper_of(chosen))
    after = jax.eval_shape(lambda hyper, state: one_step(chosen, hyper, params, state), hyper_of(chosen), state)
    before = jax.eval_shape(lambda: (params, state))
    facts = [[(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)] for tree in (before, after)]
    assert facts[0] == facts[1]
    assert jax.tree.structure(before) == jax.tree.structure(after)


@pytest.mark.parametrize(("name", "key"), [("sgd", "momentum"), ("sgd", "weight_decay"), ("adam", "weight_decay"), ("rmsprop", "momentum")])
def test_what_is_absent_is_not_in_the_program_and_what_is_there_is_only_a_number(name: str, key: str) -> None:
    absent, some, more = (options_of(name, **{key: value}).structure() for value in (0.0, 0.5, 0.75))
    assert some == more
    assert hash(some) == hash(more)
    assert absent != some
