"""What a task or a baseline left on the host becomes the files of every trial's folder, and the folder is committed.

Files are written while the next task trains. A commit waits for the disk (or an object store) in a thread of its own, while
files of the next task are written.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from clray.artifacts import FolderWriter
from clray.assembly import choice_facts
from clray.core.lanes import HostLogs
from clray.process import available_cpus
from clray.types import HostArray

if TYPE_CHECKING:
    from clray.baselines import TrainTable
    from clray.experiment import Member, TrialPack

WRITERS = 2
"""Trials of a pack that are written at once, and as many that are committed at once."""

FILES_AT_ONCE = max(2, min(available_cpus() // 2, 8))
"""Large files that are hashed and written at once, of all trials of a pack together: a core hashes 1.5 to 2 GB a second, and a GPU
trains hundreds of lanes in the time in which two cores hash their logs."""


class FlushThreads:
    """Threads of a pack. They stay, and with them the buffers that each writes from. One alone tells who listens (progress, loggers),
    one trial at a time: whoever is slow there keeps nothing waiting but what these trials commit next."""

    def __init__(self) -> None:
        self.writers = ThreadPoolExecutor(WRITERS, "clray-write")
        self.committers = ThreadPoolExecutor(WRITERS, "clray-commit")
        self.files = ThreadPoolExecutor(FILES_AT_ONCE, "clray-file")
        self.teller = ThreadPoolExecutor(1, "clray-tell")


class PackFolders:
    """Folders of the trials that train together; a context manager, which waits for commits that are under way."""

    def __init__(self, pack: TrialPack, members: Sequence[Member]):
        self._pack = pack
        self._members = members
        self._committing: dict[Member, Future[None]] = {}
        self._telling: dict[Member, Future[None]] = {}  # the last one each; they are told in turn

    def __enter__(self) -> PackFolders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.wait()
        if error is None:
            for done in (*self._committing.values(), *self._telling.values()):
                done.result()

    def wait(self) -> None:
        """Waits until nothing that was written is left to be committed, or told."""
        wait(self._committing.values())
        wait(self._telling.values())

    def write(
        self,
        folder: str,
        host: HostLogs,
        steps: Sequence[int],
        *,
        task: int | None = None,
        state: Mapping[str, HostArray] | None = None,
        expert: HostLogs | None = None,
        train: TrainTable | None = None,
    ) -> None:
        """Writes a folder of every trial that does not have it yet, and lets it be committed.

        Args:
            folder: ``initial``, ``task_003``, ``joint``.
            host: logs of all lanes; they may be closed afterwards.
            steps: batches after which was logged [L].
            task: that was trained; None for the other folders.
            state: after it, tree path to [A, ...].
            expert: logs of the experts of this task.
            train: of the joint network.
        """
        since = time.perf_counter()

        def write(member: Member, own: range) -> None:
            repeats = member.experiment.repeat_numbers
            with contextlib.ExitStack() as stack:
                out = stack.enter_context(member.folders.commit(folder))
                facts = choice_facts(member.experiment, task if task is not None else 0 if folder == "initial" else -1)
                out.metrics(steps, repeats, member.experiment.eval_task_numbers, host.of_lanes(own), facts)
                if task is not None:
                    out.train(steps, repeats, host.train_accuracy[:, own], host.train_loss[:, own])
                if train is not None:
                    out.train(train[0], repeats, train[1][:, own], train[2][:, own])
                if expert is not None and task is not None:
                    out.expert(steps, self._pack.sizes.total_batches, repeats, task, expert.of_lanes(own))
                if state is not None and self._pack.spec.window:
                    out.boundaries(repeats, state[".watch.steps"][own.start : own.stop])
                own_state = None if state is None else {path: leaf[own.start : own.stop] for path, leaf in state.items()}
                self._write_tensors(out, host, member, own, own_state)
                self._commit_later(member, stack, task, host.end_accuracy[own.start : own.stop])

        n_repeats = self._pack.sizes.n_repeats
        lanes = [range(i * n_repeats, (i + 1) * n_repeats) for i in range(len(self._members))]
        missing = [(member, own) for member, own in zip(self._members, lanes, strict=True) if folder not in member.done]
        list(self._pack.flush_threads.writers.map(lambda given: given[0].guard(lambda: write(*given)), missing))
        self._pack.seconds.add("write", since)

    def _commit_later(self, member: Member, stack: contextlib.ExitStack, task: int | None, accuracy: HostArray) -> None:
        """Commits a folder that is written, which ``stack`` does on closing, in another thread. One folder of a trial at a time:
        a task is never committed where the one before it was not, or where whoever heard of that one stopped the trial."""
        for under_way in (self._committing, self._telling):
            if member in under_way:
                under_way.pop(member).result()
        if isinstance(member.outcome, Exception):
            raise member.outcome  # the folder is dropped
        written, threads = stack.pop_all(), self._pack.flush_threads

        def commit() -> None:
            since = time.perf_counter()
            written.close()
            self._pack.seconds.add("commit", since)
            if task is not None:
                member.folders.prune_states(task)
                self._telling[member] = threads.teller.submit(member.guard, lambda: self._tell(member, task, accuracy), anyway=True)

        try:
            # What is written whole is committed even if the next folder cannot be written.
            self._committing[member] = threads.committers.submit(member.guard, commit, anyway=True)
        except BaseException:  # the interpreter is on its way out
            with written:
                raise

    def _tell(self, member: Member, task: int, accuracy: HostArray) -> None:
        seen = [i for i, number in enumerate(member.experiment.eval_task_numbers) if number <= task]
        kept = accuracy[:, seen][~np.isnan(accuracy).any(axis=1)] if seen else accuracy[:0]
        mean = float(kept.mean()) if kept.size else float("nan")
        n_tasks = self._pack.sizes.n_tasks
        member.log.info("task %d of %d committed, accuracy on the tasks so far %.4f", task + 1, n_tasks, mean)
        member.report({"event": "task", "task": task, "n_tasks": n_tasks, "accuracy": mean})

    def _write_tensors(self, out: FolderWriter, host: HostLogs, member: Member, own: range, state: Mapping[str, HostArray] | None) -> None:
        """The large files of a folder, several at once, the largest first."""
        sizes, labels = self._pack.sizes, self._pack.draw_of[member.experiment.seed].labels
        jobs: list[tuple[int, Callable[[], None]]] = []
        if sizes.n_kept:
            hidden = (host.n_logs, *labels.shape[:2], sizes.n_subsamples, self._pack.spec.pure_model.hidden_size)
            jobs.append((math.prod(hidden), lambda: out.representations(hidden, representation_blocks(host, own, labels))))
        for name, shape in host.weight_shapes.items():
            whole = (host.n_logs, len(own), *shape)
            jobs.append((math.prod(whole), functools.partial(out.weights, name, whole, host.weights(name, own))))
        if state is not None:
            jobs.append((sum(leaf.size for leaf in state.values()), lambda: out.state(state)))
        running = [self._pack.flush_threads.files.submit(job) for _, job in sorted(jobs, key=lambda job: -job[0])]
        wait(running)  # all of them: what goes on writing would bring back a folder that a failure removes
        for future in running:
            future.result()


def representation_blocks(host: HostLogs, lanes: Sequence[int], labels: HostArray) -> Iterator[HostArray]:
    """(E, S, H) of every lane at each log point: the pools' hidden states dealt to tasks, label 0's samples first.

    Args:
        lanes: of one trial.
        labels: (R, E, C) positions of the tasks' classes in the pool.
    """
    for hidden in host.hidden(lanes):
        for states, own in zip(hidden, labels, strict=True):
            yield states[own].reshape(len(own), -1, states.shape[-1])  # (E, C, S/C, H) to (E, S, H)
