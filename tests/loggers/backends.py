"""Loggers for tests, and what real backends hold: (name of a value, step) to the values found there."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from clray.loggers.wandb import log_records
from clray.options import LoggerOptions
from clray.plugins import options_class

Held = dict[tuple[str, int], list[float]]

NAMES = ("tensorboard", "wandb", "mlflow")
MISSING = {name: [n for n in options_class("loggers", name).needs if importlib.util.find_spec(n) is None] for name in NAMES}
INSTALLED = [name for name in NAMES if not MISSING[name]]
TABLES: dict[str, dict[str, Any]] = {
    "tensorboard": {"name": "tensorboard", "tags": ("pilot",)},
    "wandb": {"name": "wandb", "project": "tests", "entity": "people", "tags": ("pilot", "digits"), "mode": "offline"},
    "mlflow": {"name": "mlflow", "project": "tests", "tags": ("pilot", "stage=first")},
}


class Lines(LoggerOptions):
    """Writes a line a call to ``folder/<trial>.jsonl``, and does what ``order`` says when it comes to ``task``."""

    folder: str
    order: str = ""  # "kill before", "kill after", "raise", "hang"
    task: Annotated[int, Field(ge=0)] = 0
    tells: bool = False  # how much it holds

    def build(self) -> LinesLogger:
        return LinesLogger(self)


class Plain(LoggerOptions):
    """Nothing of its own."""


class Elsewhere(LoggerOptions):
    """Needs what nobody has."""

    needs: ClassVar[tuple[str, ...]] = ("no_such_module",)


class LinesLogger:
    def __init__(self, options: Lines):
        self.options = options

    def begin(self, run: Any) -> int | None:
        self.file = Path(self.options.folder) / f"{run.trial_id}.jsonl"
        self.write("begin", run.trial_id)
        return len(tasks_in(self.file)) if self.options.tells else None

    def log(self, task: int, points: Any) -> None:
        order = self.options.order if task == self.options.task and not self.file.with_name("mended").exists() else ""
        if order == "kill before":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "raise":
            raise ConnectionError("no network\nat all")
        if order == "hang":
            time.sleep(30)
        self.write("log", task)
        if order == "kill after":
            os.kill(os.getpid(), signal.SIGKILL)

    def finish(self, status: str, metrics: Any) -> None:
        self.write("finish", [status, dict(metrics)])

    def write(self, call: str, value: Any) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps([call, value]) + "\n")


def calls_in(file: Path) -> list[list[Any]]:
    """The calls of one trial, in order."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def tasks_in(file: Path) -> list[int]:
    """The tasks that were logged, in order."""
    return [value for call, value in calls_in(file) if call == "log"]


def held_by_tensorboard(folder: Path, trial_id: str) -> Held:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder / "tensorboard" / trial_id), {"tensors": 0})
    events.Reload()
    held: Held = defaultdict(list)
    for tag in events.Tags()["tensors"]:
        if "/" in tag and not tag.startswith("_"):
            for event in events.Tensors(tag):
                held[tag, event.step].append(float(make_ndarray(event.tensor_proto)))
    return held


def held_by_mlflow(folder: Path, trial_id: str) -> Held:
    run, client = mlflow_run(folder, trial_id)
    held: Held = defaultdict(list)
    for key in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, key):
            held[key, metric.step].append(metric.value)
    return held


def mlflow_run(folder: Path, trial_id: str) -> tuple[Any, Any]:
    """The one run of a trial, and the client."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.mlflow.runName = '{trial_id}'")
    return run, client


def held_by_wandb(folder: Path, trial_id: str) -> Held:
    held: Held = defaultdict(list)
    for record in wandb_records(folder, trial_id):
        if record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for key, value in row.items():
                if "/" in key:
                    held[key, row["_step"]].append(value)
    return held


def wandb_records(folder: Path, trial_id: str) -> list[Any]:
    """All records of all offline runs of a trial, oldest first."""
    from wandb.proto.wandb_internal_pb2 import Record

    records = []
    for file in sorted((folder / "wandb").glob(f"offline-run-*-{trial_id}/*.wandb")):
        for data in log_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            records.append(record)
    return records


HELD_BY = {"tensorboard": held_by_tensorboard, "wandb": held_by_wandb, "mlflow": held_by_mlflow}
