"""Elastic weight consolidation: parameters that earlier tasks depend on are held, by their Fisher information.

``separate`` (Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3, a term for every earlier task k):
``importance / 2 * sum_k sum_i F_k,i (theta_i - theta*_k,i)^2``.
It needs no copy of every task: with ``F = sum_k F_k`` and the weighted mean ``m = sum_k F_k theta*_k / F`` the sum over k is
``sum_i F_i (theta_i - m_i)^2`` and a constant, which is kept so that the loss is the one of the paper.

``online`` (Schwarz et al. 2018, arXiv 1805.06370, section 4): one term around the weights after the latest task,
``importance / 2 * sum_i F_i (theta_i - theta*_i)^2`` with ``F <- gamma F + F_k`` after task k.

F_k is averaged over samples (see ``fisher``), at the weights after the task. Avalanche's EWC has no factor 1/2: its strength is
half of ``importance`` here. Fisher information shrinks as the network gets sure, so good strengths differ between data sets by
orders of magnitude. Plain SGD is stable only while learning_rate * importance * F is below 2 for every parameter.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
from pydantic import Field, model_validator

from clray.config import Count, Traced
from clray.strategies.base import Context, StaticSizes, Strategy, TaskData
from clray.strategies.fisher import Kind, fisher_diagonal
from clray.strategies.quadratic import Importance, Regulariser, quadratic, zeros
from clray.types import Array, Batch, Params


class EWC(Regulariser):
    """Options of elastic weight consolidation."""

    importance: Importance = 100.0
    mode: Literal["separate", "online"] = "separate"
    gamma: Annotated[float, Field(ge=0.0, le=1.0), Traced()] = Field(1.0, description="what is left of older tasks (mode online)")
    fisher: Kind = "exact"
    fisher_sample_size: Count | None = Field(None, description="samples a task; default all")

    @model_validator(mode="after")
    def _gamma_is_used(self) -> EWC:
        if self.mode == "separate" and self.gamma != 1.0:
            raise ValueError("gamma is used only with mode: online")
        return self

    def misfit(self, sizes: Any) -> str | None:
        if self.fisher_sample_size is not None and self.fisher_sample_size > sizes.n_train:
            return f"fisher_sample_size: {self.fisher_sample_size} is more than the {sizes.n_train} training samples of a task"
        return None

    def build(self) -> Strategy:
        def end_task(state: State, params: Params, data: TaskData, ctx: Context) -> State:
            found = fisher_diagonal(params, data, self.fisher, self.fisher_sample_size, ctx)
            if self.mode == "online":
                decayed = {path: ctx.hyper["gamma"] * leaf for path, leaf in state.fisher.items()}
                return State({path: leaf + found[path] for path, leaf in decayed.items()}, params, state.constant)
            return add_term(state, params, found)

        return Strategy(init=init, penalty=penalty, end_task=end_task)


class State(NamedTuple):
    fisher: Params  # F: sum over the tasks so far
    anchor: Params  # m: mean of the weights after each task, weighted with its F_k; online: the weights after the latest
    constant: Array  # float32 scalar: what the terms of the tasks add up to at m


def init(params: Params, sizes: StaticSizes) -> State:
    del sizes
    return State(zeros(params), params, jnp.float32(0.0))


def penalty(state: State, params: Params, logits: Array, batch: Batch, ctx: Context) -> Array:
    del logits, batch
    return 0.5 * ctx.hyper["importance"] * (quadratic(params, state.anchor, state.fisher) + state.constant)


def add_term(state: State, params: Params, found: Params) -> State:
    """Adds sum_i found_i (theta_i - params_i)^2 to the quadratic form: the parallel axis theorem, parameter by parameter."""
    fisher, anchor, constant = {}, {}, state.constant
    for path, old in state.fisher.items():
        new, away = found[path], params[path] - state.anchor[path]
        fisher[path] = old + new
        share = jnp.where(fisher[path] > 0.0, new / jnp.where(fisher[path] > 0.0, fisher[path], 1.0), 0.0)
        anchor[path] = state.anchor[path] + share * away
        constant += jnp.sum(old * share * away**2)
    return State(fisher, anchor, constant)
