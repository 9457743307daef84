"""What is fixed when a program is compiled, and what is handed to it."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from clray.models.pure import PureModel, pure_model
from clray.options import ModelOptions, OptimizerOptions, StrategyOptions
from clray.strategies.base import StaticSizes, Strategy, chain
from clray.strategies.checked import checked
from clray.transform import Transform
from clray.types import Array, ModelState, Params, PlacedArray

PRECISIONS = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "BF16_BF16_F32"}
"""Matrix products of float32 arrays on a GPU: in full, with inputs rounded to 10 bits of mantissa, or to 7. CPUs ignore it.

JAX's own name ``bfloat16`` is another one for its default, which on NVIDIA GPUs is tensorfloat32."""


def products_in(precision: str) -> AbstractContextManager[Any]:
    """Where programs are traced in it, matrix products have that precision; elsewhere JAX's default, not float32.

    Args:
        precision: float32, tf32 or bfloat16.
    """
    return jax.default_matmul_precision(PRECISIONS[precision])


@dataclass(frozen=True)
class Spec:
    """Everything static about a training program. Equal specs share one compiled program in a process.

    Options are in their ``structure()`` form: traced hyperparameters erased.

    Attributes:
        input_shape: of one sample: (D,) or (height, width, channels).
        dtype: of images before they are scaled, uint8 or float32.
        scale: factor from source dtype to model input (1/255 for uint8, 1 for floats).
        n_tasks: T.
        classes_per_task: C.
        n_outputs: logits of the head.
        n_train: N.
        batch_size: B.
        total_batches: batches of one task.
        log_frequency: batches between log points.
        n_kept: S/C, samples of each class whose hidden states are logged; 0 logs none.
        log_weights: whether parameters are logged.
        n_segments: calls in which a task is trained; divides L. More than 1 where the logs of a task do not fit on the device.
        precision: of matrix products: float32, tf32 or bfloat16.
        eval_rows: most samples that are evaluated in one pass; whole classes where they fit.
        scenario: domain, task or class; see ``core.scenario``.
        seen: for each task, how many outputs are a choice (scenario class with active classes seen); empty: all outputs are.
        window: batches between looks for the boundaries of tasks; 0: boundaries are given.
        threshold: fall of the training accuracy from window to window that ends a task.
    """

    model: ModelOptions
    optimizer: OptimizerOptions
    strategy: tuple[StrategyOptions, ...]
    input_shape: tuple[int, ...]
    dtype: str
    scale: float
    n_tasks: int
    classes_per_task: int
    n_outputs: int
    n_train: int
    batch_size: int
    total_batches: int
    log_frequency: int
    n_kept: int
    log_weights: bool
    reset_optimizer: bool = False
    n_segments: int = 1
    eval_rows: int = 2048
    precision: str = "float32"
    scenario: str = "domain"
    seen: tuple[int, ...] = ()
    window: int = 0
    threshold: float = 0.0

    @property
    def batches_per_epoch(self) -> int:
        """N // B; a last partial batch is dropped."""
        return self.n_train // self.batch_size

    @property
    def n_logs(self) -> int:
        """L."""
        return self.total_batches // self.log_frequency

    def products(self) -> AbstractContextManager[Any]:
        """``products_in`` the experiment's precision."""
        return products_in(self.precision)

    @property
    def pure_model(self) -> PureModel:
        """The model as pure functions of one lane."""
        return pure_model(self.model, self.input_shape, self.n_outputs)

    @property
    def cumulative(self) -> bool:
        """Whether batches come from all tasks so far; see ``TaskArrays``."""
        return any(options.trains_on == "all_so_far" for options in self.strategy)

    @property
    def strategy_sizes(self) -> StaticSizes:
        """What strategies know of the sizes."""
        return StaticSizes(
            self.n_tasks,
            self.classes_per_task,
            self.n_outputs,
            self.n_train,
            self.batch_size,
            self.input_shape,
            self.dtype,
            self.scenario,
        )

    @property
    def chained_strategy(self) -> Strategy:
        """The composed strategy."""
        return _chained(self.strategy)


