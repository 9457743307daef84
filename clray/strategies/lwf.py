"""Learning without forgetting: on the new task's images, the network keeps giving the answers it gave before the task.

Li & Hoiem 2017 (arXiv 1606.09282), with the distillation loss of Hinton et al. 2015 (arXiv 1503.02531): over the B images of a
batch, ``KD = -temperature^2 * mean_x sum_y q(y | x) log p(y | x)``, where q and p are the softmax of the logits divided by the
temperature, of the network before the task and of the one in training. The loss is ``(1 - share) * CE + share * KD`` (see
``weighting``).

The factor temperature^2 keeps the gradient's size (Hinton; van de Ven & Tolias 2019); Li & Hoiem leave it out. Their
``lambda_o = 1``, a plain sum, is ``alpha: 0.5`` at twice the learning rate. Costs one more forward pass a batch. In the first task
there is nothing to keep.

Which outputs: scenario domain: all. Task: the softmax of each earlier head by itself; KD is the mean over those heads (Li & Hoiem
sum them; van de Ven & Tolias average). Class: the teacher's softmax is over the classes that it was trained among, the
network's over those of now; with active classes seen, new classes thus have a target of zero (as van de Ven & Tolias).
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

from clray.options import HookMemory, Traced
from clray.strategies.base import Context, StaticSizes, Strategy
from clray.strategies.choices import among
from clray.strategies.weighting import Weighted, share_of_past
from clray.types import Array, Batch, Params


class LwF(Weighted):
    """Options of learning without forgetting."""

    temperature: Annotated[float, Field(gt=0.0), Traced()] = 2.0

    def needs_boundaries(self) -> str | None:
        return None

    def hook_memory(self, sizes: Any, on_gpu: bool) -> HookMemory:
        return HookMemory(rows=sizes.batch_size // 2 if on_gpu else 0)  # the teacher's; a CPU is done with them in time

    def build(self) -> Strategy:
        def penalty(state: State, params: Params, logits: Array, batch: Batch, ctx: Context) -> Array:
            del params
            n_rows = ctx.sizes.batch_size
            taught, _ = ctx.forward(state.teacher, batch.images[:n_rows])
            share = share_of_past(self.weighting, ctx) * state.learnt
            temperature = ctx.hyper["temperature"]
            current = jnp.sum(ctx.losses(logits, batch) * batch.weights) / jnp.sum(batch.weights)
            # The core adds the whole of the current loss.
            if ctx.sizes.scenario == "task":
                return share * (over_heads(logits[:n_rows], taught, temperature, ctx) - current)
            labels = batch.labels[:n_rows]
            own, taught = among(logits[:n_rows], ctx.choices(labels)), among(taught, ctx.choices(labels, jnp.maximum(ctx.task - 1, 0)))
            return share * (distillation(own, taught, temperature) - current)

        return Strategy(init=init, penalty=penalty, boundary=boundary)


class State(NamedTuple):
    teacher: Params  # weights after the previous task
    learnt: Array  # float32 scalar: 1 once a task was learnt, 0 before


def distillation(logits: Array, taught: Array, temperature: Array) -> Array:
    """The scalar KD of logits [B, O] to the logits [B, O] of the teacher."""
    soft = jax.nn.softmax(taught / temperature)
    return -(temperature**2) * jnp.sum(soft * jax.nn.log_softmax(logits / temperature), axis=-1).mean()


def over_heads(logits: Array, taught: Array, temperature: Array, ctx: Context) -> Array:
    """The mean of ``distillation`` over the heads [T] of the tasks before this one; 0 in the first task."""

    def heads(logits: Array) -> Array:
        return jnp.moveaxis(logits.reshape(logits.shape[0], ctx.sizes.n_tasks, -1), 1, 0)

    each = jax.vmap(distillation, in_axes=(0, 0, None))(heads(logits), heads(taught), temperature)
    return jnp.sum(jnp.where(jnp.arange(ctx.sizes.n_tasks) < ctx.task, each, 0.0)) / jnp.maximum(ctx.task, 1)


def init(params: Params, sizes: StaticSizes) -> State:
    del sizes
    return State(params, jnp.float32(0.0))


def boundary(state: State, before: State, params: Params, ctx: Context) -> State:
    del state, before, ctx
    return State(params, jnp.float32(1.0))
