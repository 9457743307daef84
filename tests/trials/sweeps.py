"""Small sweeps for the tests of this folder, as plain data and as files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from clray.config import Sweep
from clray.documents import parse_experiment, parse_sweep
from clray.places import Document
from clray.trials.expand import Trial, expand

EXPERIMENT: dict[str, Any] = {
    "n_repeats": 2,
    "sequence": {"n_tasks": 2},
    "dataset": {"name": "digits", "train_per_class": 20},
    "model": {"name": "mlp", "hidden": [8]},
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
    "training": {"epochs": 1, "batch_size": 8},
    "logging": {"log_frequency": 5, "n_subsamples": 4},
}


def experiment(**changes: Any) -> dict[str, Any]:
    """The small experiment with tables or values replaced."""
    return copy.deepcopy(EXPERIMENT) | changes


def sweep(name: str = "small", base: dict[str, Any] | None = None, **axes: Any) -> dict[str, Any]:
    """A sweep over the small experiment."""
    return {"name": name, "experiment": experiment() if base is None else base, **axes}


def parsed(data: dict[str, Any]) -> Sweep:
    """The validated sweep."""
    return parse_sweep(Document("sweep.yaml", data))


def expanded(data: dict[str, Any]) -> list[Trial]:
    """Its trials."""
    return expand(parsed(data), Document("sweep.yaml", data["experiment"]))


def trial_id(data: dict[str, Any]) -> str:
    """The id of one experiment."""
    return parse_experiment(Document("experiment.yaml", data)).trial_id()


def write(path: Path, data: dict[str, Any]) -> Path:
    """A file with the data; JSON is YAML."""
    path.write_text(json.dumps(data, indent=1))
    return path
