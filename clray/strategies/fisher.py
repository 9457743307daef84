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

    def log_probability(logits: Array, label: Array, key: Array, turn: Array) -> Array:
        """Of one label, times the square root of the weight of its squared gradient."""
        choices = ctx.choices(label[None])
        log_p = jax.nn.log_softmax(among(logits, None if choices is None else choices[0]))
        held = jax.lax.stop_gradient(log_p)
        if kind == "exact":
            chosen = label // n_turns * n_turns + turn if ctx.sizes.scenario == "task" else turn
            return jnp.exp(0.5 * held[chosen]) * log_p[chosen]
        if kind == "argmax":
            return log_p[jnp.argmax(held)]
        return log_p[jax.random.categorical(key, held) if kind == "sampled" else label]

    n_outputs = jax.eval_shape(ctx.forward, params, ctx.scale(data.images[:1]))[0].shape[-1]
    n_turns = (ctx.sizes.classes_per_task if ctx.sizes.scenario == "task" else n_outputs) if kind == "exact" else 1
    return mean_over_samples(log_probability, jnp.square, params, data, n_samples, ctx, n_turns=n_turns)
