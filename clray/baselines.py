"""What a sequence is compared with: experts of single tasks, and one network on the mixture of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clray.assembly import baseline_spec, joint_spec, segment_batches, stack_lanes
from clray.core.lanes import HostLogs
from clray.core.program import TaskArrays
from clray.data.prefetch import prefetch
from clray.draw import side_by_side
from clray.types import HostArray, Purpose

if TYPE_CHECKING:
    from clray.experiment import _Sequence

TrainTable = tuple[Sequence[int], HostArray, HostArray]
"""Steps [L], training accuracy and training loss [L, A]."""


def start_experts(sequence: _Sequence, data: Any, task: int) -> Callable[[], HostLogs]:
    """Starts fresh networks on one task; the returned function waits for their logs, evaluated on that task alone.

    Args:
        data: of the task, on the devices.
    """
    pack = sequence.pack
    tables = [pack.draw_of[member.experiment.seed].lanes(member.experiment, task) for member in sequence.members]
    lanes = sequence.program(baseline_spec(pack.spec), stack_lanes(tables)._replace(strategy={}))
    if pack.spec.cumulative:
        own = side_by_side([pack.draw_of[seed].task(task, pixels=True, cumulative=False) for seed in sequence.seeds])
        data = lanes.place(own, sequence.row_of_lane)
    _, logs = lanes.train(lanes.init(task, Purpose.EXPERT), data, task, pack.sizes.total_batches)
    return lambda: lanes.fetch_logs(logs)


def train_joint(sequence: _Sequence) -> tuple[Any, TrainTable]:
    """One network on the mixture of all tasks: T times a task's batches, streamed in segments of equal length.

    Returns:
        Its state on the devices, and how it was trained.
    """
    pack, sizes = sequence.pack, sequence.sizes
    segment = segment_batches(sizes.total_batches, sizes.n_train // sizes.batch_size)
    horizon = sizes.n_tasks * sizes.total_batches
    rows = segment * sizes.batch_size
    lanes = sequence.program(joint_spec(pack.spec, segment), sequence.table._replace(strategy={}))
    states = lanes.init(purpose=Purpose.JOINT)
    # The stream is shuffled already.
    in_turn = np.arange(rows, dtype=np.int32).reshape(segment, 1, sizes.batch_size).repeat(sizes.n_repeats, axis=1)

    def build(number: int) -> TaskArrays:
        draws = [pack.draw_of[seed] for seed in sequence.seeds]
        return side_by_side([draw.joint(number, rows, in_turn, pixels=pack.source_on is None) for draw in draws])

    windows: list[HostLogs] = []
    before: Any = None
    with prefetch(build, range(horizon // segment)) as items:
        for number, arrays in enumerate(items):
            data = lanes.place(arrays, sequence.row_of_lane, pack.source_on)
            # Task numbers from T on: the keys of the joint network are its own.
            states, logs = lanes.train(states, data, sizes.n_tasks + number, horizon)
            if before is not None:
                windows.append(lanes.fetch_logs(before))  # while the next segment trains
            before = logs
    windows.append(lanes.fetch_logs(before))
    steps = [segment * (i + 1) for i in range(len(windows))]
    return states, (steps, np.concatenate([w.train_accuracy for w in windows]), np.concatenate([w.train_loss for w in windows]))
