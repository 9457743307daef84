"""Synaptic intelligence: parameters are held by how much they lowered the loss on their way through earlier tasks.

Zenke et al. 2017 (arXiv 1703.04200). Over the batches of a task, ``w_i = sum -g_i * (theta_i after - theta_i before)`` with g the
gradient of the task's loss (eq. 3); after it, ``Omega_i += w_i / ((theta_i - theta*_i)^2 + xi)`` (eq. 5), where theta* are the
weights before the task; the next task adds ``importance * sum_i Omega_i (theta_i - theta*_i)^2`` to its loss (eq. 4; c in the
paper, no factor 1/2).

``path: task`` takes g without the penalty, as eq. 3 says; ``path: total`` takes the gradient of the whole loss, as the code of
van de Ven & Tolias does. Omega may become negative, as in the paper; the authors' code cuts it at 0. With other strategies in
the chain, g is what these leave for the optimizer.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from clray.options import Traced
from clray.strategies.base import Context, StaticSizes, Step, Strategy
from clray.strategies.quadratic import Importance, Regulariser, quadratic, zeros
from clray.types import Array, Batch, Params


class SI(Regulariser):
    """Options of synaptic intelligence."""

    importance: Importance = Field(0.1, description="c in the paper")
    xi: Annotated[float, Field(gt=0.0), Traced()] = Field(0.1, description="damping of the division by a small path")
    path: Literal["task", "total"] = Field("task", description="gradient along the path: of the task's loss, or with the penalty")

    def needs_boundaries(self) -> str | None:
        return None

    def build(self) -> Strategy:
        def after_step(state: State, step: Step, ctx: Context) -> State:
            path = {}
            for name, gradient in step.gradient.items():
                if self.path == "task":
                    away = step.before[name] - state.anchor[name]
                    gradient = gradient - 2.0 * ctx.hyper["importance"] * state.omega[name] * away
                path[name] = state.path[name] - gradient * (step.after[name] - step.before[name])
            return state._replace(path=path)

        return Strategy(init=init, penalty=penalty, after_step=after_step, boundary=boundary)


class State(NamedTuple):
    omega: Params
    anchor: Params  # theta*: the weights before this task
    path: Params  # w of this task


def init(params: Params, sizes: StaticSizes) -> State:
    del sizes
    return State(zeros(params), params, zeros(params))


def penalty(state: State, params: Params, logits: Array, batch: Batch, ctx: Context) -> Array:
    del logits, batch
    return ctx.hyper["importance"] * quadratic(params, state.anchor, state.omega)


def boundary(state: State, before: State, params: Params, ctx: Context) -> State:
    away = {name: params[name] - before.anchor[name] for name in params}
    omega = {name: leaf + before.path[name] / (away[name] ** 2 + ctx.hyper["xi"]) for name, leaf in before.omega.items()}
    # What was walked since the task ended belongs to the next one.
    return State(omega, params, {name: leaf - before.path[name] for name, leaf in state.path.items()})
