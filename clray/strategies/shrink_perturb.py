"""Shrink and perturb: before every new task the weights are scaled down and noise is added.

Ash & Adams 2020 (arXiv 1910.08475, section 4): ``theta <- shrink * theta + noise * epsilon`` with epsilon standard normal, for every
parameter, before each task but the first. It restores the ability to learn; on its own it does nothing against forgetting.
``shrink: 1`` and ``noise: 0`` is plain training. The optimizer's state is left as it is (see ``training.reset_optimizer``).
"""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from pydantic import Field

from clray.options import HookMemory, StrategyOptions, Traced
from clray.strategies.base import Context, Strategy, StrategyState
from clray.types import Params


class ShrinkPerturb(StrategyOptions):
    """Options of shrink and perturb."""

    shrink: Annotated[float, Field(ge=0.0, le=1.0), Traced()] = 0.6
    noise: Annotated[float, Field(ge=0.0), Traced()] = Field(0.01, description="standard deviation of what is added")

    def needs_boundaries(self) -> str | None:
        return "it changes the weights at every boundary, so that a false alarm would cost what was learnt"

    def hook_memory(self, sizes: Any, on_gpu: bool) -> HookMemory:
        return HookMemory(gradients=0 if on_gpu else 3)  # the noise, which a GPU draws as it adds it

    def build(self) -> Strategy:
        return Strategy(begin_task=begin_task)


def begin_task(state: StrategyState, params: Params, ctx: Context) -> tuple[StrategyState, Params]:
    flat, unravel = ravel_pytree(params)
    moved = ctx.hyper["shrink"] * flat + ctx.hyper["noise"] * jax.random.normal(ctx.key, flat.shape)
    return state, unravel(jnp.where(ctx.task == 0, flat, moved))
