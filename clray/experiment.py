"""One trial from its file to its committed folders: the only place where config, data, core and store meet.

While task t trains on the devices, one background thread builds the data of task t + 1 and another writes what task t - 1
produced; the main thread only starts programs. Everything a task leaves behind becomes visible in one commit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from clray.artifacts import FolderWriter, TrialFolders
from clray.config import Experiment
from clray.core.lanes import ChunkedLanes, HostLogs, plan_chunks
from clray.core.program import Lane, Pools, Spec
from clray.data.cache import open_dataset
from clray.data.loader import TaskLoader
from clray.data.prefetch import prefetch
from clray.data.sequence import draw_classes
from clray.sizes import Sizes, sizes_of
from clray.strategies.finetune import Finetune
from clray.types import HostArray, Purpose

log = logging.getLogger("clray")

Report = Callable[[Mapping[str, Any]], None]


@dataclass
class Seconds:
    """Where the time of a run went, by phase, in seconds. Phases overlap: their sum can exceed the wall time."""

    phases: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def add(self, phase: str, since: float) -> None:
        """Counts the time from ``since`` (``time.perf_counter``) to now."""
        self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - since

    def total(self) -> float:
        """Wall seconds so far."""
        return time.perf_counter() - self.started


def make_spec(experiment: Experiment, sizes: Sizes) -> Spec:
    """The static description of the training program of an experiment."""
    return Spec(
        model=experiment.model.structure(),
        optimizer=experiment.optimizer.structure(),
        strategy=tuple(options.structure() for options in experiment.strategy),
        input_shape=sizes.input_shape,
        scale=1.0 / 255.0 if sizes.dtype == "uint8" else 1.0,
        n_outputs=sizes.classes_per_task,
        n_train=sizes.n_train,
        batch_size=sizes.batch_size,
        total_batches=sizes.total_batches,
        log_frequency=experiment.logging.log_frequency,
        n_kept=sizes.n_kept,
        log_weights=experiment.logging.weights,
        reset_optimizer=experiment.training.reset_optimizer,
    )


def baseline_spec(spec: Spec, **changes: Any) -> Spec:
    """The program of a baseline: plain training that logs no tensors."""
    return replace(spec, strategy=(Finetune(name="finetune"),), n_kept=0, log_weights=False, **changes)


def make_lanes(experiment: Experiment, pool: HostArray, labels: HostArray) -> Lane:
    """Host arrays with leading axis R that set the repeats of one trial apart.

    Args:
        pool: (R, U) classes each repeat evaluates on; labels: (R, E, C) positions in it.
    """
    repeats = np.asarray(experiment.repeat_numbers, np.int32)

    def column(value: float) -> HostArray:
        return np.full(len(repeats), value, np.float32)

    strategy = {f"{i}.{key}": column(v) for i, options in enumerate(experiment.strategy) for key, v in options.traced().items()}
    return Lane(
        seed=np.full(len(repeats), experiment.seed, np.uint32),
        repeat=repeats,
        optimizer={key: column(value) for key, value in experiment.optimizer.traced().items()},
        strategy=strategy,
        pool=pool.astype(np.int32),
        labels=labels.astype(np.int32),
    )


def evaluation_pool(classes: HostArray, n_classes: int, n_pool: int) -> tuple[HostArray, HostArray]:
    """Which classes each repeat evaluates on, and where the classes of its tasks stand among them.

    Args:
        classes: (E, R, C) of the evaluated tasks.
        n_classes: K.
        n_pool: U. Repeats that use fewer are filled up with other classes, so that all have the same number.

    Returns:
        pool (R, U), sorted, and labels (R, E, C), positions in it.
    """
    pools, labels = [], []
    for own in np.moveaxis(classes, 1, 0):
        used = np.unique(own)
        spare = np.setdiff1d(np.arange(n_classes), used)[: n_pool - len(used)]
        pool = np.sort(np.concatenate([used, spare]))
        pools.append(pool)
        labels.append(np.searchsorted(pool, own))
    return np.stack(pools), np.stack(labels)


class TrialRun:
    """One trial in this process.

    Args:
        experiment: what to run.
        folders: where its files go; knows what is committed already.
        report: called with small dicts as tasks are committed.
        devices: JAX devices to use; default all of this process.
    """

    def __init__(
        self, experiment: Experiment, folders: TrialFolders, report: Report | None = None, devices: list[jax.Device] | None = None
    ):
        self.experiment = experiment
        self.folders = folders
        self.report = report or (lambda event: None)
        self.seconds = Seconds()
        since = time.perf_counter()
        dataset = open_dataset(experiment.dataset)
        self.sizes = sizes_of(experiment, dataset.info)
        sequence = experiment.sequence
        self.classes = draw_classes(sequence, dataset.info.n_classes, experiment.seed, experiment.repeat_numbers)
        self.loader = TaskLoader(dataset, experiment, self.classes)
        pools = self.loader.eval_pools()
        mean, deviation = (dataset.mean, dataset.std) if experiment.dataset.normalize == "standard" else (0.0, 1.0)
        if np.ndim(mean) and not experiment.model.takes_images:
            # Flattened images keep their channels fastest, so the per-channel numbers repeat along D.
            n_pixels = self.sizes.input_shape[0] // len(mean)
            mean, deviation = np.tile(mean, n_pixels), np.tile(deviation, n_pixels)
        self.pools = Pools(pools.images, np.asarray(mean, np.float32), np.asarray(deviation, np.float32))
        self.eval_samples = pools.indices[:, : self.experiment.logging.n_subsamples // sequence.classes_per_task]
        self.pool, self.labels = evaluation_pool(
            self.classes[list(experiment.eval_task_numbers)], self.sizes.n_classes, self.sizes.n_pool_classes
        )
        self.spec = make_spec(experiment, self.sizes)
        self.chunks = plan_chunks(self.sizes.n_repeats, devices or jax.local_devices())
        self.seconds.add("data", since)

    @property
    def horizon(self) -> int:
        """Batches of the whole sequence."""
        return self.sizes.n_tasks * self.sizes.total_batches

    def run(self) -> dict[str, Any]:
        """Runs what is not committed yet and writes RESULT.json.

        Returns:
            The content of RESULT.json.
        """
        self.folders.begin(self.experiment, self.classes, self.eval_samples)
        lanes = ChunkedLanes(self.spec, make_lanes(self.experiment, self.pool, self.labels), self.pools, self.chunks)
        first, state = self.folders.resume_point(self.sizes.n_tasks)
        if not self.folders.committed("initial"):
            self._write("initial", lanes.snapshot(lanes.init()), step=0)
        if first:
            log.info("resuming after task %d of %d", first, self.sizes.n_tasks)
        if first < self.sizes.n_tasks:
            self._train(lanes, lanes.init() if state is None else lanes.restore_state(state), first)
        if "joint" in self.experiment.baselines and not self.folders.committed("joint"):
            self._train_joint(lanes.pools_on)
        return self.folders.finish(self.experiment, self.seconds.total(), self.seconds.phases)

    def _train(self, lanes: ChunkedLanes, states: Any, first: int) -> None:
        expert = Expert(self, lanes.pools_on) if "expert" in self.experiment.baselines else None
        pending: Future[None] | None = None

        def build(task: int) -> tuple[HostArray, HostArray]:
            since = time.perf_counter()
            arrays = self.loader.task(task)
            self.seconds.add("data", since)
            return arrays.images, arrays.labels

        with ThreadPoolExecutor(1, "clray-flush") as flusher, prefetch(build, range(first, self.sizes.n_tasks)) as items:
            for task, (images, labels) in zip(range(first, self.sizes.n_tasks), items, strict=True):
                since = time.perf_counter()
                data = lanes.place(images, labels, range(self.sizes.n_repeats))
                states, logs = lanes.train(states, data, task, self.horizon)
                experts = expert.start(data, task) if expert else None
                self.seconds.add("compile" if task == first else "dispatch", since)
                if pending is not None:
                    pending.result()
                pending = flusher.submit(self._flush, lanes, task, states, logs, data, experts)
            if pending is not None:
                pending.result()

    def _flush(self, lanes: ChunkedLanes, task: int, states: Any, logs: Any, data: Any, experts: Any) -> None:
        since = time.perf_counter()
        host = lanes.fetch_logs(logs)
        state = lanes.fetch_state(states)
        expert_logs = experts() if experts else None
        for images, labels in data:
            images.delete()
            labels.delete()
        self.seconds.add("train", since)
        self._write(f"task_{task:03d}", host, task=task, state=state, expert=expert_logs)

    def _write(
        self,
        folder: str,
        host: HostLogs,
        *,
        step: int | None = None,
        task: int | None = None,
        state: Mapping[str, HostArray] | None = None,
        expert: HostLogs | None = None,
    ) -> None:
        since = time.perf_counter()
        steps = [step] if step is not None else self.log_steps()
        diverged = None if state is None else state[".diverged"]
        with self.folders.commit(folder) as out:
            out.metrics(steps, self.experiment.repeat_numbers, self.experiment.eval_task_numbers, host)
            if task is not None:
                out.train(steps, self.experiment.repeat_numbers, host.train_accuracy, host.train_loss)
            if expert is not None and task is not None:
                out.expert(steps, self.sizes.total_batches, self.experiment.repeat_numbers, task, expert)
            self._write_tensors(out, host)
            if state is not None:
                out.state(state)
        self.seconds.add("write", since)
        if task is not None:
            self.folders.prune_states()
            seen = [i for i, t in enumerate(self.experiment.eval_task_numbers) if t <= task]
            accuracy = float(np.nanmean(host.end_accuracy[:, seen])) if seen and not np.all(diverged) else float("nan")
            self.report({"event": "task", "task": task, "n_tasks": self.sizes.n_tasks, "accuracy": accuracy})
            log.info("task %d of %d committed, accuracy on tasks so far %.4f", task + 1, self.sizes.n_tasks, accuracy)

    def _write_tensors(self, out: FolderWriter, host: HostLogs) -> None:
        if self.sizes.n_kept:
            shape = (host.n_logs, *self.labels.shape[:2], self.sizes.n_subsamples, self.spec.pure_model.hidden_size)
            out.representations(shape, self._representations(host))
        for name, shape in host.weight_shapes.items():
            repeats = range(self.sizes.n_repeats)
            out.weights(name, (host.n_logs, len(repeats), *shape), host.weights(name, repeats))

    def log_steps(self) -> list[int]:
        """Batches after which a log is taken, counted from 1 within the task."""
        every = self.experiment.logging.log_frequency
        return [every * (i + 1) for i in range(self.sizes.n_logs)]

    def _representations(self, host: HostLogs) -> Iterator[HostArray]:
        """(R, E, S, H) at each log point: the pools' hidden states dealt to tasks, label 0's samples first."""
        for log_point in range(host.n_logs):
            per_repeat = [host.hidden_at(log_point, lane)[self.labels[lane]] for lane in range(self.sizes.n_repeats)]
            block = np.stack(per_repeat)  # (R, E, C, S/C, H)
            yield block.reshape(*block.shape[:2], -1, block.shape[-1])

    def _train_joint(self, pools_on: dict[Any, Pools]) -> None:
        """One network on the mixture of all tasks: T times a task's batches, streamed in segments of equal length."""
        sizes = self.sizes
        per_segment = segment_batches(sizes.total_batches, sizes.n_train // sizes.batch_size)
        n_segments = self.horizon // per_segment
        rows = per_segment * sizes.batch_size
        schedule = self.experiment.optimizer.schedule.model_copy(update={"per": "sequence"})
        optimizer = self.experiment.optimizer.structure().model_copy(update={"schedule": schedule})
        spec = baseline_spec(
            self.spec, optimizer=optimizer, n_train=rows, total_batches=per_segment, log_frequency=per_segment, reset_optimizer=False
        )
        table = make_lanes(self.experiment, self.pool, self.labels)
        lanes = ChunkedLanes(spec, table._replace(strategy={}), self.pools, self.chunks, pools_on)
        states = lanes.init(purpose=Purpose.JOINT)
        windows: list[HostLogs] = []

        def build(segment: int) -> tuple[HostArray, HostArray]:
            arrays = self.loader.joint_segment(segment, rows)
            return arrays.images, arrays.labels

        with prefetch(build, range(n_segments)) as items:
            for segment, (images, labels) in enumerate(items):
                data = lanes.place(images, labels, range(sizes.n_repeats))
                # Numbers from T on: the joint network's keys are its own.
                states, logs = lanes.train(states, data, sizes.n_tasks + segment, self.horizon)
                windows.append(lanes.fetch_logs(logs))
        final = ChunkedLanes(self.spec, table, self.pools, self.chunks, pools_on).snapshot(states)
        steps = [per_segment * (i + 1) for i in range(n_segments)]
        with self.folders.commit("joint") as out:
            out.metrics([self.horizon], self.experiment.repeat_numbers, self.experiment.eval_task_numbers, final)
            accuracy = np.concatenate([window.train_accuracy for window in windows])
            loss = np.concatenate([window.train_loss for window in windows])
            out.train(steps, self.experiment.repeat_numbers, accuracy, loss)
            self._write_tensors(out, final)
        log.info("joint baseline committed")


class Expert:
    """The expert baseline: fresh weights for every task, trained on the same data in the same order."""

    def __init__(self, run: TrialRun, pools_on: dict[Any, Pools]):
        self.run = run
        self.spec = baseline_spec(run.spec)
        self.pools_on = pools_on

    def start(self, data: Any, task: int) -> Callable[[], HostLogs]:
        """Starts the expert of one task; the returned function waits for its logs, evaluated on that task alone."""
        run = self.run
        pool, labels = evaluation_pool(run.classes[[task]], run.sizes.n_classes, run.sizes.classes_per_task)
        table = make_lanes(run.experiment, pool, labels)._replace(strategy={})
        lanes = ChunkedLanes(self.spec, table, run.pools, run.chunks, self.pools_on)
        _, logs = lanes.train(lanes.init(task, Purpose.EXPERT), data, task, run.sizes.total_batches)
        return lambda: lanes.fetch_logs(logs)


def segment_batches(total_batches: int, per_epoch: int) -> int:
    """Batches of one segment of the joint stream: a divisor of a task's batches, about an epoch's data at a time."""
    divisors = [d for d in range(1, total_batches + 1) if total_batches % d == 0 and d <= max(per_epoch, 1)]
    best = max(divisors)
    return best if best * 4 >= min(per_epoch, total_batches) else total_batches
