"""Tiny experiments on scikit-learn's digits, run whole in this process, and their files as plain arrays.

Most tests use one program: three tasks, four lanes on one device, 15 batches a task. Trials that differ from it only in
traced values (rates, seeds) compile nothing, which keeps this folder fast.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq

from clray.artifacts import TrialFolders
from clray.config import Experiment
from clray.core.lanes import ChunkedLanes, HostLogs, plan_chunks
from clray.core.program import Lane, TaskArrays
from clray.draw import Draw
from clray.experiment import Member, TrialPack
from clray.store.checkpoint import unpack_state
from clray.store.filesystem import Storage
from clray.trials.plan import plan_run

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 11,
    "n_repeats": 4,
    "sequence": {"n_tasks": 3},
    "dataset": {"name": "digits", "train_per_class": 42},
    "model": {"name": "mlp", "hidden": [16]},
    "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
    "training": {"epochs": 3, "batch_size": 16},  # N = 84: 5 batches an epoch, 4 samples left over
    "logging": {"log_frequency": 4, "n_subsamples": 6},  # 15 batches: 3 logs, 3 batches after the last
}

Arrays = dict[str, np.ndarray]


def tiny(**changes: Any) -> dict[str, Any]:
    """The tiny experiment with dotted keys (``__`` for the dot) replaced."""
    data = copy.deepcopy(TINY)
    for key, value in changes.items():
        *tables, last = key.split("__")
        table = data
        for name in tables:
            table = table[name]
        table[last] = value
    return data


@dataclass(frozen=True)
class OneTrial:
    """A trial that is ready to run, alone or in a pack."""

    pack: TrialPack
    member: Member

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return Path(self.member.folders.storage.local_path(self.member.folders.trial.base))

    @property
    def experiment(self) -> Experiment:
        return self.member.experiment

    @property
    def draw(self) -> Draw:
        return self.pack.draw_of[self.experiment.seed]

    def data(self, task: int) -> TaskArrays:
        """Host arrays of a task, a row a repeat."""
        return self.draw.task(task, pixels=self.pack.pixels)

    def lanes(self, **traced: Any) -> Lane:
        """Its lanes as host arrays; ``traced`` replaces options of the optimizer, one value a lane."""
        lanes = self.draw.lanes(self.experiment)
        return lanes._replace(optimizer=lanes.optimizer | {key: np.asarray(value, np.float32) for key, value in traced.items()})

    def run(self) -> Mapping[str, Any]:
        """Runs it, alone.

        Returns:
            RESULT.json.
        """
        (outcome,) = self.pack.run()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def prepare(
    *experiments: Mapping[str, Any],
    folder: Path,
    devices: list[jax.Device] | None = None,
    report: Callable[[Mapping[str, Any]], None] | None = None,
    **options: Any,
) -> list[OneTrial]:
    """Trials of one pack, ready to run into ``folder``, on one device unless told otherwise; ``options`` of ``TrialPack``."""
    attempt = f"{1 + len(list(folder.glob('attempt-*'))):03d}"
    folder.mkdir(exist_ok=True)
    (folder / f"attempt-{attempt}").touch()
    members = []
    for experiment in experiments:
        trial = plan_run(experiment).trials[0]
        members.append(Member(trial.experiment, TrialFolders(Storage.of(folder), trial.trial_id, f"{attempt}-test"), report))
    pack = TrialPack(members, devices or jax.local_devices()[:1], **options)
    return [OneTrial(pack, member) for member in members]


def table(folder: Path, name: str) -> Arrays:
    """The columns of a Parquet file."""
    found = pq.read_table(folder / name)
    return {column: found[column].to_numpy() for column in found.column_names}


def arrays_of(trial: Path) -> Arrays:
    """All numbers in the files of a trial: ``task_000/metrics.parquet:accuracy``, ``task_000/weights.head.bias.npy``, ...

    Names that start with a dot are left out: what was set aside is damaged.
    """
    arrays: Arrays = {}
    for path in sorted(trial.rglob("*")):
        name = str(path.relative_to(trial))
        if name.startswith("."):
            continue
        if path.suffix == ".parquet":
            arrays |= {f"{name}:{column}": values for column, values in table(path.parent, path.name).items()}
        elif path.suffix == ".npy":
            arrays[name] = np.load(path)
        elif path.name == "state.msgpack":
            arrays |= {f"{name}:{key}": np.asarray(leaf) for key, leaf in unpack_state(path.read_bytes()).items()}
    return arrays


def assert_same_bits(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> None:
    """Same names, dtypes, shapes and bits (so NaN equals NaN)."""
    assert sorted(left) == sorted(right)
    different = [
        name
        for name in left
        if (left[name].dtype, left[name].shape, left[name].tobytes()) != (right[name].dtype, right[name].shape, right[name].tobytes())
    ]
    assert not different, f"{len(different)} of {len(left)} differ: {different}"


def train(trial: OneTrial, lanes: Lane, devices: list[jax.Device], width: int, n_tasks: int = 2) -> list[Arrays]:
    """Trains lanes from fresh weights, without files; each lane on the data of its own repeat.

    Returns:
        For each lane, everything it logged and its state after the last task.
    """
    where = {repeat: position for position, repeat in enumerate(trial.experiment.repeat_numbers)}
    rows = [where[int(repeat)] for repeat in lanes.repeat]
    chunked = ChunkedLanes(trial.pack.spec, lanes, trial.pack.pools, plan_chunks(len(rows), devices, width))
    states = chunked.init()
    found: list[Arrays] = [{} for _ in rows]
    horizon = trial.pack.sizes.n_tasks * trial.pack.sizes.total_batches
    for task in range(n_tasks):
        states, logs = chunked.train(states, chunked.place(trial.data(task), rows), task, horizon)
        host = chunked.fetch_logs(logs)
        for lane in range(len(rows)):
            found[lane] |= {f"{task} {name}": array for name, array in logs_of(host, lane).items()}
    for name, leaf in chunked.fetch_state(states).items():
        for lane in range(len(rows)):
            found[lane][f"state {name}"] = leaf[lane]
    return found


def logs_of(host: HostLogs, lane: int) -> Arrays:
    """Everything that one lane logged in one task, [L, ...] each."""
    arrays = {name: getattr(host, name)[:, lane] for name in ("accuracy", "loss", "train_accuracy", "train_loss")}
    arrays |= {"end_accuracy": host.end_accuracy[lane], "end_loss": host.end_loss[lane]}
    # A lane axis of one.
    arrays |= {name: np.stack(list(host.weights(name, [lane])))[:, None] for name in host.weight_shapes}
    arrays["hidden"] = np.stack([states[0] for states in host.hidden([lane])])
    return arrays
