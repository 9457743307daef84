"""A sweep in every state a report may meet, written with clray's own writers and made-up numbers, in a second."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from clray.artifacts import TrialFolders, append_log, write_attempt
from clray.store import layout as names
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.trials.expand import Trial
from clray.trials.plan import Plan, plan_sweep
from clray.trials.status import read_status
from clray.trials.table import row_of, to_arrow

LOGS, EVERY = 4, 5
SAMPLES, HIDDEN = 8, 6
SHAPES = {"hidden.0.kernel": (5, HIDDEN), "hidden.0.bias": (HIDDEN,), "head.kernel": (HIDDEN, 2), "head.bias": (2,)}

DOCUMENT: dict[str, Any] = {
    "name": "fake",
    "experiment": {
        "n_repeats": 3,
        "sequence": {"n_tasks": 3},
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [HIDDEN]},
        "optimizer": {"name": "sgd"},
        "training": {"steps": LOGS * EVERY + 2, "batch_size": 4},
        "logging": {"log_frequency": EVERY, "n_subsamples": SAMPLES},
        "baselines": ["expert", "joint"],
    },
    "grid": {"optimizer.learning_rate": [0.001, 0.01, 0.1, 1.0], "model.hidden": [[HIDDEN], [8]]},
}
STATES = ("done", "done", "done", "one diverged", "all diverged", "running", "failed", "pending")
"""Of the eight trials of ``DOCUMENT``, in order."""


@dataclass
class Evaluated:
    """See ``clray.artifacts.Evaluations``."""

    accuracy: np.ndarray
    loss: np.ndarray
    end_accuracy: np.ndarray
    end_loss: np.ndarray


class FakeTrial:
    """Numbers that look like those of a trial: tasks are learned, then forgotten."""

    def __init__(self, trial: Trial, seed: int):
        self.trial = trial
        self.rng = np.random.default_rng(seed)
        experiment = trial.experiment
        self.repeats, self.tasks = experiment.repeat_numbers, experiment.eval_task_numbers
        self.n_tasks = experiment.sequence.n_tasks
        self.every, self.samples = experiment.logging.log_frequency, experiment.logging.n_subsamples
        self.last = LOGS * self.every + 2
        self.rate = float(experiment.optimizer.learning_rate)

    def evaluated(self, task: int, n_logs: int) -> Evaluated:
        """Task -1 is the untrained network."""
        time = np.linspace(0, 1, n_logs + 1)[1:, None, None]
        since = task - np.asarray(self.tasks)
        own = 0.5 + 0.45 * (1 - np.exp(-4 * time))
        later = 0.5 + 0.45 * np.exp(-0.4 * np.maximum(since, 0) * (1 + np.log10(self.rate * 1000)) * (0.7 + 0.3 * time))
        level = np.where(since < 0, 0.5, np.where(since == 0, own, later))
        accuracy = np.clip(level + self.rng.normal(0, 0.02, (n_logs, len(self.repeats), len(self.tasks))), 0, 1).astype(np.float32)
        loss = -np.log(np.maximum(accuracy, 0.05))
        return Evaluated(accuracy, loss, accuracy[-1], loss[-1])

    def write(self, folders: TrialFolders, name: str, task: int, steps: list[int], broken: np.ndarray) -> None:
        """One committed folder. ``broken`` (R,) are repeats that diverged."""
        values = self.evaluated(task, len(steps))
        for array in (values.accuracy, values.loss):
            array[:, broken] = np.nan
        with folders.commit(name) as folder:
            folder.metrics(steps, self.repeats, self.tasks, values)
            if task >= 0 and name != names.JOINT:
                folder.train(steps, self.repeats, values.accuracy[..., 0], values.loss[..., 0])
                expert = self.evaluated(task, len(steps))
                column = self.tasks.index(task)
                alone = Evaluated(*(array[..., [column]] for array in vars(expert).values()))
                folder.expert(steps, self.last, self.repeats, task, alone)
            shape = (len(steps), len(self.repeats), len(self.tasks), self.samples, HIDDEN)
            hidden = np.maximum(np.random.default_rng(0).normal(0, 1, shape[1:]) + self.rng.normal(0, 0.2 * (task + 1.1), shape), 0)
            hidden[:, broken] = np.nan
            folder.representations(shape, [hidden.astype(np.float32)])
            for parameter, own in SHAPES.items():
                weights = np.random.default_rng(1).normal(0, 1, (len(self.repeats), *own)) * (0 if "bias" in parameter and task < 0 else 1)
                moved = weights + self.rng.normal(0, 0.1 * (task + 1), (len(steps), len(self.repeats), *own))
                folder.weights(parameter, moved.shape, [moved.astype(np.float32)])


def write_sweep(folder: str, document: Mapping[str, Any] = DOCUMENT, states: tuple[str, ...] = STATES, alive: bool = True) -> Plan:
    """Writes the sweep below ``folder`` (a path or a URL) and returns its plan."""
    plan = plan_sweep(dict(document))
    storage, layout = Storage.of(folder), SweepLayout()
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump({**plan.document, "name": plan.name, "versions": {"clray": "0.1.0", "jax": "0.10.2"}}, text)
    storage.replace_bytes(layout.sweep, text.getvalue().encode())
    now = datetime.datetime.now(datetime.UTC)
    if alive:  # a lease from the future, so that the sweep is still alive in a test minutes later
        storage.replace_bytes(layout.lease(1), json.dumps({"renewed": (now + datetime.timedelta(hours=1)).isoformat()}).encode())
    for seed, trial in enumerate(plan.trials):
        state = states[seed] if seed < len(states) else "done"
        if state != "pending":
            write_trial(storage, trial, state, seed, now.isoformat())
    rows = [row_of(t.trial_id, t.params, read_status(storage, layout.trial(t.trial_id), alive)) for t in plan.trials]
    buffer = io.BytesIO()
    pq.write_table(to_arrow(rows), buffer)
    storage.replace_bytes(layout.trials_table, buffer.getvalue())
    return plan


def write_trial(storage: Storage, trial: Trial, state: str, seed: int, now: str) -> None:
    """One trial in one of the ``STATES``."""
    fake = FakeTrial(trial, seed)
    folders = TrialFolders(storage, trial.trial_id, "001-abc123")
    experiment = trial.experiment
    folders.begin(experiment, np.zeros((fake.n_tasks, len(fake.repeats), 2)), np.zeros((10, fake.samples // 2)))
    outcome = {"failed": "failed", "running": "running"}.get(state, "done")
    record = {"attempt": 1, "host": "node-1", "start": now, "end": now if outcome != "running" else "", "outcome": outcome}
    error = "ValueError: a made-up failure <with> markup & more" if state == "failed" else ""
    write_attempt(storage, folders.trial, 1, record | {"cause": "program" if error else "", "error": error})
    if state == "failed":
        append_log(storage, folders.trial, "", "Traceback (most recent call last):\n  a made-up line\nValueError: a made-up failure\n")
        return
    broken = np.zeros(len(fake.repeats), bool)
    fake.write(folders, names.INITIAL, -1, [0], broken)
    if state == "all diverged":
        broken[:] = True
    elif state == "one diverged":
        broken[0] = True
    steps = [(log + 1) * fake.every for log in range(LOGS)]
    for task in range(2 if state == "running" else fake.n_tasks):
        fake.write(folders, names.task_folder(task), task, steps, broken)
    if state == "running":
        return
    fake.write(folders, names.JOINT, 99, [fake.last * fake.n_tasks], np.zeros_like(broken))
    folders.finish(experiment, 1.5 + seed, {"compile": 1.0, "train": 0.4 + seed, "write": 0.1})