@functools.lru_cache(maxsize=64)
def _chained(options: tuple[StrategyOptions, ...]) -> Strategy:
    return chain([checked(option.build(), option.name) for option in options])


class Watch(NamedTuple):
    """What one lane knows about where tasks end, where it is not told."""

    total: Array  # float32 scalar: training accuracies of this window so far, added up
    reference: Array  # float32 scalar: mean accuracy of the window before; NaN where there is none to compare with
    n_found: Array  # int32 scalar: boundaries found so far
    steps: Array  # int32 [M]: batches of the current task, from 1, after which one was found; then zeros
    params: Params  # at the end of the window before
    strategy: Any  # strategy's state at the end of the window before, without what is ``Unfrozen``


class LaneState(NamedTuple):
    """What one lane carries from batch to batch and from task to task. With lanes: a leading axis W on every leaf."""

    params: Params
    model_state: ModelState
    optimizer: Any
    strategy: Any
    batches: Array  # int32 scalar: batches trained in all tasks so far
    diverged: Array  # bool scalar: loss or update was not finite once; parameters are frozen since
    watch: Watch | None = None  # where boundaries are detected


class Lane(NamedTuple):
    """What sets one lane apart from the others. With lanes: a leading axis W on every leaf."""

    seed: PlacedArray  # uint32 scalar
    repeat: PlacedArray  # int32 scalar
    optimizer: dict[str, PlacedArray]  # traced options of the optimizer, float32 scalars
    strategy: dict[str, PlacedArray]  # "<position>.<option>" to float32 scalar
    pool: PlacedArray  # int32 [U]: classes of the source this lane evaluates on
    labels: PlacedArray  # int32 [E, C]: position in ``pool`` of the class with label y in evaluated task e
    outputs: PlacedArray | None = None  # int32 [E, C]: output that stands for label y in task e; None in scenario domain: y
    transform: Transform | None = None  # leading axis E: of the images of task e; U is then E*C, task after task


class Pools(NamedTuple):
    """Data without a lane axis, once on every device."""

    images: PlacedArray  # [K, P, *input_shape], source dtype
    mean: PlacedArray | None  # [channels] float32, in scaled units; None where images are only scaled
    deviation: PlacedArray | None  # like mean
    train: PlacedArray = None  # [n, *input_shape], source dtype: the whole training split, where batches are taken from it


class TaskArrays(NamedTuple):
    """The training data of one task for W lanes, a column each; or fewer columns where lanes share them, see ``column``.

    In a cumulative program a task trains on images of earlier tasks too. There are no copies of these: ``images`` and
    ``order`` hold numbers of images in ``Pools.train``, ``order_labels`` what the latter are labelled with. Where ``Pools.train``
    is not there, they hold the images themselves, a copy for every visit.
    """

    images: PlacedArray  # [N, W, *input_shape], source dtype; cumulative: [N, W] int32 or as always
    labels: PlacedArray  # [N, W] int32
    order: PlacedArray  # [total batches, W, B] int32: samples of every batch, as rows of ``images``; cumulative: see above
    order_labels: PlacedArray = None  # cumulative: [total batches, W, B] int32
    column: PlacedArray = None  # [W] int32: the column of each lane; None: a column a lane, in their order


class Room(NamedTuple):
    """Where the large logs of a task are written to: memory of an earlier task's, which a CPU would have to clear page by page."""

    hidden: PlacedArray  # [L, W, U, S/C, H] float32
    weights: dict[str, PlacedArray]  # [L, W, *shape] each


class TaskLogs(NamedTuple):
    """What one task produces, accumulated on the device, with lanes W behind the log axis."""

    accuracy: PlacedArray  # [L, W, E] float32
    loss: PlacedArray  # [L, W, E] float32
    train_accuracy: PlacedArray  # [L, W] float32: mean over the batches of the log window
    train_loss: PlacedArray  # [L, W] float32
    hidden: PlacedArray  # [L, W, U, S/C, H] float32
    weights: dict[str, PlacedArray]  # [L, W, *shape] each; empty where weights are not logged
    end_accuracy: PlacedArray  # [W, E] float32, after the last batch
    end_loss: PlacedArray  # [W, E] float32
