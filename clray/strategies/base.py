"""The interface of strategies: a NamedTuple of pure functions over a pytree state, composed like optax transformations.

Every function sees one lane: no axis for repeats or trials, no I/O, nothing that depends on the value of an array at trace
time. The core vmaps over lanes and scans over batches. All hooks default to doing nothing, so a strategy names only what it
changes. In the order in which the core calls them:

``init``         once, before the first task
``begin_task``   before the first batch of every task; may change the parameters
``batch``        on every batch before the gradient; may append rows (replay) and set sample weights
``penalty``      inside the differentiated loss; its value is added to the mean cross-entropy
``gradient``     after the gradient, before the optimizer
``after_step``   after the parameters moved
``boundary``     when a task ended, before ``end_task``: all that can be done without its data
``end_task``     after the last batch of every task, with all of the task's training data

With ``training.boundaries: detected`` nobody knows where tasks end. Then ``begin_task`` and ``end_task`` are never called, and
``boundary`` when the training accuracy fell: at the end of the window in which it did, with the weights and the state that
were there at its beginning. A strategy whose options say that it needs no given boundaries must do with that.

Rows that ``batch`` appends come after the B rows of the task, which stay first: training accuracy is counted on those.
``batch`` sees images in the source's dtype, as they are stored; they are scaled after it, old and new rows alike, and every
later hook sees them scaled. Only ratios of sample weights matter: the loss is sum(weights * losses) / sum(weights).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from clray.types import Array, Batch, Hyper, Params

StrategyState = Any


class Unfrozen(NamedTuple):
    """A part of a state that goes on changing in a lane that has diverged, where nobody looks at it any more.

    All else is frozen at the last finite step by choosing between old and new in every batch, which copies it. This spares
    the large arrays of a replay buffer that copy. The hook ``boundary`` does not see it: its ``value`` is an empty tuple there.
    """

    value: Any


def _is_unfrozen(node: Any) -> bool:
    return isinstance(node, Unfrozen)


def without_unfrozen(state: StrategyState) -> StrategyState:
    """What ``boundary`` sees of a state: parts that are ``Unfrozen`` are empty."""
    import jax

    return jax.tree.map(lambda node: Unfrozen(()) if _is_unfrozen(node) else node, state, is_leaf=_is_unfrozen)


def with_unfrozen(part: StrategyState, whole: StrategyState) -> StrategyState:
    """The inverse of ``without_unfrozen``: takes from ``whole`` what is empty in ``part``."""
    import jax

    return jax.tree.map(lambda own, node: node if _is_unfrozen(node) else own, part, whole, is_leaf=_is_unfrozen)


class StaticSizes(NamedTuple):
    """What is fixed when the program is compiled: the shapes that states may be made of.

    Attributes:
        n_tasks: T.
        classes_per_task: C.
        n_outputs: O, logits of the network.
        n_train: N.
        batch_size: B.
        input_shape: of one sample: (D,) or (height, width, channels).
        dtype: of unscaled images, uint8 or float32.
        scenario: domain, task or class.
    """

    n_tasks: int
    classes_per_task: int
    n_outputs: int
    n_train: int
    batch_size: int
    input_shape: tuple[int, ...]
    dtype: str
    scenario: str = "domain"


def _all_outputs(labels: Array, task: Array | None = None) -> Array | None:
    del labels, task
    return None


class Context(NamedTuple):
    """What a hook may look at besides its state.

    Attributes:
        hyper: the strategy's own traced options, by field name, scalars.
        task: number of the task, int32 scalar, the same in all lanes; with ``boundaries: detected`` how many boundaries were found
            so far in this lane.
        batch: number of the batch within the task, from 0, int32 scalar (0 in hooks called once a task).
        key: random key for this call of this hook of this strategy. Consume it once; split it for more.
        forward: ``(params, images [B, ...]) -> (logits [B, O], hidden [B, H])`` in evaluation mode, scaled images.
        scale: ``images -> images``: the source's dtype to the float32 input of the network.
        losses: ``(logits [B, O], batch) -> [B]``: cross-entropy of each row; what the core takes the weighted mean of.
        sizes: static sizes.
        choices: ``(labels [B], task) -> bool [B, O]``: the outputs that samples with these labels are classified among while
            ``task`` (default: the current one) is trained; None where they are all outputs. See ``choices`` for its use.
    """

    hyper: Hyper
    task: Array
    batch: Array
    key: Array
    forward: Callable[[Params, Array], tuple[Array, Array]]
    scale: Callable[[Array], Array]
    losses: Callable[[Array, Batch], Array]
    sizes: StaticSizes
    choices: Callable[..., Array | None] = _all_outputs


class TaskData(NamedTuple):
    """All training data of one task of one lane."""

    images: Array  # [N, D] or [N, height, width, channels], source dtype, unscaled
    labels: Array  # [N] int32, numbers of outputs


class Step(NamedTuple):
    """What happened on one batch."""

    before: Params
    after: Params
    gradient: Params  # what the optimizer got
    logits: Array  # [rows, O] of all rows of the batch, before the parameters moved
    batch: Batch


def _init(params: Params, sizes: StaticSizes) -> StrategyState:
    del params, sizes
    return ()


def _begin_task(state: StrategyState, params: Params, ctx: Context) -> tuple[StrategyState, Params]:
    del ctx
    return state, params


def _batch(state: StrategyState, batch: Batch, ctx: Context) -> tuple[StrategyState, Batch]:
    del ctx
    return state, batch


def _penalty(state: StrategyState, params: Params, logits: Array, batch: Batch, ctx: Context) -> Array | float:
    del state, params, logits, batch, ctx
    return 0.0


def _gradient(state: StrategyState, gradient: Params, params: Params, batch: Batch, ctx: Context) -> Params:
    del state, params, batch, ctx
    return gradient


def _after_step(state: StrategyState, step: Step, ctx: Context) -> StrategyState:
    del step, ctx
    return state


def _boundary(state: StrategyState, before: StrategyState, params: Params, ctx: Context) -> StrategyState:
    del before, params, ctx
    return state


def _end_task(state: StrategyState, params: Params, data: TaskData, ctx: Context) -> StrategyState:
    del params, data, ctx
    return state


class Strategy(NamedTuple):
    """Pure functions of one lane; see the module's docstring for when each is called.

    ``penalty`` is added to the mean cross-entropy of the batch; ``gradient`` returns the gradient the optimizer gets.
    ``boundary`` gets the state of now, and the state and the parameters with which the task ended: those of now, or with
    ``boundaries: detected`` those of a few batches ago.
    States are pytrees of arrays whose structure, shapes and dtypes never change.
    """

    init: Callable[[Params, StaticSizes], StrategyState] = _init
    begin_task: Callable[[StrategyState, Params, Context], tuple[StrategyState, Params]] = _begin_task
    batch: Callable[[StrategyState, Batch, Context], tuple[StrategyState, Batch]] = _batch
    penalty: Callable[[StrategyState, Params, Array, Batch, Context], Array | float] = _penalty
    gradient: Callable[[StrategyState, Params, Params, Batch, Context], Params] = _gradient
    after_step: Callable[[StrategyState, Step, Context], StrategyState] = _after_step
    boundary: Callable[[StrategyState, StrategyState, Params, Context], StrategyState] = _boundary
    end_task: Callable[[StrategyState, Params, TaskData, Context], StrategyState] = _end_task


def chain(strategies: Sequence[Strategy]) -> Strategy:
    """Several strategies as one: hooks run in order, penalties add up, states are kept in a tuple.

    The chained ``hyper`` maps ``"<position>.<option>"`` to a scalar; each strategy sees its own options only, and a key of
    its own.
    """

    def each(ctx: Context, position: int) -> Context:
        import jax

        prefix = f"{position}."
        own = {name.removeprefix(prefix): value for name, value in ctx.hyper.items() if name.startswith(prefix)}
        return ctx._replace(hyper=own, key=jax.random.fold_in(ctx.key, position))

    def begin_task(states: StrategyState, params: Params, ctx: Context) -> tuple[StrategyState, Params]:
        new = []
        for i, (strategy, state) in enumerate(zip(strategies, states, strict=True)):
            state, params = strategy.begin_task(state, params, each(ctx, i))
            new.append(state)
        return tuple(new), params

    def batch(states: StrategyState, batch: Batch, ctx: Context) -> tuple[StrategyState, Batch]:
        new = []
        for i, (strategy, state) in enumerate(zip(strategies, states, strict=True)):
            state, batch = strategy.batch(state, batch, each(ctx, i))
            new.append(state)
        return tuple(new), batch

    def penalty(states: StrategyState, params: Params, logits: Array, batch: Batch, ctx: Context) -> Array | float:
        total: Array | float = 0.0
        for i, (strategy, state) in enumerate(zip(strategies, states, strict=True)):
            total = total + strategy.penalty(state, params, logits, batch, each(ctx, i))
        return total

    def gradient(states: StrategyState, gradient: Params, params: Params, batch: Batch, ctx: Context) -> Params:
        for i, (strategy, state) in enumerate(zip(strategies, states, strict=True)):
            gradient = strategy.gradient(state, gradient, params, batch, each(ctx, i))
        return gradient

    def init(params: Params, sizes: StaticSizes) -> StrategyState:
        return tuple(strategy.init(params, sizes) for strategy in strategies)

    def after_step(states: StrategyState, step: Step, ctx: Context) -> StrategyState:
        return tuple(
            strategy.after_step(state, step, each(ctx, i)) for i, (strategy, state) in enumerate(zip(strategies, states, strict=True))
        )

    def boundary(states: StrategyState, before: StrategyState, params: Params, ctx: Context) -> StrategyState:
        each_state = enumerate(zip(strategies, states, before, strict=True))
        return tuple(strategy.boundary(state, earlier, params, each(ctx, i)) for i, (strategy, state, earlier) in each_state)

    def end_task(states: StrategyState, params: Params, data: TaskData, ctx: Context) -> StrategyState:
        return tuple(
            strategy.end_task(state, params, data, each(ctx, i)) for i, (strategy, state) in enumerate(zip(strategies, states, strict=True))
        )

    return Strategy(init, begin_task, batch, penalty, gradient, after_step, boundary, end_task)
