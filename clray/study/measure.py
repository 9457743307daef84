"""Compares the gradients of all memory sets on the tasks before one task, network after network on each device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from clray.core.program import Pools
from clray.core.transfer import to_device
from clray.study.gradients import Compared, Loss, Rows, compare_sets, full_gradient, make_steps, pad_steps, record_all
from clray.types import HostArray

GROUP = 16
"""Chains of one launch. Between launches a run can be stopped."""


class Chain(NamedTuple):
    """The sets of one draw of one method on the tasks before a task, from the smallest to the largest."""

    method: int
    draw: int | slice  # a slice where one draw stands for all
    sets: list[HostArray]  # rows, past * N + row; without those of everything


class Sums:
    """What ``compare_sets`` found for every set of a task.

    Attributes:
        arrays: dot, squared and distance (methods, F, S, R, arrays); see ``Compared``.
        everything: (R, arrays) squared norms of the gradient of everything.
    """

    def __init__(self, n_methods: int, n_fractions: int, n_draws: int, n_repeats: int, n_arrays: int):
        shape = (n_methods, n_fractions, n_draws, n_repeats, n_arrays)
        self.arrays = {name: np.full(shape, np.nan) for name in Compared._fields}
        self.everything = np.full((n_repeats, n_arrays), np.nan)

    def put(self, repeat: int, chains: Sequence[Chain], compared: Compared) -> None:
        """Results of a launch; steps are those of the chains, in order."""
        for name, values in zip(Compared._fields, compared, strict=True):
            start = 0
            for method, draw, sets in chains:
                part = np.asarray(values[start : start + len(sets)], np.float64)
                self.arrays[name][method, : len(sets), draw, repeat] = part[:, None] if isinstance(draw, slice) else part
                start += len(sets)

    def put_everything(self, repeat: int, n_below: Sequence[int], compared: Compared, norms: Sequence[float]) -> None:
        """The set of everything, which is that of every fraction from number ``n_below`` on, a number a method."""
        self.everything[repeat] = norms
        for name, values in zip(Compared._fields, compared, strict=True):
            for method, first in enumerate(n_below):
                self.arrays[name][method, first:, :, repeat] = values[0]


class Task(NamedTuple):
    """What is the same for all networks of a task.

    Attributes:
        n_below: for each method the number of fractions whose sets are not everything.
        n_rows: longest list of rows of a launch, over all tasks, so that they share a program.
        n_steps: most sets of a launch.
    """

    loss: Loss
    names: Sequence[str]
    pools: Pools
    n_below: Sequence[int]
    n_rows: int
    n_steps: int


class Network(NamedTuple):
    """One ideal model and the samples and sets it is measured on."""

    repeat: int
    params: dict[str, HostArray]
    rows: Rows
    chains: Sequence[Chain]


def measure(task: Task, networks: Sequence[Callable[[], Network]], devices: Sequence[jax.Device], sums: Sums) -> None:
    """Fills ``sums``.

    Args:
        networks: make what is measured when its turn comes.
    """
    stop = threading.Event()

    def one(device: jax.Device, network: Network) -> None:
        params = to_device(network.params, device)
        pools, rows = to_device(task.pools, device), to_device(network.rows, device)
        recorded = record_all(task.loss, params, pools, rows) if task.loss.stored else None
        full = full_gradient(task.loss, params, pools, rows)

        def compare(sets: Sequence[Sequence[HostArray]]) -> Compared:
            steps = to_device(pad_steps(make_steps(sets), task.n_rows, task.n_steps), device)
            found: Compared = jax.device_get(compare_sets(task.loss, params, pools, rows, recorded, full, steps))
            return found

        everything = compare([[np.arange(int(network.rows.n), dtype=np.int32)]])
        norms = jax.device_get(full)
        sums.put_everything(
            network.repeat, task.n_below, everything, [float(np.sum(np.square(norms[name], dtype=np.float64))) for name in task.names]
        )
        for start in range(0, len(network.chains), GROUP):
            if stop.is_set():
                return
            group = network.chains[start : start + GROUP]
            sums.put(network.repeat, group, compare([chain.sets for chain in group]))

    waiting: queue.SimpleQueue[tuple[int, int, Callable[[], Network]]] = queue.SimpleQueue()
    for part, n_parts, network in shares(networks, len(devices)):
        waiting.put((part, n_parts, network))

    def worker(device: jax.Device) -> None:
        while not stop.is_set():
            try:
                part, n_parts, make = waiting.get_nowait()
            except queue.Empty:
                return
            network = make()
            one(device, network._replace(chains=network.chains[part::n_parts]))

    with ThreadPoolExecutor(len(devices), "clray-study") as pool:
        try:
            for done in [pool.submit(worker, device) for device in devices]:
                done.result()
        finally:
            stop.set()


def shares(items: Sequence[Any], n: int) -> list[tuple[int, int, Any]]:
    """(part, parts, item): whole items as long as all n workers have one, the rest split into n parts."""
    whole = len(items) - len(items) % n
    return [(0, 1, item) for item in items[:whole]] + [(part, n, item) for item in items[whole:] for part in range(n)]


def in_growing_order(sets: Sequence[Sequence[HostArray]]) -> list[HostArray]:
    """Sets over several tasks as rows, each beginning with the one before it where that is part of it.

    Args:
        sets: for each fraction the rows of each task.
    """
    ordered: list[HostArray] = []
    before: Sequence[HostArray] = ()
    for parts in sets:
        grown = bool(before) and all(np.array_equal(new[: len(old)], old) for old, new in zip(before, parts, strict=True))
        added = [new[len(old) :] for old, new in zip(before, parts, strict=True)] if grown else parts
        ordered.append(np.concatenate([*ordered[-1:], *added] if grown else [*added]))
        before = parts
    return ordered
