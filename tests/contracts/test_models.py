"""What every registered model keeps to, so that the core can vmap it over lanes, scan it and evaluate it class by class."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clray import plugins
from clray.models import TABLE
from clray.models.pure import PureModel, pure_model
from clray.options import ModelOptions

N_OUTPUTS = 3
IMAGE = (8, 8, 2)
ROUNDING = 2e-6
"""A few float32 roundings of numbers of order 1: other batch sizes and lanes sum products in another order."""


SMALL: dict[str, dict[str, Any]] = {"mlp": {"hidden": (24, 16)}, "cnn": {"channels": (8, 12, 16), "hidden": 20}}
"""What a model's defaults would make slow here. A model that is not listed has its defaults."""


def options_of(name: str, **options: Any) -> ModelOptions:
    found = plugins.options_class("models", name).model_validate({"name": name, **SMALL.get(name, {}), **options})
    assert isinstance(found, ModelOptions)
    return found


def input_shape(options: ModelOptions) -> tuple[int, ...]:
    return IMAGE if options.takes_images else (math.prod(IMAGE),)


def model_of(name: str, **options: Any) -> tuple[PureModel, tuple[int, ...]]:
    chosen = options_of(name, **options)
    return pure_model(chosen, input_shape(chosen), N_OUTPUTS), input_shape(chosen)


def batch(shape: tuple[int, ...], n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).random((n, *shape)).astype(np.float32)


@functools.cache
def initialise(name: str, **options: Any) -> Any:
    """The compiled ``init`` of a model."""
    return jax.jit(model_of(name, **options)[0].init)


