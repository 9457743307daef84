"""The diagonal of the Fisher information of a dense network: a product a layer against a gradient a sample.

    python -m benchmarks.fisher

MLP 784-400-400-2 on 12,000 random images, ``fisher: exact`` (two labels) and ``argmax``, one lane on one device.
"""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import interleave, report
from clray.models.mlp import MLP
from clray.models.pure import pure_model
from clray.options import ModelOptions
from clray.process import available_cpus, configure_jax
from clray.strategies import per_sample
from clray.strategies.base import Context, StaticSizes, TaskData
from clray.strategies.fisher import fisher_diagonal

N = 12_000


def compiled(kind: Any, by_sample: bool, options: ModelOptions) -> Any:
    """A function that computes the diagonal once and waits."""
    model = pure_model(options, (784,), 2)
    params, state = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    data = jax.device_put(TaskData(rng.integers(0, 256, (N, 784), np.uint8), rng.integers(0, 2, N).astype(np.int32)))  # type: ignore[arg-type]
    sizes = StaticSizes(5, 2, 2, N, 128, (784,), "uint8")

    @jax.jit
    def diagonal(params: Any, data: TaskData) -> Any:
        ctx = Context(
            hyper={}, task=jnp.int32(0), batch=jnp.int32(0), key=jax.random.key(0), sizes=sizes,
            forward=lambda p, x: model.apply(p, state, x, train=False, key=None)[:2],
            scale=lambda x: x.astype(jnp.float32) / 255.0, losses=lambda logits, batch: jnp.zeros(()),
        )  # fmt: skip
        return fisher_diagonal(params, data, kind, None, ctx)

    with mock.patch.object(per_sample, "_dense_places", return_value=(None, {})) if by_sample else contextlib.nullcontext():
        jax.block_until_ready(diagonal(params, data))
    return lambda: jax.block_until_ready(diagonal(params, data))


def main() -> None:
    """Measures and prints."""
    configure_jax(available_cpus())
    options = MLP(name="mlp", hidden=(400, 400))
    rows = []
    for kind in ("argmax", "exact"):
        cases = {how: compiled(kind, how == "by sample", options) for how in ("by sample", "products")}
        seconds = interleave(cases, 3)
        measured = f"{seconds['by sample']:.2f} / {seconds['products']:.3f} s = {seconds['by sample'] / seconds['products']:.0f} x"
        rows.append((f"fisher {kind}, 12,000 samples: a gradient a sample / a product a layer", measured, ""))
    report("benchmarks.fisher", rows)


if __name__ == "__main__":
    main()
