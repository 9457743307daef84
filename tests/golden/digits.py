"""The numbers of one small experiment, as they were when they were last looked at.

The experiment and its numbers are in digits.json. After a change that is meant to change them:

    python -m tests.golden.digits

writes the file anew; look at the difference before you commit it. Tests never write it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import clray

GOLDEN = Path(__file__).with_name("digits.json")


def measure(experiment: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Runs the experiment into ``output`` and sums up everything it logged."""
    results = clray.run(experiment, output=output)
    trial = results.trial(results.trial_ids[0])
    result = trial.result
    assert result is not None
    train = trial.train()
    return {
        "trial_id": trial.trial_id,
        "classes": trial.classes.tolist(),
        "accuracy": _rounded(trial.accuracy()),
        "loss": _rounded(trial.loss()),
        "train_loss": _rounded(train["loss"].to_numpy()),
        "train_accuracy": _rounded(train["accuracy"].to_numpy()),
        "metrics": {name: _rounded(np.array(metric["repeats"])) for name, metric in result["metrics"].items()},
        # Root mean square over everything but tasks, logs and repeats.
        "representations": _rounded(np.stack([_size(trial.representations(task)) for task in trial.tasks])),
        "weights": {
            name: _rounded(np.stack([_size(trial.weights(task)[name]) for task in trial.tasks])) for name in sorted(trial.weights(0))
        },
    }


def _size(array: np.ndarray) -> np.ndarray:
    return np.sqrt((array.astype(np.float64) ** 2).reshape(*array.shape[:2], -1).mean(axis=2))


def _rounded(array: np.ndarray) -> list[Any]:
    return np.round(array.astype(np.float64), 6).tolist()


def main() -> None:
    """Writes digits.json anew, with the experiment that is in it."""
    experiment = json.loads(GOLDEN.read_text())["experiment"]
    with tempfile.TemporaryDirectory() as folder:
        values = measure(experiment, Path(folder))
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in {"experiment": experiment, **values}.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
