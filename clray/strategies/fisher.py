"""The diagonal of the Fisher information of a network on a task.

``F_i = mean_x E_y [(d log p(y | x) / d theta_i)^2]``, where y follows the network's own p(y | x). What is taken for y:

``exact``      the expectation: the sum over all labels, weighted with p(y | x). Costs O gradients a sample (scenario task: C).
``sampled``    one label a sample, drawn from p(y | x); unbiased (Martens 2020, arXiv 1412.1193, section 5).
``argmax``     the most likely label; biased, and small where the network is sure. What van de Ven & Tolias (2019) use.
``empirical``  the true label; Kunstner et al. 2019 (arXiv 1905.12558) say what is wrong with it.

p(y | x) is over the outputs that the sample is classified among (see ``choices``).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from clray.strategies.base import Context, TaskData
from clray.strategies.choices import among
from clray.strategies.per_sample import mean_over_samples
from clray.types import Array, Params

Kind = Literal["exact", "argmax", "empirical", "sampled"]


def fisher_of_batch(params: Params, images: Array, labels: Array, ctx: Context) -> Params:
    """An unbiased estimate of the diagonal over a batch, from one gradient: B (d mean_x log p(y | x) / d theta_i)^2 with y ~ p.

    Labels are drawn from the network's own p, so the gradients of different samples are uncorrelated and of mean 0: the products
    of different samples cancel on average (Liu et al. 2023, arXiv 2305.14342, section 2.3, "Gauss-Newton-Bartlett").

    Args:
        images: [B, ...], scaled.
        labels: [B]; only which outputs a sample is classified among is taken from them.
    """

    def mean_log_probability(params: Params) -> Array:
        log_p = jax.nn.log_softmax(among(ctx.forward(params, images)[0], ctx.choices(labels)))
        drawn = jax.random.categorical(ctx.key, jax.lax.stop_gradient(log_p))
        return jnp.take_along_axis(log_p, drawn[:, None], axis=1).mean()

    gradient = jax.grad(mean_log_probability)(params)
    return {path: images.shape[0] * leaf**2 for path, leaf in gradient.items()}


def fisher_diagonal(params: Params, data: TaskData, kind: Kind, n_samples: int | None, ctx: Context) -> Params:
    """The diagonal, shaped like ``params``.

    Args:
        data: of the task.
        n_samples: so many samples of it, drawn at random; None: all.
    """

    def contribution(image: Array, label: Array, key: Array, turn: Array) -> Params:
        def log_probabilities(params: Params) -> Array:
            return jax.nn.log_softmax(among(ctx.forward(params, image[None])[0], ctx.choices(label[None]))[0])

        log_p, pull_back = jax.vjp(log_probabilities, params)
        weight = jnp.float32(1.0)
        if kind == "exact":
            chosen = label // n_turns * n_turns + turn if ctx.sizes.scenario == "task" else turn
            weight = jnp.exp(log_p[chosen])
        elif kind == "argmax":
            chosen = jnp.argmax(log_p)
        elif kind == "sampled":
            chosen = jax.random.categorical(key, log_p)
        else:
            chosen = label
        (gradient,) = pull_back((jnp.arange(log_p.shape[0]) == chosen).astype(log_p.dtype))
        return {path: weight * leaf**2 for path, leaf in gradient.items()}

    n_outputs = jax.eval_shape(ctx.forward, params, ctx.scale(data.images[:1]))[0].shape[-1]
    n_turns = (ctx.sizes.classes_per_task if ctx.sizes.scenario == "task" else n_outputs) if kind == "exact" else 1
    return mean_over_samples(contribution, data, n_samples, ctx, n_turns=n_turns)
