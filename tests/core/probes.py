"""Strategies that do nothing useful and so have effects that are known."""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from pydantic import Field

from clray.options import StrategyOptions, Traced
from clray.strategies.base import Context, StaticSizes, Step, Strategy, TaskData
from clray.types import Array, Batch, Params


class Ridge(StrategyOptions):
    """Adds strength / 2 * |params|^2 to the loss: what SGD calls weight decay."""

    strength: Annotated[float, Field(ge=0.0), Traced()] = 1e-3

    def build(self) -> Strategy:
        def penalty(state: Any, params: Params, logits: Array, batch: Batch, ctx: Context) -> Array:
            del state, logits, batch
            return 0.5 * ctx.hyper["strength"] * sum(jnp.sum(leaf**2) for leaf in params.values())

        return Strategy(penalty=penalty)


class Weightless(StrategyOptions):
    """Appends copies of the batch with other labels and a weight of zero: changes nothing."""

    def build(self) -> Strategy:
        def batch(state: Any, batch: Batch, ctx: Context) -> tuple[Any, Batch]:
            del ctx
            images = jnp.concatenate([batch.images, 1.0 - batch.images])
            labels = jnp.concatenate([batch.labels, 1 - batch.labels])
            return state, Batch(images, labels, jnp.concatenate([batch.weights, 0.0 * batch.weights]))

        return Strategy(batch=batch)


class Diary(StrategyOptions):
    """Writes down when it is called, and with what."""

    def build(self) -> Strategy:
        def init(params: Params, sizes: StaticSizes) -> dict[str, Array]:
            del params, sizes
            counters = {name: jnp.int32(0) for name in ("begun", "batches", "stepped", "told", "ended", "out_of_turn", "wrong_rows")}
            return {**counters, "last_task": jnp.int32(-1), "key": jnp.zeros(2, jnp.uint32), "repeated_keys": jnp.int32(0)}

        def note(state: Any, ctx: Context, name: str, wrong: Any = False) -> Any:
            key = jax.random.key_data(ctx.key)
            repeated = state["repeated_keys"] + jnp.all(key == state["key"]).astype(jnp.int32)
            out_of_turn = state["out_of_turn"] + jnp.asarray(wrong).astype(jnp.int32)
            return state | {name: state[name] + 1, "out_of_turn": out_of_turn, "key": key, "repeated_keys": repeated}

        def begin_task(state: Any, params: Params, ctx: Context) -> tuple[Any, Params]:
            wrong = (ctx.task != state["last_task"] + 1) | (state["begun"] != state["ended"])
            return note(state, ctx, "begun", wrong) | {"last_task": ctx.task}, params

        def batch(state: Any, batch: Batch, ctx: Context) -> tuple[Any, Batch]:
            return note(state, ctx, "batches", (ctx.task != state["last_task"]) | (state["begun"] != state["ended"] + 1)), batch

        def after_step(state: Any, step: Step, ctx: Context) -> Any:
            moved = jnp.any(step.before["head.bias"] != step.after["head.bias"]) == jnp.any(step.gradient["head.bias"] != 0.0)
            return note(
                state, ctx, "stepped", ~moved | (step.logits.shape[0] != step.batch.labels.shape[0]) | (ctx.task != state["last_task"])
            )

        def boundary(state: Any, before: Any, params: Params, ctx: Context) -> Any:
            same = jnp.stack([before[name] == state[name] for name in ("batches", "stepped", "ended")]).all()
            return note(state, ctx, "told", ~same | (ctx.task != state["last_task"]) | (state["told"] != state["ended"]))

        def end_task(state: Any, params: Params, data: TaskData, ctx: Context) -> Any:
            halves = data.labels.reshape(2, -1)
            seen = ctx.scale(data.images)
            wrong_rows = jnp.any(halves != jnp.arange(2)[:, None]) | (seen.max() > 1.0) | (seen.min() < 0.0) | (seen.max() == 0.0)
            logits, hidden = ctx.forward(params, seen)
            wrong_rows |= (logits.shape != (len(seen), 2)) | (hidden.shape[0] != len(seen))
            ended = note(state, ctx, "ended", (ctx.task != state["last_task"]) | (state["told"] != state["ended"] + 1))
            return ended | {"wrong_rows": state["wrong_rows"] + wrong_rows.astype(jnp.int32)}

        return Strategy(init=init, begin_task=begin_task, batch=batch, after_step=after_step, boundary=boundary, end_task=end_task)


class Shrink(StrategyOptions):
    """Adds strength * params to the gradient: the other part of SGD's weight decay."""

    strength: Annotated[float, Field(ge=0.0), Traced()] = 1e-3

    def build(self) -> Strategy:
        def gradient(state: Any, gradient: Params, params: Params, batch: Batch, ctx: Context) -> Params:
            del state, batch
            return {name: leaf + ctx.hyper["strength"] * params[name] for name, leaf in gradient.items()}

        return Strategy(gradient=gradient)
