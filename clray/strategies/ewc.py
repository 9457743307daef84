"""Elastic weight consolidation: parameters that earlier tasks depend on are held, by their Fisher information.

``separate`` (Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3, a term for every earlier task k):
``importance / 2 * sum_k sum_i F_k,i (theta_i - theta*_k,i)^2``.
It needs no copy of every task: with ``F = sum_k F_k`` and the weighted mean ``m = sum_k F_k theta*_k / F`` the sum over k is
``sum_i F_i (theta_i - m_i)^2`` and a constant, which is kept so that the loss is the one of the paper.

``online`` (Schwarz et al. 2018, arXiv 1805.06370, section 4): one term around the weights after the latest task,
``importance / 2 * sum_i gamma F_i (theta_i - theta*_i)^2`` with ``F <- gamma F + F_k`` after task k. So gamma weakens the latest
task too, as there and in the code of van de Ven & Tolias.

F_k is averaged over samples (see ``fisher``), at the weights after the task. Avalanche's EWC has no factor 1/2: its strength is
half of ``importance`` here.

``fisher: running`` needs no data of a task when it ends: F_k is the mean of ``fisher_of_batch`` over the batches of the task, the
latest weighing most (``fisher_decay`` is what is left of a weight after a batch). It costs one more gradient a batch. The
running mean of gradients is that of Chaudhry et al. 2018 (arXiv 1801.10112, section 4.1), who take the batch's own labels.

Fisher information shrinks as the network gets sure, so good strengths differ between data sets by
orders of magnitude. Plain SGD is stable only while learning_rate * importance * F is below 2 for every parameter.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
from pydantic import Field, model_validator

from clray.options import Count, HookMemory, Traced
from clray.strategies.base import Context, StaticSizes, Step, Strategy, TaskData
from clray.strategies.fisher import Kind, fisher_diagonal, fisher_of_batch
from clray.strategies.quadratic import Importance, Regulariser, quadratic, zeros
from clray.types import Array, Batch, Params


class EWC(Regulariser):
    """Options of elastic weight consolidation."""

    importance: Importance = 100.0
    mode: Literal["separate", "online"] = "separate"
    gamma: Annotated[float, Field(ge=0.0, le=1.0), Traced()] = Field(1.0, description="what is left of older tasks (mode online)")
    fisher: Kind | Literal["running"] = "exact"
    fisher_sample_size: Count | None = Field(None, description="samples a task; default all")
    fisher_decay: Annotated[float, Field(ge=0.0, lt=1.0), Traced()] = Field(
        0.99, description="of the running mean, a batch (fisher running)"
    )

    @model_validator(mode="after")
    def _options_are_used(self) -> EWC:
        if self.mode == "separate" and self.gamma != 1.0:
            raise ValueError("gamma is used only with mode: online")
        if self.fisher == "running" and self.fisher_sample_size is not None:
            raise ValueError("fisher_sample_size is not used with fisher: running, which takes every batch")
        if self.fisher != "running" and self.fisher_decay != type(self).model_fields["fisher_decay"].default:
            raise ValueError("fisher_decay is used only with fisher: running")
        return self

    def needs_boundaries(self) -> str | None:
        return (
            None
            if self.fisher == "running"
            else f"fisher: {self.fisher} is taken over the data of a task when it ends; fisher: running is not"
        )

    def misfit(self, sizes: Any) -> str | None:
        if self.fisher_sample_size is not None and self.fisher_sample_size > sizes.n_train:
            return f"fisher_sample_size: {self.fisher_sample_size} is more than the {sizes.n_train} training samples of a task"
        return None

    def hook_memory(self, sizes: Any, on_gpu: bool) -> HookMemory:
        del sizes
        return HookMemory(data=0 if self.fisher == "running" or self.fisher_sample_size else 1 if on_gpu else 2)

    def build(self) -> Strategy:
        def consolidated(state: State, params: Params, found: Params, ctx: Context) -> State:
            if self.mode == "separate":
                return add_term(state, params, found)
            fisher = {path: ctx.hyper["gamma"] * leaf + found[path] for path, leaf in state.fisher.items()}
            return state._replace(fisher=fisher, anchor=params)

        if self.fisher == "running":

            def boundary(state: State, before: State, params: Params, ctx: Context) -> State:
                del state
                assert before.running is not None
                return consolidated(before, params, before.running.mean(), ctx)._replace(running=no_mean(params))

            return Strategy(init=init_running, penalty=self._penalty, after_step=after_step, boundary=boundary)
        kind = self.fisher

        def end_task(state: State, params: Params, data: TaskData, ctx: Context) -> State:
            return consolidated(state, params, fisher_diagonal(params, data, kind, self.fisher_sample_size, ctx), ctx)

        return Strategy(init=init, penalty=self._penalty, end_task=end_task)

    def _penalty(self, state: State, params: Params, logits: Array, batch: Batch, ctx: Context) -> Array:
        del logits, batch
        strength = ctx.hyper["importance"] * (ctx.hyper["gamma"] if self.mode == "online" else 1.0)
        return 0.5 * strength * (quadratic(params, state.anchor, state.fisher) + state.constant)


class Running(NamedTuple):
    """A weighted mean over batches, of which the latest weigh most."""

    total: Params
    weight: Array  # float32 scalar: what the weights add up to; 0 before the first batch

    def mean(self) -> Params:
        """0 before the first batch."""
        return {path: leaf / jnp.where(self.weight > 0.0, self.weight, 1.0) for path, leaf in self.total.items()}


class State(NamedTuple):
    fisher: Params  # F: sum over the tasks so far
    anchor: Params  # m: mean of the weights after each task, weighted with its F_k; online: the weights after the latest
    constant: Array  # float32 scalar: what the terms of the tasks add up to at m
    running: Running | None = None  # with fisher running


def init(params: Params, sizes: StaticSizes) -> State:
    del sizes
    return State(zeros(params), params, jnp.float32(0.0))


def no_mean(params: Params) -> Running:
    return Running(zeros(params), jnp.float32(0.0))


def init_running(params: Params, sizes: StaticSizes) -> State:
    return init(params, sizes)._replace(running=no_mean(params))


def after_step(state: State, step: Step, ctx: Context) -> State:
    """Adds the batch to the running mean, at the weights that it was trained with."""
    assert state.running is not None
    rows = ctx.sizes.batch_size
    found = fisher_of_batch(step.before, step.batch.images[:rows], step.batch.labels[:rows], ctx)
    decay = ctx.hyper["fisher_decay"]
    total = {path: decay * leaf + (1.0 - decay) * found[path] for path, leaf in state.running.total.items()}
    return state._replace(running=Running(total, decay * state.running.weight + 1.0 - decay))


def add_term(state: State, params: Params, found: Params) -> State:
    """Adds sum_i found_i (theta_i - params_i)^2 to the quadratic form: the parallel axis theorem, parameter by parameter."""
    fisher, anchor, constant = {}, {}, state.constant
    for path, old in state.fisher.items():
        new, away = found[path], params[path] - state.anchor[path]
        fisher[path] = old + new
        share = jnp.where(fisher[path] > 0.0, new / jnp.where(fisher[path] > 0.0, fisher[path], 1.0), 0.0)
        anchor[path] = state.anchor[path] + share * away
        constant += jnp.sum(old * share * away**2)
    return state._replace(fisher=fisher, anchor=anchor, constant=constant)
