"""Trials from their files to their committed folders: the only place where config, data, core and store meet.

A pack is one or more trials that share a compiled program: they differ only in seed and in traced hyperparameters. While
task t trains on the devices, one background thread builds the data of task t + 1 and another writes what task t - 1
produced; the main thread starts programs. Everything that a task of a trial leaves behind becomes visible in one commit, which
waits for the disk in a thread of its own: what follows is trained and written meanwhile.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from clray.artifacts import TrialFolders
from clray.assembly import make_pools, make_spec, stack_lanes
from clray.baselines import start_experts, train_joint
from clray.calibration import lane_width
from clray.config import Experiment
from clray.core.lanes import CPU_WIDTH, ChunkedLanes, HostLogs, device_bytes, place_once, plan_chunks
from clray.core.program import Lane, Pools, TaskArrays
from clray.data.cache import open_dataset
from clray.data.prefetch import prefetch
from clray.devices import described, training_devices
from clray.draw import Draw, side_by_side
from clray.flush import FlushThreads, PackFolders
from clray.memory import check_fits, estimate, segments_that_fit
from clray.process import machine_bytes, width_by_hand
from clray.sizes import check_host, sizes_of
from clray.store.layout import task_folder
from clray.types import HostArray

LOG_SHARE = 0.3
"""Part of the devices' memory that the logs of one task may fill; those of the next one are there at the same time."""

SOURCE_SHARE = 0.2
"""Part of a device's memory that the training split may fill so that tasks are gathered there."""

Report = Callable[[Mapping[str, Any]], None]


@dataclass
class Seconds:
    """Where the time of a run went, by phase, in seconds. Phases overlap: their sum can exceed the wall time."""

    phases: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    _adding: threading.Lock = field(default_factory=threading.Lock)

    def add(self, phase: str, since: float) -> None:
        """Counts the time from ``since`` (``time.perf_counter``) to now."""
        taken = time.perf_counter() - since
        with self._adding:
            self.phases[phase] = self.phases.get(phase, 0.0) + taken

    def total(self) -> float:
        """Wall seconds so far."""
        return time.perf_counter() - self.started


class Member:
    """One trial of a pack.

    Attributes:
        outcome: what became of it: the content of RESULT.json, an exception, or None while it runs.
        first: the task to go on with.
        state: host arrays [R, ...] before that task; None before task 0.
        done: folders that are committed already.
        width: lanes a chunk of what is committed of it (see ``Commit``); None where nothing is, or it is not known.
    """

    def __init__(self, experiment: Experiment, folders: TrialFolders, report: Report | None = None):
        self.experiment = experiment
        self.folders = folders
        self.report = report or (lambda event: None)
        self.log = folders.log
        self.outcome: Mapping[str, Any] | Exception | None = None
        self.first = 0
        self.state: dict[str, HostArray] | None = None
        self.done: frozenset[str] = frozenset()
        self.width: int | None = None

    @property
    def failed(self) -> bool:
        """Whether an exception ended it."""
        return isinstance(self.outcome, Exception)

    def guard(self, action: Callable[[], None], anyway: bool = False) -> None:
        """Runs an action of this trial; a failure ends this trial and no other.

        Args:
            anyway: also where the trial has failed.
        """
        if self.failed and not anyway:
            return
        try:
            action()
        except Exception as error:
            self.outcome = error


