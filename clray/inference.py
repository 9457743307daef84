"""Networks with given weights as plain functions of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

from clray.config import Experiment
from clray.data.cache import open_dataset
from clray.errors import OutputError
from clray.models.pure import pure_model
from clray.types import HostArray


def model_function(
    experiment: Experiment, weights: Mapping[str, HostArray], repeat: int | None
) -> Callable[[HostArray], tuple[HostArray, HostArray]]:
    """See ``TrialResults.model``.

    Args:
        weights: (R, *shape) by dotted parameter path.

    Raises:
        OutputError: the model needs batch statistics, which are not logged.
    """
    dataset = open_dataset(experiment.dataset)
    shape: tuple[int, ...] = dataset.info.shape if experiment.model.takes_images else (dataset.info.n_inputs,)
    model = pure_model(experiment.model.structure(), shape, experiment.sequence.classes_per_task)
    _, state = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    if state:
        raise OutputError(f"model {experiment.model.name} carries batch statistics ({', '.join(state)}), which are not logged")
    scale = 1.0 / 255.0 if dataset.info.dtype == "uint8" else 1.0
    mean, deviation = (dataset.mean, dataset.std) if experiment.dataset.normalize == "standard" else (0.0, 1.0)
    chosen = {name: array if repeat is None else array[repeat] for name, array in weights.items()}

    def forward(params: Mapping[str, jax.Array], images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return model.apply(dict(params), {}, images, train=False, key=None)[:2]

    compiled = jax.jit(forward if repeat is not None else jax.vmap(forward, in_axes=(0, None)))

    def function(images: HostArray) -> tuple[HostArray, HostArray]:
        pixels = np.asarray(images).reshape(len(images), *dataset.info.shape).astype(np.float32)
        scaled = ((pixels * np.float32(scale) - mean) / deviation).astype(np.float32).reshape(len(images), *shape)
        logits, hidden = compiled(chosen, scaled)
        return np.asarray(logits), np.asarray(hidden)

    return function
