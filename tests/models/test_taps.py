"""Gradients put together from inputs and deltas are those of a backward pass, whatever the network is made of."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from clray.models.cnn import CNN
from clray.models.mlp import MLP
from clray.models.pure import pure_model
from clray.models.taps import Taps
from clray.types import Array, Params

Logits = Callable[[Params, Array], Array]


def of_model(options: MLP | CNN, shape: tuple[int, ...]) -> tuple[Logits, Params, tuple[int, ...]]:
    model = pure_model(options, shape, 2)
    params, _ = model.init(jax.random.key(0))
    return lambda p, image: model.apply(p, {}, image[None], train=False, key=None)[0][0], params, shape


def recurrent() -> tuple[Logits, Params, tuple[int, ...]]:
    """Scales, shifts, a weight used twice, a scan over the rows of the image."""
    keys = jax.random.split(jax.random.key(1), 4)
    params = {
        "in": jax.random.normal(keys[0], (5, 4)),
        "loop": 0.5 * jax.random.normal(keys[1], (4, 4)),
        "out": jax.random.normal(keys[2], (4, 2)),
        "scale": 1.0 + jax.random.normal(keys[3], (4,)),
    }

    def logits(p: Params, image: Array) -> Array:
        state, _ = jax.lax.scan(lambda h, row: (jnp.tanh(row @ p["in"] + h @ p["loop"]), None), jnp.zeros(4), image)
        return (jax.nn.gelu(state * p["scale"] - 0.1) @ p["loop"] * p["scale"]) @ p["out"]

    return logits, params, (3, 5)


def residual() -> tuple[Logits, Params, tuple[int, ...]]:
    """Products that are used beside the sum with their bias, and weights that something is taken from."""
    keys = jax.random.split(jax.random.key(2), 4)
    shapes = {"in": (5, 4), "bias": (4,), "from": (4,), "out": (4, 2)}
    params = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}

    @jax.jit
    def block(p: Params, image: Array) -> Array:
        product = image[None] @ p["in"]
        return p["from"] - (jnp.tanh(product + p["bias"]) + product)

    return lambda p, image: (block(p, image) @ p["out"])[0], params, (5,)


NETWORKS = {
    "mlp": lambda: of_model(MLP(name="mlp", hidden=(7, 5)), (6,)),
    "gelu": lambda: of_model(MLP(name="mlp", hidden=(7,), activation="gelu"), (6,)),
    "cnn": lambda: of_model(CNN(name="cnn", channels=(2, 3, 2), hidden=4), (8, 8, 1)),
    "recurrent": recurrent,
    "residual": residual,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_weighted_sums_of_gradients_equal_a_backward_pass(name: str) -> None:
    logits, params, shape = NETWORKS[name]()
    taps = Taps(logits, params, shape)
    images, labels = jax.random.normal(jax.random.key(2), (9, *shape)), jnp.arange(9) % 2
    factors = jnp.arange(9.0) - 2.0

    def loss(out: Array, label: Array) -> Array:
        return -jax.nn.log_softmax(out)[label]

    def together(params: Params) -> Params:
        recorded = taps.record(params, images, loss, labels)
        return taps.to_parameters(params, taps.gradients(recorded, taps.weights(params), factors))

    def plain(params: Params) -> Array:
        return jnp.vdot(factors, jax.vmap(lambda x, y: loss(logits(params, x), y))(images, labels))

    found, expected = jax.jit(together)(params), jax.jit(jax.grad(plain))(params)
    for key, gradient in expected.items():
        assert jnp.allclose(found[key], gradient, atol=1e-5 * float(jnp.abs(gradient).max()) + 1e-6), key


def test_a_layer_and_its_bias_share_a_delta() -> None:
    logits, params, shape = NETWORKS["mlp"]()
    taps = Taps(logits, params, shape)
    assert [meeting.delta for meeting in taps.meetings] == [0, 0, 1, 1, 2, 2]
    assert [meeting.needs_inputs for meeting in taps.meetings] == [True, False] * 3


def test_places_of_dense_networks_only() -> None:
    def places(logits: Logits, params: Params, shape: tuple[int, ...]) -> dict[str, int] | None:
        return Taps(logits, params, shape).dense_places(params)

    logits, params, shape = of_model(MLP(name="mlp", hidden=(4, 3)), (5,))
    found = places(logits, params, shape)
    assert found is not None
    assert sorted(found) == sorted(params)
    assert places(*of_model(CNN(name="cnn", channels=(2, 3, 2), hidden=4), (8, 8, 1))) is None
    assert places(*recurrent()) is None

    square = {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}
    assert places(lambda p, x: x[None] @ p["kernel"] + p["bias"], square, (3,)) is not None
    for other in (
        lambda p, x: (x[None] @ p["kernel"]) @ p["kernel"] + p["bias"],  # used twice
        lambda p, x: x[None] @ (2.0 * p["kernel"]) + p["bias"],  # not as it is
        lambda p, x: x[None] @ p["kernel"].T + p["bias"],
        lambda p, x: x[None] @ p["kernel"] * p["bias"],  # a scale is no bias
        lambda p, x: x[None] @ p["kernel"] + p["bias"][0],  # one number for several outputs
    ):
        assert places(other, square, (3,)) is None
