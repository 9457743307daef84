"""Lanes as chunks of a fixed width over the devices of a process.

The width is the static size of the compiled program; the last chunk is padded with copies of its last lane, which are
thrown away. Chunks go round-robin over the devices, each a single-device program: no collectives, and no dependence of a
lane's result on its neighbours or on the number of devices. On CPU narrow chunks are faster than one wide vmap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from clray.core.evaluate import Evaluation
from clray.core.program import Lane, LaneState, Pools, Room, Spec, TaskArrays, TaskLogs
from clray.core.task import evaluate_lanes, fresh_lanes, fresh_room, init_lanes, train_task
from clray.core.transfer import to_device, to_host
from clray.process import machine_bytes
from clray.types import HostArray, PlacedArray, Purpose

CPU_WIDTH = 2
ON_LOGS = "accuracy", "loss", "train_accuracy", "train_loss"


@dataclass(frozen=True)
class Chunk:
    """Lanes that run together: positions among all lanes, padded to the common width, and the device they run on."""

    device: jax.Device
    lanes: tuple[int, ...]
    n_real: int


def plan_chunks(n_lanes: int, devices: Sequence[jax.Device], width: int | None = None, narrowest: int = 1) -> tuple[Chunk, ...]:
    """Deals A lanes to devices in chunks of one width.

    Args:
        n_lanes: A.
        devices: of this process that training may use.
        width: lanes a chunk; None: at most ``CPU_WIDTH`` on CPU, all that a device gets elsewhere, as even as possible.
        narrowest: lanes a chunk at least, where ``width`` is None.
    """
    if width is None:
        share = math.ceil(n_lanes / len(devices))
        widest = min(CPU_WIDTH, share) if devices[0].platform == "cpu" else share
        width = max(narrowest, even_width(n_lanes, len(devices), widest))
    chunks: list[Chunk] = []
    for start in range(0, n_lanes, width):
        real = tuple(range(start, min(start + width, n_lanes)))
        chunks.append(Chunk(devices[len(chunks) % len(devices)], real + (real[-1],) * (width - len(real)), len(real)))
    return tuple(chunks)


def even_width(n_lanes: int, n_devices: int, widest: int) -> int:
    """The width of chunks of ``widest`` lanes at most with which all devices get as much to do, and as little padding as can be."""
    rounds = math.ceil(n_lanes / (widest * n_devices))
    return math.ceil(n_lanes / min(rounds * n_devices, n_lanes))


def place_once(array: HostArray, devices: Sequence[jax.Device]) -> dict[jax.Device, PlacedArray]:
    """One copy of an array on each device."""
    return {device: to_device(array, device) for device in devices}


@jax.jit
def _gather(source: PlacedArray, rows: PlacedArray) -> PlacedArray:
    return source[rows]


def device_bytes(device: jax.Device) -> int:
    """Memory that programs can use on a device; CPU devices share that of the machine."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return machine_bytes() // max(1, len(jax.local_devices(backend="cpu")))


