"""Similarities of many sets against a backward pass for each of them."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clray.core.program import Pools, Spec
from clray.models.mlp import MLP
from clray.optimizers.sgd import SGD
from clray.strategies.finetune import Finetune
from clray.study import gradients
from clray.study.gradients import (
    TILE,
    Loss,
    Rows,
    compare_sets,
    dense_factors,
    full_gradient,
    make_steps,
    pad_steps,
    record_all,
    similarity,
)
from clray.study.memory import _outputs
from clray.types import Array, Params

N_MAX, N = 2300, 2200
SPEC = Spec(
    MLP(name="mlp", hidden=(6,)), SGD(name="sgd"), (Finetune(name="finetune"),), (5,), "uint8", 1 / 255, 2, 2, 2, N, 32, 8, 8, 0, False
)
POOLS = Pools(np.zeros((1, 1, 5), np.uint8), np.float32(0.2), np.float32(0.5))


def rows() -> Rows:
    rng = np.random.default_rng(0)
    return Rows(rng.integers(0, 256, (N_MAX, 5)).astype(np.uint8), rng.integers(0, 2, N_MAX).astype(np.int32), np.int32(N))


@jax.jit
def mean_gradient(params: Params, factors: Array) -> Params:
    """Gradient of the mean loss, each row times its factor."""
    given = rows()
    images = (given.images.astype(np.float32) / 255 - 0.2) / 0.5

    def loss(params: Params) -> Array:
        logits = SPEC.pure_model.apply(params, {}, jnp.asarray(images), train=False, key=None)[0]
        return -jnp.vdot(jax.nn.log_softmax(logits)[jnp.arange(N_MAX), given.labels], factors)

    return jax.grad(loss)(params)


def plain_gradient(params: Params, chosen: np.ndarray) -> dict[str, np.ndarray]:
    factors = np.zeros(N_MAX, np.float32)
    factors[chosen] = 1.0 / len(chosen)
    return jax.device_get(mean_gradient(params, factors))


def chains() -> list[list[np.ndarray]]:
    """One that grows, one that does not, and one of a single set."""
    rng = np.random.default_rng(1)
    order = rng.permutation(N)
    return [
        [order[:1], order[:40], order[: TILE + 200]],
        [rng.permutation(N)[:3], rng.permutation(N)[: TILE + 1], rng.permutation(N)[: 2 * TILE]],
        [np.arange(N)],
    ]


@pytest.mark.parametrize("stored", [True, False])
def test_similarities_equal_those_of_a_backward_pass_a_set(stored: bool) -> None:
    params, _ = SPEC.pure_model.init(jax.random.key(0))
    loss = Loss(SPEC, stored)
    recorded = record_all(loss, params, POOLS, rows()) if stored else None
    everything = full_gradient(loss, params, POOLS, rows())
    expected_everything = plain_gradient(params, np.arange(N))
    for name, leaf in expected_everything.items():
        assert np.allclose(everything[name], leaf, atol=1e-6), name
    sets = [chosen for chain in chains() for chosen in chain]
    steps = make_steps(chains())
    assert steps.counts.tolist() == [1, 39, TILE + 160, 3, TILE + 1, 2 * TILE, N]
    compared = compare_sets(loss, params, POOLS, rows(), recorded, everything, pad_steps(steps, len(steps.rows) + 5, len(sets) + 2))
    compared = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(sets)], compared)
    names = loss.taps.names
    norms = np.array([np.sum(np.square(expected_everything[name])) for name in names])
    sizes = np.array([params[name].size for name in names])
    for metric in ("cosine", "mse", "norm_ratio"):
        arrays, whole = similarity(compared, norms, sizes, metric)
        for at, chosen in enumerate(sets):
            own = plain_gradient(params, chosen)
            pairs = [(np.ravel(own[name]), np.ravel(expected_everything[name])) for name in names]
            pairs.append((np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])))
            for got, (a, b) in zip([*arrays[at], whole[at]], pairs, strict=True):
                want = {
                    "cosine": a @ b / np.linalg.norm(a) / np.linalg.norm(b),
                    "mse": np.mean((a - b) ** 2),
                    "norm_ratio": np.linalg.norm(a) / np.linalg.norm(b),
                }[metric]
                assert got == pytest.approx(want, rel=2e-4, abs=1e-7), (metric, len(chosen))


PRECISIONS = {
    "float32": "precision = [HIGHEST, HIGHEST]",
    "tf32": "precision = [HIGH, HIGH]",
    "bfloat16": "algorithm = <lhs_precision_type = bf16, rhs_precision_type = bf16, accumulation_type = f32",
}


@pytest.mark.parametrize(("precision", "expected"), PRECISIONS.items())
@pytest.mark.parametrize("hidden", [(6,), (6, 200)])
def test_products_are_as_precise_as_in_training(precision: str, expected: str, hidden: tuple[int, ...]) -> None:
    """What an accelerator computes float32 products with, from the programs: a CPU would not show it."""
    spec = replace(SPEC, model=MLP(name="mlp", hidden=hidden), precision=precision)
    params, _ = spec.pure_model.init(jax.random.key(0))
    given, loss = rows(), Loss(spec, stored=True)
    gradients._taps.cache_clear()
    assert loss.taps.meetings  # a study walks through the network before it traces a program
    recorded = jax.eval_shape(lambda: record_all(loss, params, POOLS, given))
    images, labels = given.images, given.labels
    programs = {
        "record": jax.jit(lambda: record_all(loss, params, POOLS, given)),
        "factors": jax.jit(lambda: dense_factors(loss, params, POOLS, images, labels)),
        "everything": jax.jit(lambda: full_gradient(loss, params, POOLS, given)),
        "outputs": jax.jit(lambda: _outputs(spec, params, POOLS, images)),
        "sets": jax.jit(lambda kept: compare_sets(loss, params, POOLS, given, kept, params, make_steps(chains()))),
        "sets, nothing stored": jax.jit(lambda: compare_sets(loss, params, POOLS, given, None, params, make_steps(chains()))),
    }
    for name, program in programs.items():
        text = program.lower(*([recorded] if name == "sets" else [])).as_text()
        products = re.findall(r"stablehlo.dot_general.*", text)
        assert products, name
        assert all(expected in line for line in products), (name, products)


def test_everything_has_cosine_one() -> None:
    params, _ = SPEC.pure_model.init(jax.random.key(1))
    loss = Loss(SPEC, stored=True)
    everything = full_gradient(loss, params, POOLS, rows())
    compared = compare_sets(loss, params, POOLS, rows(), record_all(loss, params, POOLS, rows()), everything, make_steps([[np.arange(N)]]))
    norms = np.array([np.sum(np.square(everything[name])) for name in loss.taps.names])
    cosine, whole = similarity(compared, norms, np.ones(len(norms)), "cosine")
    assert np.abs(cosine - 1.0).max() < 1e-5
    assert abs(whole[0] - 1.0) < 1e-5
