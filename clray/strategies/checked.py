"""A strategy whose hooks are held to the interface while a program is traced: what does not fit is told by hook and name.

Nothing of this is left in the compiled program. Without it, XLA would broadcast weights of the wrong shape without a word.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from clray.errors import ConfigError
from clray.strategies.base import Context, Step, Strategy, StrategyState, TaskData
from clray.types import Array, Batch, Params


def checked(strategy: Any, name: str) -> Strategy:
    """``strategy`` with checks around its hooks.

    Args:
        name: as in the experiment file, for messages.

    Raises:
        ConfigError: it is no ``Strategy``; from its hooks: they returned something of another form.
    """
    if not isinstance(strategy, Strategy):
        raise ConfigError(f"strategy {name}: build() must return a clray.strategies.base.Strategy, got {_shown(strategy)}")

    def wrong(hook: str, expected: str, got: Any) -> ConfigError:
        return ConfigError(f"strategy {name}: {hook} must return {expected}, got {got if isinstance(got, str) else _shown(got)}")

    def kept(hook: str, what: str, before: Any, after: Any) -> Any:
        """``after``, whose structure, shapes and dtypes must be those of ``before``."""
        if found := _difference(before, after):
            raise wrong(hook, f"{what} of the same structure, shapes and dtypes", found)
        return after

    def pair(hook: str, what: str, result: Any) -> Any:
        if not isinstance(result, tuple) or len(result) != 2:
            raise wrong(hook, f"({what})", result)
        return result

    def begin_task(state: StrategyState, params: Params, ctx: Context) -> tuple[StrategyState, Params]:
        new, moved = pair("begin_task", "state, parameters", strategy.begin_task(state, params, ctx))
        return kept("begin_task", "a state", state, new), kept("begin_task", "parameters", params, moved)

    def batch(state: StrategyState, batch: Batch, ctx: Context) -> tuple[StrategyState, Batch]:
        new, more = pair("batch", "state, batch", strategy.batch(state, batch, ctx))
        if not isinstance(more, Batch):
            raise wrong("batch", "(state, a clray.types.Batch)", more)
        n_rows, sample = len(batch.labels), batch.images.shape[1:]
        rows = jnp.shape(more.labels)[:1]
        fits = jnp.shape(more.images) == (*rows, *sample) and jnp.shape(more.labels) == jnp.shape(more.weights) == rows
        if not fits or rows[0] < n_rows or jnp.result_type(more.images) != batch.images.dtype:
            shapes = ", ".join(f"{field} {jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for field, leaf in more._asdict().items())
            expected = f"images {batch.images.dtype}[rows, {', '.join(map(str, sample))}], labels [rows] and weights [rows]"
            raise wrong("batch", f"the {n_rows} rows of the task and those that it appends: {expected}", shapes)
        return kept("batch", "a state", state, new), more

    def penalty(state: StrategyState, params: Params, logits: Array, batch: Batch, ctx: Context) -> Array | float:
        value = strategy.penalty(state, params, logits, batch, ctx)
        if value is None or not _same(value, 0.0) or jnp.shape(value) != ():
            raise wrong("penalty", "a scalar", value)
        return value

    def gradient(state: StrategyState, gradient: Params, params: Params, batch: Batch, ctx: Context) -> Params:
        return kept("gradient", "a gradient", gradient, strategy.gradient(state, gradient, params, batch, ctx))

    def after_step(state: StrategyState, step: Step, ctx: Context) -> StrategyState:
        return kept("after_step", "a state", state, strategy.after_step(state, step, ctx))

    def boundary(state: StrategyState, before: StrategyState, params: Params, ctx: Context) -> StrategyState:
        return kept("boundary", "a state", state, strategy.boundary(state, before, params, ctx))

    def end_task(state: StrategyState, params: Params, data: TaskData, ctx: Context) -> StrategyState:
        return kept("end_task", "a state", state, strategy.end_task(state, params, data, ctx))

    return Strategy(strategy.init, begin_task, batch, penalty, gradient, after_step, boundary, end_task)


def _difference(before: Any, after: Any) -> str:
    """Where two pytrees differ in form; empty where they do not."""
    if not _same(before, after):
        return f"{_form(after)} instead of {_form(before)}"
    paths = jax.tree_util.tree_leaves_with_path(before)
    for (path, old), new in zip(paths, jax.tree.leaves(after), strict=True):
        forms = [f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for leaf in (old, new)]
        if forms[0] != forms[1]:
            return f"{forms[1]} instead of {forms[0]} at {jax.tree_util.keystr(path) or 'its root'}"
    return ""


def _form(tree: Any) -> str:
    """The structure of a pytree, and its type where that is no pytree."""
    text = str(jax.tree.structure(tree)).removeprefix("PyTreeDef(").removesuffix(")")
    return _shown(tree) if text == "*" or tree is None else text


def _shown(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return "nothing (None)" if value is None else f"a {type(value).__name__}"


def _same(one: Any, other: Any) -> bool:
    first: Any = jax.tree.structure(one)
    return bool(first == jax.tree.structure(other))