def fresh(name: str, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """Parameters and state. The generator is not the default one, which takes seconds to compile for a few layers."""
    return initialise(name, **options)(jax.random.key(seed, impl="unsafe_rbg"))


def facts(tree: Any) -> Any:
    """Structure, shapes, dtypes and weak types."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


@pytest.fixture(params=list(TABLE))
def name(request: pytest.FixtureRequest) -> str:
    """Every registered model in turn."""
    return request.param


def test_parameters_are_a_flat_dict_of_strong_float32(name: str) -> None:
    model, _ = model_of(name)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    assert params
    for path, leaf in {**params, **state}.items():
        assert (leaf.dtype, leaf.weak_type) == (jnp.float32, False), path


def test_lanes_can_be_initialised_together(name: str) -> None:
    model, _ = model_of(name)
    alone = jax.eval_shape(model.init, jax.random.key(0))
    packed = jax.eval_shape(jax.vmap(model.init), jax.random.split(jax.random.key(0), 3))
    assert jax.tree.map(lambda leaf: (3, *leaf.shape), alone) == jax.tree.map(lambda leaf: leaf.shape, packed)


def test_model_returns_logits_and_hidden_and_keeps_its_state(name: str) -> None:
    model, shape = model_of(name)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    for train, key in ((True, jax.random.key(1)), (False, None)):
        logits, hidden, after = jax.eval_shape(
            lambda p, s, x, train=train, key=key: model.apply(p, s, x, train=train, key=key), params, state, batch(shape)
        )
        assert (logits.shape, logits.dtype) == ((4, N_OUTPUTS), jnp.float32)
        assert (hidden.shape, hidden.dtype) == ((4, model.hidden_size), jnp.float32)
        assert facts(after) == facts(state)


def test_hidden_is_what_enters_the_head(name: str) -> None:
    model, shape = model_of(name)
    params, state = fresh(name)
    logits, hidden, _ = model.apply(params, state, batch(shape), train=False, key=None)
    np.testing.assert_allclose(logits, hidden @ params["head.kernel"] + params["head.bias"], atol=ROUNDING)


def test_in_evaluation_a_sample_does_not_see_its_batch(name: str) -> None:
    model, shape = model_of(name)
    params, state = fresh(name)
    images = batch(shape)
    together = model.apply(params, state, images, train=False, key=None)[:2]
    alone = [model.apply(params, state, images[i : i + 1], train=False, key=None)[:2] for i in range(len(images))]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(whole, np.concatenate(parts), atol=ROUNDING)


def test_key_decides_the_initial_weights(name: str) -> None:
    first, again, other = (fresh(name, seed)[0] for seed in (0, 0, 1))
    assert all((first[path] == again[path]).all() for path in first)
    kernels = [path for path in first if path.endswith("kernel")]
    assert kernels
    assert all((first[path] != other[path]).any() for path in kernels)


def test_trained_in_a_scan_over_vmapped_lanes_it_equals_each_lane_in_a_loop(name: str) -> None:
    model, shape = model_of(name)
    images = np.stack([batch(shape), 1.0 - batch(shape)])  # (lanes, B, ...)

    def step(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        def loss(params: Any) -> tuple[Any, Any]:
            logits, _, after = model.apply(params, state, x, train=True, key=jax.random.key(3))
            return jnp.mean(logits**2), after

        gradient, after = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), after

    @jax.jit
    def packed(carry: Any, images: Any) -> Any:
        return jax.lax.scan(lambda c, _: (jax.vmap(step)(*c, images), None), carry, None, length=3)[0]

    lanes = [fresh(name, seed) for seed in (0, 1)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
    found = packed(together, images)
    one_step = jax.jit(step)
    for lane, alone in enumerate(lanes):
        for _ in range(3):
            alone = one_step(*alone, images[lane])
        jax.tree.map(lambda a, b, lane=lane: np.testing.assert_allclose(a[lane], b, atol=ROUNDING), found, alone)
    packed(found, images + 1.0)
    assert (packed._cache_size(), one_step._cache_size()) == (1, 1)


def layers(params: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Layer to kernel, bias and inputs of a unit."""
    kernels = {path.removesuffix(".kernel"): np.asarray(leaf) for path, leaf in params.items() if path.endswith(".kernel")}
    return {path: (leaf, np.asarray(params[f"{path}.bias"]), math.prod(leaf.shape[:-1])) for path, leaf in kernels.items()}


def test_pytorch_convention_is_uniform_within_one_over_root_fan_in(name: str) -> None:
    params, _ = fresh(name, init="pytorch")
    for path, (kernel, bias, fan_in) in layers(params).items():
        bound = 1.0 / math.sqrt(fan_in)
        assert np.abs(kernel).max() <= bound, path
        assert np.abs(bias).max() <= bound, path
        assert np.abs(bias).min() > 0.0, path
        # Of n uniform numbers the mean deviates by bound / sqrt(3 n), the deviation by about bound / sqrt(5 n) / 2.
        assert abs(kernel.mean()) < 5 * bound / math.sqrt(3 * kernel.size), path
        assert abs(kernel.std() - bound / math.sqrt(3)) < 5 * bound / math.sqrt(20 * kernel.size), path


def test_flax_convention_is_lecun_normal_with_zero_bias(name: str) -> None:
    params, _ = fresh(name)
    for path, (kernel, bias, fan_in) in layers(params).items():
        deviation = 1.0 / math.sqrt(fan_in)
        assert (bias == 0.0).all(), path
        assert abs(kernel.std() - deviation) < 5 * deviation / math.sqrt(2 * kernel.size), path
        assert np.abs(kernel).max() < 2.3 * deviation, path  # truncated at two deviations of the normal before its cut


def test_same_numbers_as_torch_layers_draw() -> None:
    """The claim behind ``init: pytorch``: bounds of torch.nn.Linear and Conv2d, kernel and bias, are 1 / sqrt(fan in)."""
    import torch

    for layer, fan_in in ((torch.nn.Linear(50, 400), 50), (torch.nn.Conv2d(6, 64, 3), 54)):
        for values in (layer.weight, layer.bias):
            largest = values.detach().abs().max().item() * math.sqrt(fan_in)
            assert 0.9 < largest <= 1.0