class ChunkedLanes:
    """A lanes of one program, spread over devices.

    States are lists with a ``LaneState`` (leading axis W) a chunk; they stay on their devices.
    """

    def __init__(self, spec: Spec, lanes: Lane, pools: Pools, chunks: Sequence[Chunk], pools_on: dict[jax.Device, Pools] | None = None):
        """Places what does not change: traced hyperparameters of each chunk, and the pools once a device.

        Args:
            lanes: host arrays with a leading axis A.
            pools: host arrays.
            pools_on: the same pools, where they are on some devices already.
        """
        self.spec = spec
        self.chunks = tuple(chunks)
        self.pools_on = dict(pools_on or {})
        for device in dict.fromkeys(chunk.device for chunk in self.chunks):
            if device not in self.pools_on:
                self.pools_on[device] = to_device(pools, device)
        self.lanes_of = [to_device(_rows(lanes, chunk), chunk.device) for chunk in self.chunks]
        self.n_lanes = sum(chunk.n_real for chunk in self.chunks)
        self._rooms: list[list[Room]] = []  # with a room a chunk each

    def init(self, task: int = 0, purpose: Purpose = Purpose.INIT) -> list[LaneState]:
        """Fresh states; see ``init_lanes``."""
        return [init_lanes(self.spec, lanes, np.int32(task), purpose) for lanes in self.lanes_of]

    def snapshot(self, states: Sequence[LaneState], task: int = 0) -> HostLogs:
        """Evaluates all lanes as they are, as while ``task`` is trained: logs with L = 1 and no training batches."""
        number = np.int32(task)
        parts = [
            (evaluate_lanes(self.spec, state, lanes, self.pools_on[chunk.device], number), state.params if self.spec.log_weights else {})
            for chunk, state, lanes in zip(self.chunks, states, self.lanes_of, strict=True)
        ]
        return HostLogs([[_as_logs(*part) for part in to_host(parts)]], self.chunks)

    def place(
        self, data: TaskArrays, row_of_lane: Sequence[int], source_on: Mapping[jax.Device, PlacedArray] | None = None
    ) -> list[TaskArrays]:
        """Puts a task's data on the devices.

        Args:
            data: host arrays with one row a repeat in place of W.
            row_of_lane: for each lane the row of ``data`` it trains on.
            source_on: the whole training split [n, *input_shape] on each device; ``data.images`` then holds numbers of its
                images [N, rows], which are gathered there.

        Returns:
            Device arrays of each chunk. Lanes that train on the same rows share a column, and chunks of the same rows all of them.
        """
        rows_of = [[row_of_lane[lane] for lane in chunk.lanes] for chunk in self.chunks]
        n_columns = max(len(set(rows)) for rows in rows_of)  # one number for all chunks, as they run one program
        shared: dict[tuple[Any, ...], TaskArrays] = {}
        placed = []
        for chunk, rows in zip(self.chunks, rows_of, strict=True):
            key = (chunk.device, *rows)
            if key not in shared:
                shared[key] = self._place(data, rows, n_columns, chunk.device, source_on)
            placed.append(shared[key])
        return placed

    def _place(
        self,
        data: TaskArrays,
        rows: Sequence[int],
        n_columns: int,
        device: jax.Device,
        source_on: Mapping[jax.Device, PlacedArray] | None,
    ) -> TaskArrays:
        columns, which = list(rows), None
        if n_columns < len(rows):
            columns = list(dict.fromkeys(rows))
            which = np.array([columns.index(row) for row in rows], np.int32)
            columns += columns[-1:] * (n_columns - len(columns))
        # A plain slice copies faster where columns are neighbouring repeats.
        chosen: Any = slice(columns[0], columns[-1] + 1) if columns == list(range(columns[0], columns[-1] + 1)) else columns
        own = jax.tree.map(lambda leaf: np.ascontiguousarray(leaf[:, chosen]), data)._replace(column=which)
        own = to_device(own, device)
        return own if source_on is None else own._replace(images=_gather(source_on[device], own.images))

    def train(
        self, states: Sequence[LaneState], data: Sequence[TaskArrays], task: int, horizon: int, segment: int = 0
    ) -> tuple[list[LaneState], list[TaskLogs]]:
        """Starts the training of one task (or a segment of it) on all devices, and does not wait for it."""
        numbers = np.int32(task), np.int32(horizon), np.int32(segment)
        out = [
            train_task(self.spec, state, lanes, self.pools_on[chunk.device], rows, *numbers, room)
            for chunk, state, lanes, rows, room in zip(self.chunks, states, self.lanes_of, data, self._take_rooms(states), strict=True)
        ]
        return [state for state, _ in out], [logs for _, logs in out]

    def _take_rooms(self, states: Sequence[LaneState]) -> list[Room]:
        if self._rooms:
            return self._rooms.pop(0)  # the oldest: nobody has a view of it any more
        return [
            fresh_room(self.spec, state, lanes, self.pools_on[chunk.device], chunk.device)
            for chunk, state, lanes in zip(self.chunks, states, self.lanes_of, strict=True)
        ]

    def drop_rooms(self) -> None:
        """Gives the memory that is kept for the logs of further tasks back."""
        self._rooms.clear()

    def fetch_state(self, states: Sequence[LaneState]) -> dict[str, HostArray]:
        """States of all lanes as flat host arrays: tree path to [A, ...]."""
        return flatten_state(self._gather(to_host(list(states)), axis=0))

    def restore_state(self, flat: Mapping[str, HostArray]) -> list[LaneState]:
        """The inverse of ``fetch_state``, placed on the devices.

        Raises:
            ValueError: ``flat`` does not have the structure, shapes and dtypes of this program's state.
        """
        template = jax.eval_shape(lambda lanes: fresh_lanes(self.spec, lanes, np.int32(0)), self.lanes_of[0])
        paths, treedef = jax.tree_util.tree_flatten_with_path(template)
        names = [jax.tree_util.keystr(path) for path, _ in paths]
        if sorted(names) != sorted(flat):
            raise ValueError(f"state holds {sorted(flat)}, expected {sorted(names)}")
        for name, (_, leaf) in zip(names, paths, strict=True):
            expected = (self.n_lanes, *leaf.shape[1:])
            if flat[name].shape != expected or flat[name].dtype != leaf.dtype:
                raise ValueError(f"state {name} is {flat[name].dtype}{flat[name].shape}, expected {leaf.dtype}{expected}")
        whole = jax.tree.unflatten(treedef, [flat[name] for name in names])
        return [to_device(_rows(whole, chunk), chunk.device) for chunk in self.chunks]

    def fetch_logs(self, logs: Sequence[TaskLogs]) -> HostLogs:
        """One transfer of everything that a task, or a segment of it, produced. ``logs`` may be overwritten by a later task:
        on CPU, where the host's arrays are the device's, once the result is closed, elsewhere from now on."""
        host = to_host(list(logs))
        if self.chunks[0].device.platform == "cpu":
            return HostLogs([host], self.chunks, [lambda: self._reuse(logs)])
        self._reuse(logs)
        return HostLogs([host], self.chunks)

    def _reuse(self, logs: Sequence[TaskLogs]) -> None:
        self._rooms.append([Room(part.hidden, part.weights) for part in logs])

    def _gather(self, parts: Sequence[Any], axis: int) -> Any:
        return gather_lanes(parts, self.chunks, axis)


