"""Networks trained with memory sets in place of the past: lanes of one program, a wave of them at a time.

They begin with the weights of the ideal model of their repeat and see its batches, except that samples of past tasks are those of
the memory sets (see ``batches``). With a memory of everything that is the ideal model itself, which is not trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import numpy as np

from clray.assembly import stack_lanes
from clray.config import Experiment
from clray.core.lanes import CPU_WIDTH, ChunkedLanes, plan_chunks
from clray.core.program import Lane, Pools, Spec, TaskArrays
from clray.data.prefetch import prefetch
from clray.study.batches import StudyDraw, union_batches, with_memory
from clray.types import HostArray

GPU_WAVE = 64
"""Lanes whose data is on a GPU at once."""

Memories = Callable[[int, int], HostArray]
"""``(lane, past task) -> rows`` of the lane's memory set."""


def downstream_spec(spec: Spec) -> Spec:
    """The program of the ideal models, evaluated after the last batch alone."""
    return replace(spec, log_frequency=spec.total_batches, n_kept=0, log_weights=False, n_segments=1)


def train_with_memories(
    experiment: Experiment,
    draw: StudyDraw,
    spec: Spec,
    pools: Pools,
    devices: Sequence[jax.Device],
    lanes: Sequence[int],
    memories: Memories,
) -> HostArray:
    """Trains a network a lane through all tasks.

    Args:
        spec: see ``downstream_spec``.
        lanes: of each the position of its repeat.

    Returns:
        (lanes, T, E) accuracy after each task; NaN where a lane diverged.
    """
    per_wave = len(devices) * CPU_WIDTH if devices[0].platform == "cpu" else GPU_WAVE
    per_wave = min(per_wave, len(lanes))
    table = draw.lanes(experiment)
    found = []
    for start in range(0, len(lanes), per_wave):
        # The last wave is as wide as the others, so that all share a program.
        wave = [min(lane, len(lanes) - 1) for lane in range(start, start + per_wave)]
        own = stack_lanes([jax.tree.map(lambda leaf, at=lanes[lane]: leaf[[at]], table) for lane in wave])
        found.append(_train_wave(experiment, draw, spec, pools, devices, own, [lanes[lane] for lane in wave], wave, memories))
    return np.concatenate(found)[: len(lanes)]


def _train_wave(
    experiment: Experiment,
    draw: StudyDraw,
    spec: Spec,
    pools: Pools,
    devices: Sequence[jax.Device],
    table: Lane,
    repeats: Sequence[int],
    numbers: Sequence[int],
    memories: Memories,
) -> HostArray:
    sizes = draw.sizes
    chunked = ChunkedLanes(spec, table, pools, plan_chunks(len(repeats), devices))
    states = chunked.init()
    horizon = sizes.n_tasks * sizes.total_batches

    def build(task: int) -> TaskArrays:
        lanes = []
        for lane, position in zip(numbers, repeats, strict=True):
            batches = union_batches(experiment, sizes, experiment.repeat_numbers[position], task)
            sets = [memories(lane, past) for past in range(task)]
            lanes.append((position, with_memory(batches, task, sizes.n_train, sets)))
        return draw.arrays(lanes, pixels=True)

    accuracies = []
    with prefetch(build, range(sizes.n_tasks)) as items:
        for task, arrays in enumerate(items):
            states, logs = chunked.train(states, chunked.place(arrays, range(len(repeats))), task, horizon)
            accuracies.append(chunked.fetch_logs(logs).end_accuracy)
    return np.stack(accuracies, axis=1)
