"""Networks with given weights as plain functions of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from clray.config import Experiment
from clray.core.program import products_in
from clray.data.cache import open_dataset
from clray.data.sequence import count_outputs, seen_outputs
from clray.data.transforms import draw_transforms
from clray.errors import OutputError
from clray.models.pure import pure_model
from clray.transform import transformed
from clray.types import HostArray

Answer = tuple[HostArray, HostArray]


def model_function(
    experiment: Experiment, weights: Mapping[str, HostArray], repeat: int | None, task: int | str, eval_task: int
) -> Callable[[HostArray], Answer]:
    """See ``TrialResults.model``.

    Args:
        weights: (R, *shape) by dotted parameter path.

    Raises:
        OutputError: the model needs batch statistics, which are not logged.
    """
    dataset = open_dataset(experiment.dataset)
    shape: tuple[int, ...] = dataset.info.shape if experiment.model.takes_images else (dataset.info.n_inputs,)
    model = pure_model(experiment.model.structure(), shape, count_outputs(experiment.sequence))
    _, state = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    if state:
        raise OutputError(f"model {experiment.model.name} carries batch statistics ({', '.join(state)}), which are not logged")
    scale = 1.0 / 255.0 if dataset.info.dtype == "uint8" else 1.0
    mean, deviation = (dataset.mean, dataset.std) if experiment.dataset.normalize == "standard" else (0.0, 1.0)
    rows = slice(None) if repeat is None else slice(repeat, repeat + 1 or None)
    chosen = {name: array[rows] for name, array in weights.items()}
    transform = draw_transforms(experiment.sequence, dataset.info.shape, experiment.seed, experiment.repeat_numbers[rows]).table(
        [eval_task], dataset.info.shape
    )
    own = _own_outputs(experiment, task, eval_task)

    def forward(params: Mapping[str, jax.Array], images: jax.Array) -> tuple[jax.Array, jax.Array]:
        with products_in(experiment.training.precision):
            logits, hidden, _ = model.apply(dict(params), {}, images, train=False, key=None)
        return own(logits), hidden

    compiled = jax.jit(jax.vmap(forward, in_axes=(0, None if transform is None else 0)))

    def function(images: HostArray) -> Answer:
        pixels = _as_images(np.asarray(images), dataset.info.shape)
        if transform is not None:
            pixels = pixels.astype(dataset.info.dtype)
            own_of = [jax.tree.map(lambda leaf, r=r: leaf[r, 0], transform) for r in range(len(transform.index))]
            pixels = np.stack([transformed(pixels, one) for one in own_of])
        scaled = ((pixels.astype(np.float32) * np.float32(scale) - mean) / deviation).astype(np.float32)
        logits, hidden = compiled(chosen, scaled.reshape(*scaled.shape[: scaled.ndim - 3], *shape))
        answer = np.asarray(logits), np.asarray(hidden)
        return answer if repeat is None else (answer[0][0], answer[1][0])

    return function


def _as_images(images: HostArray, shape: tuple[int, ...]) -> HostArray:
    """Images in the shape of the data set, from that shape, flat ones, or grey ones without a channel."""
    flat = (math.prod(shape),)
    if images.shape[1:] not in (shape, flat, *((shape[:-1],) if shape[-1] == 1 else ())):
        raise OutputError(f"images must be (n, {', '.join(map(str, shape))}) or (n, {flat[0]}), got {images.shape}")
    return images.reshape(len(images), *shape)


def _own_outputs(experiment: Experiment, task: int | str, eval_task: int) -> Callable[[jax.Array], jax.Array]:
    """Takes what answers out of logits (n, O)."""
    sequence = experiment.sequence
    n_labels = sequence.classes_per_task
    if sequence.scenario == "task":
        return lambda logits: logits[:, eval_task * n_labels : (eval_task + 1) * n_labels]
    if experiment.training.active_classes == "seen":
        n_seen = seen_outputs(sequence)[task if isinstance(task, int) else 0 if task == "initial" else -1]
        return lambda logits: jnp.where(jnp.arange(logits.shape[1]) < n_seen, logits, -jnp.inf)
    return lambda logits: logits
