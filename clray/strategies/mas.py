"""Memory aware synapses: parameters are held by how much the network's output depends on them; labels play no part.

Aljundi et al. 2018 (arXiv 1711.09601): ``Omega_i = mean_x |d ||f(x)||^2 / d theta_i|`` over the samples of the task (eq. 2 with the squared
norm of section 4.1; f are the logits), added up over tasks, and ``importance * sum_i Omega_i (theta_i - theta*_i)^2`` in the loss
(eq. 3, lambda in the paper, no factor 1/2), where theta* are the weights after the previous task. The absolute value is taken
of every sample's gradient; the authors' code takes it of batches. f are the outputs that the sample is classified among.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from pydantic import Field

from clray.options import Count, HookMemory
from clray.strategies.base import Context, StaticSizes, Strategy, TaskData
from clray.strategies.choices import only
from clray.strategies.per_sample import mean_over_samples
from clray.strategies.quadratic import Importance, Regulariser, quadratic, zeros
from clray.types import Array, Batch, Params


class MAS(Regulariser):
    """Options of memory aware synapses."""

    importance: Importance = 0.1
    sample_size: Count | None = Field(None, description="samples a task that Omega is averaged over; default all")

    def needs_boundaries(self) -> str | None:
        return "its importances are taken over the data of a task when it ends"

    def misfit(self, sizes: Any) -> str | None:
        if self.sample_size is not None and self.sample_size > sizes.n_train:
            return f"sample_size: {self.sample_size} is more than the {sizes.n_train} training samples of a task"
        return None

    def hook_memory(self, sizes: Any, on_gpu: bool) -> HookMemory:
        del sizes
        return HookMemory(data=0 if self.sample_size else 1 if on_gpu else 2)

    def build(self) -> Strategy:
        def end_task(state: State, params: Params, data: TaskData, ctx: Context) -> State:
            found = sensitivity(params, data, self.sample_size, ctx)
            return State({path: leaf + found[path] for path, leaf in state.omega.items()}, params)

        return Strategy(init=init, penalty=penalty, end_task=end_task)


class State(NamedTuple):
    omega: Params
    anchor: Params  # theta*: the weights after the previous task


def init(params: Params, sizes: StaticSizes) -> State:
    del sizes
    return State(zeros(params), params)


def penalty(state: State, params: Params, logits: Array, batch: Batch, ctx: Context) -> Array:
    del logits, batch
    return ctx.hyper["importance"] * quadratic(params, state.anchor, state.omega)


def sensitivity(params: Params, data: TaskData, n_samples: int | None, ctx: Context) -> Params:
    """Omega of one task, shaped like ``params``."""

    def squared_norm(logits: Array, label: Array, key: Array, turn: Array) -> Array:
        del key, turn
        choices = ctx.choices(label[None])
        return jnp.sum(only(logits, None if choices is None else choices[0]) ** 2)

    return mean_over_samples(squared_norm, jnp.abs, params, data, n_samples, ctx)
