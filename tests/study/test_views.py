"""What selections see of a task is what the network computes."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clray.core.program import Pools, Spec
from clray.models.cnn import CNN
from clray.models.mlp import MLP
from clray.optimizers.sgd import SGD
from clray.strategies.finetune import Finetune
from clray.study import gradients, memory
from clray.study.memory import view_task
from clray.types import Array, Params


@pytest.mark.parametrize("model", [MLP(name="mlp", hidden=(7, 5)), CNN(name="cnn", channels=(2, 3, 2), hidden=4)])
def test_outputs_and_gradients_are_those_of_the_network(model: MLP | CNN, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BLOCK", 8)
    monkeypatch.setattr(gradients, "BLOCK", 8)
    shape = (8, 8, 1) if model.takes_images else (64,)
    spec = Spec(model, SGD(name="sgd"), (Finetune(name="finetune"),), shape, "uint8", 1 / 255, 2, 2, 2, 21, 7, 3, 3, 0, False)
    params, _ = spec.pure_model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (21, *shape)).astype(np.uint8), rng.integers(0, 2, 21)
    pools = Pools(np.zeros((1, 1, 1), np.uint8), np.float32(0.25), np.float32(2.0))
    view = view_task(spec, params, pools, images, labels, np.arange(21))
    scaled = (images / np.float32(255) - np.float32(0.25)) / np.float32(2.0)
    logits, hidden, _ = spec.pure_model.apply(params, {}, jnp.asarray(scaled), train=False, key=None)
    assert np.allclose(view.pixels(), scaled.reshape(21, -1), atol=1e-6)
    assert np.allclose(view.hidden(), hidden, atol=1e-5)
    assert np.allclose(view.probabilities(), jax.nn.softmax(logits), atol=1e-5)

    def loss(params: Params, image: Array, label: Array) -> Array:
        out = spec.pure_model.apply(params, {}, image[None], train=False, key=None)[0][0]
        return -jax.nn.log_softmax(out)[label]

    own = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))(params, jnp.asarray(scaled), jnp.asarray(labels))
    dense = [name for name in sorted(own, key=lambda name: (name.startswith("head"), name)) if own[name].ndim == 3]
    factors = view.factors()
    assert len(factors) == len(dense) == (3 if isinstance(model, MLP) else 2)
    for (x, d), name in zip(factors, dense, strict=True):
        assert np.allclose(np.einsum("ni,no->nio", x, d), own[name], atol=1e-5), name


def test_the_training_order_visits_every_sample_once(study: tuple[object, Path]) -> None:
    pack, _ = study
    for task in range(2):
        stream = pack.stream(task, 0)  # type: ignore[attr-defined]
        assert sorted(stream.tolist()) == list(range(pack.sizes.n_train))  # type: ignore[attr-defined]