class TrialPack:
    """Trials of one program in this process.

    Args:
        members: trials whose experiments differ only in seed and traced hyperparameters.
        devices: JAX devices to use; default ``training_devices()``.
        width: lanes a chunk; default what was measured on this machine, see ``clray.calibration``.
        log_bytes: memory that the logs of a task may fill on all devices together; default a share of what they have.
        gather: keep the training split on the devices and gather tasks there, instead of building them on the host; default
            on everything but CPUs, where the split is small against the memory, and everywhere for cumulative training, where
            the host would build a copy of an image for every time it is visited.
    """

    def __init__(
        self,
        members: Sequence[Member],
        devices: Sequence[jax.Device] | None = None,
        width: int | None = None,
        log_bytes: int | None = None,
        gather: bool | None = None,
    ):
        self.members = list(members)
        self.devices = list(devices or training_devices())
        self.on_cpu = self.devices[0].platform == "cpu"
        self.width = width
        self.flush_threads = FlushThreads()
        self.seconds = Seconds()
        since = time.perf_counter()
        experiment = members[0].experiment
        dataset = open_dataset(experiment.dataset)
        self.sizes = sizes_of(experiment, dataset.info)
        check_host(self.sizes)
        spec = make_spec(experiment, self.sizes)
        # As if all devices were as full as the fullest.
        n_lanes = len(members) * self.sizes.n_repeats
        filled = n_lanes / math.ceil(n_lanes / len(self.devices))
        available = log_bytes if log_bytes is not None else int(LOG_SHARE * filled * min(map(device_bytes, self.devices)))
        need = estimate(experiment, self.sizes, not self.on_cpu, len(self.devices))
        memory = machine_bytes() if self.on_cpu else sum(map(device_bytes, self.devices))
        n_seeds = len({member.experiment.seed for member in members})
        check_fits(need, self.sizes, members[0].folders.trial_id, memory, len(members), n_seeds, not self.on_cpu)
        segments = segments_that_fit(experiment, self.sizes, len(members), available)
        self.spec = replace(spec, n_segments=segments)
        for member in members[1:]:
            if make_spec(member.experiment, self.sizes) != spec:
                raise ValueError(f"{member.folders.trial_id} needs another program than {members[0].folders.trial_id}")
        self.draw_of = {m.experiment.seed: Draw(m.experiment, dataset, self.sizes) for m in members}
        pools = next(iter(self.draw_of.values())).loader.eval_pools()
        self.pools = make_pools(pools.images, experiment, dataset, flat=not experiment.model.takes_images)
        self.eval_samples = pools.indices[:, : experiment.logging.n_subsamples // experiment.sequence.classes_per_task]
        self.steps = [experiment.logging.log_frequency * (i + 1) for i in range(self.sizes.n_logs)]
        self.pools_on: dict[Any, Pools] | None = None
        source = dataset.train_images.reshape(-1, *self.sizes.input_shape)
        if experiment.sequence.transforms:
            gather = False  # images are transformed on the host
        if spec.cumulative:
            if gather is None or gather:
                self.pools = self.pools._replace(train=np.ascontiguousarray(source))
            gather = False
        fits = not self.on_cpu and source.nbytes < SOURCE_SHARE * device_bytes(self.devices[0])
        self.source_on = place_once(np.asarray(source), self.devices) if (fits if gather is None else gather) else None
        self.pixels = self.source_on is None and self.pools.train is None
        self.seconds.add("data", since)

    def run(self) -> list[Mapping[str, Any] | Exception]:
        """Runs what is not committed yet and writes RESULT.json of every trial.

        Returns:
            The content of RESULT.json, or the exception that ended the trial, a member each.
        """
        for member in self.members:
            member.guard(lambda member=member: self._begin(member))  # type: ignore[misc]
        alive = [member for member in self.members if member.outcome is None]
        for first, width in sorted({(member.first, self._width(member)) for member in alive}):
            _Sequence(self, [member for member in alive if (member.first, self._width(member)) == (first, width)], width).run(first)
        share = self.seconds.total() / len(self.members)
        for member in self.members:
            member.guard(lambda member=member: self._finish(member, share))  # type: ignore[misc]
        return [member.outcome for member in self.members]  # type: ignore[misc]

    def _width(self, member: Member) -> int:
        """Lanes a chunk that a trial goes on with, on CPUs: its last bits must not depend on what was interrupted. 0: as comes."""
        return member.width or 0 if self.on_cpu and width_by_hand() is None else 0

    def _begin(self, member: Member) -> None:
        draw = self.draw_of[member.experiment.seed]
        member.folders.on_damage = lambda text: member.report({"event": "damaged", "text": text})
        member.folders.begin(member.experiment, draw.classes, self.eval_samples, *draw.loader.transforms)
        member.first, member.state, member.done = member.folders.resume_point(self.sizes.n_tasks)
        member.done |= {folder for folder in ("initial", "joint") if member.folders.committed(folder)}
        member.width = member.folders.width_of(task_folder(member.first - 1) if member.first else "initial")
        member.log.info("training on %s", described(self.devices))
        if note := self.sizes.after_the_last_log(member.experiment.logging.log_frequency):
            member.log.info("%s", note)
        if member.first:
            member.log.info("resuming after task %d of %d", member.first, self.sizes.n_tasks)

    def _finish(self, member: Member, seconds: float) -> None:
        member.outcome = member.folders.finish(member.experiment, seconds, self.seconds.phases)


class _Sequence:
    """The members of a pack that go on from the same task, as lanes: trial after trial, repeat after repeat."""

    def __init__(self, pack: TrialPack, members: Sequence[Member], width: int = 0):
        """Args:
        width: lanes a chunk, where they went on with; 0: what is fastest. Several trials get two at least on CPUs, as one lane a
            chunk rounds otherwise: so the bits of each do not depend on how many there are.
        """
        self.pack = pack
        self.members = list(members)
        self.sizes = pack.sizes
        self.n_repeats = pack.sizes.n_repeats
        self.seconds = pack.seconds
        self.first = 0
        self.seeds = list(dict.fromkeys(member.experiment.seed for member in members))
        n_lanes = len(members) * self.n_repeats
        since = time.perf_counter()
        chosen = pack.width or width or lane_width(pack.spec, n_lanes, pack.devices, pack.sizes.n_tasks)
        self.planning = time.perf_counter() - since  # trying widths, which is mostly compiling
        self.chunks = plan_chunks(n_lanes, pack.devices, chosen, CPU_WIDTH if pack.on_cpu and len(pack.members) > 1 else 1)
        for member in members:
            member.folders.width = len(self.chunks[0].lanes)
        starts = [self.seeds.index(member.experiment.seed) * self.n_repeats for member in members]
        self.row_of_lane = [start + repeat for start in starts for repeat in range(self.n_repeats)]
        self.table = stack_lanes([pack.draw_of[member.experiment.seed].lanes(member.experiment) for member in members])
        self.lanes = self.program(pack.spec, self.table)
        self.folders = PackFolders(pack, self.members)

    def program(self, spec: Any, table: Lane) -> ChunkedLanes:
        """The lanes of ``table`` in another program of the same chunks, with the pools that are on the devices already."""
        lanes = ChunkedLanes(spec, table, self.pack.pools, self.chunks, self.pack.pools_on)
        self.pack.pools_on = lanes.pools_on
        return lanes

    def run(self, first: int) -> None:
        """Trains from task ``first`` on, with the baselines that are asked for."""
        with self.folders:
            self._run(first)

    def _run(self, first: int) -> None:
        self.first = first
        since = time.perf_counter()
        fresh = self.lanes.init() if first == 0 or self._missing("initial") else []
        if fresh or first < self.sizes.n_tasks:
            self.seconds.add("compile", since - self.planning)
        try:
            with ThreadPoolExecutor(1, "clray-flush") as flusher:
                pending = [flusher.submit(self._commit_initial, fresh)] if self._missing("initial") else []
                if first < self.sizes.n_tasks:
                    self._train(fresh if first == 0 else self._restored(), first, flusher, pending)
                for writing in pending:
                    writing.result()
        finally:
            self.lanes.drop_rooms()
        self.folders.wait()  # where nothing could be committed, nothing more is trained
        if "joint" in self.members[0].experiment.baselines and self._missing("joint") and not self._all_failed():
            states, train = train_joint(self)
            horizon = self.sizes.n_tasks * self.sizes.total_batches
            self.folders.write("joint", self.lanes.snapshot(states, self.sizes.n_tasks - 1), [horizon], train=train)

    def _missing(self, folder: str) -> bool:
        return any(folder not in member.done for member in self.members)

    def _all_failed(self) -> bool:
        return all(member.failed for member in self.members)

    def _restored(self) -> Any:
        states = [member.state or {} for member in self.members]
        return self.lanes.restore_state({path: np.concatenate([state[path] for state in states]) for path in states[0]})

    def _commit_initial(self, fresh: Any) -> None:
        self.folders.write("initial", self.lanes.snapshot(fresh), [0])

    def _train(self, states: Any, first: int, flusher: ThreadPoolExecutor, pending: list[Future[None]]) -> None:
        """Args:
        flusher: writes one folder after another.
        pending: folders being written that are not waited for yet; afterwards one at most.
        """
        with_experts = "expert" in self.members[0].experiment.baselines
        # Where a folder in the middle was lost, what comes after it is there.
        tasks = range(first, 1 + max(task for task in range(self.sizes.n_tasks) if self._missing(task_folder(task))))
        horizon = self.sizes.n_tasks * self.sizes.total_batches
        with prefetch(self._build, tasks) as items:
            for task, arrays in zip(tasks, items, strict=True):
                since = time.perf_counter()
                data = self.lanes.place(arrays, self.row_of_lane, self.pack.source_on)
                self.seconds.add("dispatch", since)
                states, logs = self._start(states, data, task, horizon)
                since = time.perf_counter()
                experts = start_experts(self, data, task) if with_experts else None
                self.seconds.add("compile" if task == first else "dispatch", since)
                while pending:
                    pending.pop().result()
                if self._all_failed():
                    break  # a full disk, or a lease that was taken over: there is nobody left to train for
                pending.append(flusher.submit(self._flush, task, states, logs, data, experts))

    def _start(self, states: Any, data: Any, task: int, horizon: int) -> tuple[Any, Callable[[], HostLogs]]:
        """Starts a task; the returned function waits for its logs. Where they come in segments, only the last one is left to
        wait for: the others had to make room on the device."""
        earlier: list[HostLogs] = []
        logs: Any = None
        for segment in range(self.pack.spec.n_segments):
            if segment:
                since = time.perf_counter()
                earlier.append(self.lanes.fetch_logs(logs))
                self.seconds.add("train", since)
            since = time.perf_counter()
            states, logs = self.lanes.train(states, data, task, horizon, segment)
            self.seconds.add("dispatch" if segment or task > self.first else "compile", since)

        def fetch() -> HostLogs:
            whole = self.lanes.fetch_logs(logs)
            while earlier:
                whole = earlier.pop().followed_by(whole)
            return whole

        return states, fetch

    def _build(self, task: int) -> TaskArrays:
        since = time.perf_counter()
        whole = side_by_side([self.pack.draw_of[seed].task(task, pixels=self.pack.pixels) for seed in self.seeds])
        self.seconds.add("data", since)
        return whole

    def _flush(self, task: int, states: Any, logs: Any, data: Any, experts: Callable[[], HostLogs] | None) -> None:
        since = time.perf_counter()
        jax.block_until_ready(states)
        self.seconds.add("train", since)
        since = time.perf_counter()
        host = logs()
        state = self.lanes.fetch_state(states)
        expert_logs = experts() if experts else None
        for leaf in {id(leaf): leaf for leaf in jax.tree.leaves(data)}.values():
            leaf.delete()
        self.seconds.add("transfer", since)
        self.folders.write(f"task_{task:03d}", host, self.pack.steps, task=task, state=state, expert=expert_logs)
        host.close()
