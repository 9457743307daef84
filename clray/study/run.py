"""A study from its file to its folders: ideal models as an ordinary experiment, then what is measured on them.

The units of commit, in this order; what is committed is not done again:

``initial``, ``task_000`` ...   the ideal models (their state is kept for every task)
``memory_000`` ...              memory sets of each task but the last, under the networks that had just learnt it
``gradients_001`` ...           of each task t >= 1: gradients of all sets on the tasks before it, under the networks after it
``similarity_<method>``         similarities of one method, over all tasks
``downstream_<method>``         networks trained with one method's sets
``joined``                      one table of both
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from clray.artifacts import TrialFolders
from clray.core.lanes import device_bytes
from clray.core.program import Pools
from clray.experiment import Member, TrialPack
from clray.options import SelectionOptions
from clray.selection.base import Selecting
from clray.store import layout as names
from clray.store.checkpoint import unpack_state
from clray.store.reader import open_array, read_commit, read_file
from clray.strategies.finetune import Finetune
from clray.study.adopt import adopt
from clray.study.batches import StudyDraw, union_batches
from clray.study.config import Study
from clray.study.downstream import downstream_spec, train_with_memories
from clray.study.gradients import Compared, Loss, Rows, record_bytes
from clray.study.measure import GROUP, Chain, Network, Sums, Task, in_growing_order, measure
from clray.study.memory import choose, sets_of, sizes_of_sets, view_task
from clray.study.sizes import most_rows
from clray.study.tables import downstream_table, joined_table, similarity_arrays, similarity_table
from clray.types import HostArray

RECORD_SHARE = 0.2
"""Part of a device's memory that inputs and deltas of all past samples of one network may fill."""


class StudyFolders(TrialFolders):
    """Folders of a study's trial."""

    read_again = True  # later folders are computed from every file of earlier ones
    transient = frozenset()  # one that is gone is lost, and its task is trained again

    def prune_states(self, task: int | None = None) -> None:
        """Nothing: the networks of every task are measured."""


