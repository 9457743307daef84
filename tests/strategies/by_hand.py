"""A tiny network as a function of flat parameters, in JAX for the hooks and in PyTorch (double precision) for the references."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from clray.core.step import row_losses
from clray.strategies.base import Context, StaticSizes, TaskData
from clray.types import Params

N_INPUTS, N_HIDDEN, N_OUTPUTS = 5, 4, 3
SIZES = StaticSizes(n_tasks=3, classes_per_task=3, n_outputs=N_OUTPUTS, n_train=12, batch_size=4, input_shape=(N_INPUTS,), dtype="uint8")
TOLERANCE = 2e-5
"""Single precision against double on numbers of order 1, a few hundred operations deep."""


def forward(params: Params, images: Any) -> tuple[Any, Any]:
    """Logits (B, O) and hidden (B, H)."""
    hidden = jnp.tanh(images @ params["hidden.kernel"] + params["hidden.bias"])
    return hidden @ params["head.kernel"] + params["head.bias"], hidden


def scale(images: Any) -> Any:
    """uint8 to [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def context(task: int = 0, seed: int = 0, batch: int = 0, sizes: StaticSizes = SIZES, **hyper: float) -> Context:
    """What a hook gets."""
    values = {name: jnp.float32(value) for name, value in hyper.items()}
    return Context(values, jnp.int32(task), jnp.int32(batch), jax.random.key(seed), forward, scale, row_losses, sizes)


def random_params(seed: int) -> Params:
    rng = np.random.default_rng(seed)
    shapes = {
        "hidden.kernel": (N_INPUTS, N_HIDDEN),
        "hidden.bias": (N_HIDDEN,),
        "head.kernel": (N_HIDDEN, N_OUTPUTS),
        "head.bias": (N_OUTPUTS,),
    }
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def random_data(seed: int, n: int = SIZES.n_train) -> TaskData:
    rng = np.random.default_rng(100 + seed)
    images = rng.integers(0, 256, (n, N_INPUTS)).astype(np.uint8)
    return TaskData(jnp.asarray(images), jnp.asarray(rng.integers(0, N_OUTPUTS, n), jnp.int32))


def in_torch(params: Params) -> dict[str, torch.Tensor]:
    """Leaves that want gradients."""
    return {name: torch.tensor(np.asarray(leaf, np.float64), requires_grad=True) for name, leaf in params.items()}


def torch_logits(params: dict[str, torch.Tensor], images: Any) -> torch.Tensor:
    """The same network on unscaled images."""
    x = torch.tensor(np.asarray(images, np.float64) / 255.0)
    hidden = torch.tanh(x @ params["hidden.kernel"] + params["hidden.bias"])
    return hidden @ params["head.kernel"] + params["head.bias"]


def torch_gradient(value: torch.Tensor, params: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    found = torch.autograd.grad(value, list(params.values()), retain_graph=True)
    return {name: leaf.numpy() for name, leaf in zip(params, found, strict=True)}


def vector(params: Any) -> np.ndarray:
    """All parameters in one float64 vector."""
    return np.concatenate([np.asarray(params[name], np.float64).ravel() for name in sorted(params)])


def assert_close(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """Parameter by parameter, relative to the largest number of each."""
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        value = np.asarray(value)
        np.testing.assert_allclose(
            np.asarray(found[name]), value, rtol=tolerance, atol=tolerance * max(np.abs(value).max(), 1e-6), err_msg=name
        )
