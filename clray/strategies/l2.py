"""L2: a penalty on the distance to the weights after the previous task, the same for all parameters.

``importance / 2 * sum_i (theta_i - theta*_i)^2``: the baseline of Kirkpatrick et al. 2017 (arXiv 1612.00796, figure 2), which is
EWC with a Fisher information of 1, hence its factor 1/2. There is no penalty in the first task.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from clray.strategies.base import Context, StaticSizes, Strategy
from clray.strategies.quadratic import Importance, Regulariser
from clray.types import Array, Batch, Params


class L2(Regulariser):
    """Options of the L2 penalty."""

    importance: Importance = 0.1

    def needs_boundaries(self) -> str | None:
        return None

    def build(self) -> Strategy:
        return Strategy(init=init, penalty=penalty, boundary=boundary)


class State(NamedTuple):
    anchor: Params  # weights after the previous task
    learnt: Array  # float32 scalar: 1 once a task was learnt, 0 before


def init(params: Params, sizes: StaticSizes) -> State:
    del sizes
    return State(params, jnp.float32(0.0))


def penalty(state: State, params: Params, logits: Array, batch: Batch, ctx: Context) -> Array:
    del logits, batch
    distance = sum(jnp.sum((params[path] - leaf) ** 2) for path, leaf in state.anchor.items())
    return 0.5 * ctx.hyper["importance"] * state.learnt * distance


def boundary(state: State, before: State, params: Params, ctx: Context) -> State:
    del state, before, ctx
    return State(params, jnp.float32(1.0))