def _as_logs(now: Evaluation, params: dict[str, HostArray]) -> TaskLogs:
    untrained = np.full((1, len(now.accuracy)), np.nan, np.float32)
    weights = {name: leaf[None] for name, leaf in params.items()}
    return TaskLogs(now.accuracy[None], now.loss[None], untrained, untrained, now.hidden[None], weights, now.accuracy, now.loss)


def _rows(tree: Any, chunk: Chunk) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[list(chunk.lanes)], tree)


def gather_lanes(parts: Sequence[Any], chunks: Sequence[Chunk], axis: int) -> Any:
    """Joins per-chunk host arrays along the lane axis and drops the padding."""

    def join(*leaves: HostArray) -> HostArray:
        real = [leaf[(slice(None),) * axis + (slice(chunk.n_real),)] for leaf, chunk in zip(leaves, chunks, strict=True)]
        return np.concatenate(real, axis)

    return jax.tree.map(join, *parts)


def flatten_state(state: LaneState) -> dict[str, HostArray]:
    """Tree path to array."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


class LaneEvaluations(NamedTuple):
    """Evaluations of some lanes on the host."""

    accuracy: HostArray  # [L, R, E]
    loss: HostArray  # [L, R, E]
    end_accuracy: HostArray  # [R, E]
    end_loss: HostArray  # [R, E]


class HostLogs:
    """What a task produced, on the host, still in segments and chunks: large tensors are joined one log point at a time."""

    def __init__(self, segments: Sequence[Sequence[TaskLogs]], chunks: Sequence[Chunk], on_close: Sequence[Callable[[], None]] = ()):
        """Args:
        segments: logs of each segment of a task in turn, a chunk each.
        on_close: called by ``close``.
        """
        self._on_close = list(on_close)
        self._segments = [list(parts) for parts in segments]
        self._chunks = chunks
        self._where = {lane: (part, row) for part, chunk in enumerate(chunks) for row, lane in enumerate(chunk.lanes[: chunk.n_real])}
        joined = [gather_lanes([{name: getattr(part, name) for name in ON_LOGS} for part in parts], chunks, axis=1) for parts in segments]
        logged = {name: np.concatenate([each[name] for each in joined]) for name in ON_LOGS}
        self.accuracy: HostArray = logged["accuracy"]  # [L, A, E]
        self.loss: HostArray = logged["loss"]  # [L, A, E]
        self.train_accuracy: HostArray = logged["train_accuracy"]  # [L, A]
        self.train_loss: HostArray = logged["train_loss"]  # [L, A]
        ends = [(part.end_accuracy, part.end_loss) for part in segments[-1]]
        self.end_accuracy, self.end_loss = gather_lanes(ends, chunks, axis=0)  # [A, E]
        self.n_logs: int = self.accuracy.shape[0]
        self.weight_shapes: dict[str, tuple[int, ...]] = {name: leaf.shape[2:] for name, leaf in segments[0][0].weights.items()}

    def followed_by(self, later: HostLogs) -> HostLogs:
        """The logs of this segment and of the next ones as one, which takes over what has to be closed."""
        whole = HostLogs([*self._segments, *later._segments], self._chunks, [*self._on_close, *later._on_close])
        for part in (self, later):
            part._segments, part._on_close = [], []
        return whole

    def close(self) -> None:
        """Lets go of hidden states and weights, so that a later task may be logged in their memory."""
        self._segments = []
        while self._on_close:
            self._on_close.pop()()

    def of_lanes(self, lanes: range) -> LaneEvaluations:
        """The evaluations of neighbouring lanes."""
        own = slice(lanes.start, lanes.stop)
        return LaneEvaluations(self.accuracy[:, own], self.loss[:, own], self.end_accuracy[own], self.end_loss[own])

    def hidden(self, lanes: Sequence[int]) -> Iterator[list[HostArray]]:
        """At each log point in turn [U, S/C, H] of every lane."""
        places = [self._where[lane] for lane in lanes]
        for parts in self._segments:
            for log in range(len(parts[0].accuracy)):
                yield [parts[part].hidden[log, row] for part, row in places]

    def weights(self, name: str, lanes: Sequence[int]) -> Iterator[HostArray]:
        """At each log point in turn [*shape] of every lane."""
        places = [self._where[lane] for lane in lanes]
        for parts in self._segments:
            for log in range(len(parts[0].accuracy)):
                for part, row in places:
                    yield parts[part].weights[name][log, row]