class StudyPack(TrialPack):
    """One study in this process. Arguments as of ``TrialPack``; there is one member."""

    def __init__(self, members: Sequence[Member], *args: Any, **options: Any):
        super().__init__(members, *args, **{"gather": False, **options})  # the draw builds batches of all tasks on the host
        (member,) = self.members
        assert isinstance(member.experiment, Study)
        self.study: Study = member.experiment
        self.member = member
        given = member.folders
        member.folders = StudyFolders(given.storage, given.trial_id, given.attempt, given.fence)
        some = next(iter(self.draw_of.values()))
        self.draw = StudyDraw(self.study, some.loader.dataset, self.sizes)
        self.draw_of = {self.study.seed: self.draw}
        # The draw mixes the tasks; the program itself is that of plain training.
        self.spec = replace(self.spec, strategy=(Finetune(name="finetune"),), n_train=most_rows(self.sizes))
        stored = record_bytes(self.spec, self.n_past) < RECORD_SHARE * device_bytes(self.devices[0])
        self.loss = Loss(replace(self.spec, n_segments=1), stored)
        self.names = self.loss.taps.names

    @property
    def n_past(self) -> int:
        """Most rows of past tasks."""
        return (self.sizes.n_tasks - 1) * self.sizes.n_train

    def _begin(self, member: Member) -> None:
        super()._begin(member)
        if self.study.ideal_models:
            adopt(member.folders, self.study)
            super()._begin(member)

    def _finish(self, member: Member, seconds: float) -> None:
        since = time.perf_counter()
        for task in range(self.sizes.n_tasks - 1):
            self._once(names.memory_folder(task), functools.partial(self._write_memory, task))
        self.seconds.add("select", since)
        since = time.perf_counter()
        for task in range(1, self.sizes.n_tasks):
            self._once(names.gradients_folder(task), functools.partial(self._write_gradients, task))
        self.seconds.add("gradients", since)
        for number, method in enumerate(self.study.memory.methods):
            folder = names.similarity_folder(method.shown)
            self._once(folder, functools.partial(self._write_similarity, number))
        since = time.perf_counter()
        for method in self.study.downstream_methods:
            self._once(names.downstream_folder(method.shown), functools.partial(self._write_downstream, method))
        self.seconds.add("downstream", since)
        if self.study.downstream_methods:
            self._once(names.JOINED, self._write_joined)
        super()._finish(member, self.seconds.total())

    def _once(self, folder: str, write: Callable[[Any], None]) -> None:
        """Writes and commits a folder that is not there yet."""
        if self.member.folders.committed(folder):
            return
        self.member.report({"event": "stage", "stage": folder.replace("_", " ")})
        with self.member.folders.commit(folder) as out:
            write(out)
        self.member.log.info("%s committed", folder)

    def parameters(self, task: int) -> dict[str, HostArray]:
        """Weights of all repeats after a task, (R, *shape) each; NaN where a repeat has diverged."""
        folders = self.member.folders
        commit = read_commit(folders.storage, folders.trial, names.task_folder(task))
        assert commit is not None
        state = unpack_state(read_file(folders.storage, commit, names.STATE))
        diverged = np.asarray(state[".diverged"])
        found = {name: np.array(state[f".params['{name}']"]) for name in self.names}
        for leaf in found.values():
            leaf[diverged] = np.nan
        return found

    def _array(self, folder: str, name: str) -> HostArray:
        folders = self.member.folders
        commit = read_commit(folders.storage, folders.trial, folder)
        assert commit is not None
        return open_array(folders.storage, commit, name)

    def stream(self, task: int, repeat: int) -> HostArray:
        """(N,) rows of a task in the order in which its ideal model first visits them; those it never visits come last."""
        n = self.sizes.n_train
        numbers = union_batches(self.study, self.sizes, repeat, task)
        own = numbers[numbers // n == task] % n
        visited = own[np.sort(np.unique(own, return_index=True)[1])]
        return np.concatenate([visited, np.setdiff1d(np.arange(n), visited)])

    def _write_memory(self, task: int, out: Any) -> None:
        study, params = self.study, self.parameters(task)
        chosen: dict[str, list[HostArray]] = {method.shown: [] for method in study.memory.methods}
        pools = self._normalisation()
        for position, repeat in enumerate(study.repeat_numbers):
            network = {name: leaf[position] for name, leaf in params.items()}
            images = self.draw.images(self.draw.indices[task, :, position])
            view = view_task(self.loss.spec, network, pools, images, self.draw.row_labels[task, :, position], self.stream(task, repeat))
            for method in study.memory.methods:
                chosen[method.shown].append(choose(study, selecting(method), view, repeat, task))
        for name, rows in chosen.items():
            whole = np.stack(rows)
            out.array(f"rows.{name}.npy", whole)
        out.array("samples.npy", np.ascontiguousarray(self.draw.indices[task].T))

    def _normalisation(self) -> Pools:
        """The pools without images: how samples are scaled."""
        return Pools(np.zeros((1, 1, 1), np.uint8), self.pools.mean, self.pools.deviation)

    def memory_sets(self, number: int, task: int, repeat: int) -> list[list[HostArray]]:
        """For each draw of a method a set a fraction: rows of a task for one position of a repeat."""
        method = self.study.memory.methods[number]
        rows = self._array(names.memory_folder(task), f"rows.{method.shown}.npy")
        return sets_of(np.asarray(rows[repeat]), self.sizes_of(method), self.sizes.n_train)

    def sizes_of(self, method: SelectionOptions) -> list[int]:
        """Rows of a task's set of every fraction."""
        return sizes_of_sets(self.study.memory, selecting(method), self.sizes.n_train, self.sizes.classes_per_task)

    def _chains(self, task: int, repeat: int) -> list[Chain]:
        """All sets on the tasks before ``task``, except those of everything."""
        n, chains = self.sizes.n_train, []
        for number, method in enumerate(self.study.memory.methods):
            of_task = [self.memory_sets(number, past, repeat) for past in range(task)]
            below = [at for at, size in enumerate(self.sizes_of(method)) if size < n]
            for draw in range(len(of_task[0]) if below else 0):
                sets = in_growing_order([[past * n + of_task[past][draw][at] for past in range(task)] for at in below])
                chains.append(Chain(number, slice(None) if selecting(method).deterministic else draw, sets))
        return chains

    def _write_gradients(self, task: int, out: Any) -> None:
        memory, params = self.study.memory, self.parameters(task)
        sums = Sums(len(memory.methods), len(memory.fractions), memory.num_samples, self.sizes.n_repeats, len(self.names))
        below = [[size for size in self.sizes_of(method) if size < self.sizes.n_train] for method in memory.methods]
        most = GROUP * (self.sizes.n_tasks - 1) * max(map(sum, below))
        steps = GROUP * max(map(len, below))
        about = Task(self.loss, self.names, self._normalisation(), [len(sizes) for sizes in below], max(most, self.n_past), max(steps, 1))

        def network(repeat: int) -> Network:
            own = {name: leaf[repeat] for name, leaf in params.items()}
            return Network(repeat, own, self._past_rows(task, repeat), self._chains(task, repeat))

        measure(about, [functools.partial(network, repeat) for repeat in range(self.sizes.n_repeats)], self.devices, sums)
        for name, values in sums.arrays.items():
            out.array(f"{name}.npy", values)
        out.array("everything.npy", sums.everything)

    def _past_rows(self, task: int, repeat: int) -> Rows:
        n = task * self.sizes.n_train
        indices = self.draw.indices[:-1, :, repeat].reshape(-1).copy()
        indices[n:] = indices[0]
        return Rows(self.draw.images(indices), self.draw.row_labels[:-1, :, repeat].reshape(-1).astype(np.int32), np.int32(n))

    def _write_similarity(self, number: int, out: Any) -> None:
        tasks = range(1, self.sizes.n_tasks)
        sums = [
            tuple(np.asarray(self._array(names.gradients_folder(t), f"{name}.npy")[number]) for name in Compared._fields) for t in tasks
        ]
        everything = np.stack([self._array(names.gradients_folder(t), "everything.npy") for t in tasks])
        shapes = jax.eval_shape(self.spec.pure_model.init, jax.eval_shape(lambda: jax.random.key(0)))[0]
        counts = np.array([shapes[name].size for name in self.names])
        arrays = similarity_arrays(sums, everything, counts, self.study.similarity)
        for name, values in arrays.items():
            out.array(f"{name}.npy", values)
        out.table("similarity.parquet", similarity_table(arrays, self.study, self.names))
        about = {
            "fractions": list(self.study.memory.fractions),
            "parameters": self.names,
            "method": self.study.memory.methods[number].shown,
        }
        out.bytes("axes.json", json.dumps(about, indent=1).encode())

    def _write_downstream(self, method: SelectionOptions, out: Any) -> None:
        study, n_repeats = self.study, self.sizes.n_repeats
        number = study.memory.methods.index(method)
        at = [study.memory.fractions.index(fraction) for fraction in study.downstream_fractions]
        below = [i for i in at if study.memory.fractions[i] < 1.0]
        lanes = [(fraction, repeat) for fraction in below for repeat in range(n_repeats)]
        sets = {(past, r): self.memory_sets(number, past, r)[0] for past in range(self.sizes.n_tasks - 1) for r in range(n_repeats)}

        def memory(lane: int, past: int) -> HostArray:
            fraction, repeat = lanes[lane]
            return sets[past, repeat][fraction]

        ideal = self.member.folders.accuracy_matrix(study)[0]  # (T, E, R)
        accuracy = np.empty((len(at), n_repeats, *ideal.shape[:2]), np.float32)
        accuracy[:] = ideal.transpose(2, 0, 1)
        if lanes:
            spec = downstream_spec(self.spec)
            trained = train_with_memories(study, self.draw, spec, self.pools, self.devices, [r for _, r in lanes], memory)
            accuracy[: len(below)] = trained.reshape(len(below), n_repeats, *ideal.shape[:2])
        out.array("accuracy.npy", accuracy)
        out.table("downstream.parquet", downstream_table(accuracy, study))

    def _write_joined(self, out: Any) -> None:
        parts = []
        for method in self.study.downstream_methods:
            accuracy = np.asarray(self._array(names.downstream_folder(method.shown), "accuracy.npy"))
            folder = names.similarity_folder(method.shown)
            arrays = {
                f"{kind}.{metric}": np.asarray(self._array(folder, f"{kind}.{metric}.npy"))
                for kind in ("similarity", "whole")
                for metric in self.study.similarity
            }
            parts.append(joined_table(method.shown, arrays, accuracy, self.study, self.names))
        out.table("joined.parquet", pa.concat_tables(parts))


def selecting(method: SelectionOptions) -> Selecting:
    """The options of a selection as what they are."""
    if not isinstance(method, Selecting):
        raise TypeError(f"{method.name} must derive from clray.selection.base.Selecting")
    return method
