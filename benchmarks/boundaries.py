"""Detected boundaries on a stream whose boundaries are known: hits, false alarms and delay, and what they cost a strategy.

    python -m benchmarks.boundaries

digits, five tasks of two classes, MLP 64-100-100-2, SGD 0.05, batch 32, 20 repeats. A task has 83 batches, a prime, so that windows do
not begin where tasks do. A hit is the first detection in a task (but the first task) before its middle; all others are false alarms.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from benchmarks.data import digits_experiment
from benchmarks.timing import report

T, R, STEPS = 5, 20, 83
WINDOWS = (3, 5, 10, 20)
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3)
STRATEGIES: dict[str, dict[str, Any]] = {
    "l2": {"name": "l2", "importance": 1.0},
    "ewc, fisher running": {"name": "ewc", "mode": "online", "fisher": "running", "importance": 70.0},
    "si": {"name": "si", "importance": 1.0, "xi": 0.01},
    "lwf": {"name": "lwf", "alpha": 0.5},
    "er": {"name": "er", "memory_size": 100, "weighting": "by_task"},
}


def experiment() -> dict[str, Any]:
    """The experiment that all trials share."""
    changes = {
        "model": {"name": "mlp", "hidden": [100, 100]},
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
        "training": {"steps": STEPS, "batch_size": 32},
        "logging": {"log_frequency": STEPS, "n_subsamples": 2, "representations": "none", "weights": False},
    }
    return digits_experiment(T, R) | changes


def quality(found: Any) -> tuple[float, float, float]:
    """Share of the boundaries that were found, false alarms a task, and mean delay of the hits in batches.

    Args:
        found: the frame of ``boundaries()``.
    """
    hits, delays = 0, []
    for (task, _), steps in found.groupby(["task", "repeat"])["step"]:
        if task > 0 and steps.min() <= STEPS // 2:
            hits += 1
            delays.append(steps.min())
    return hits / (R * (T - 1)), (len(found) - hits) / (R * T), float(np.mean(delays)) if delays else float("nan")


def main() -> None:
    """Measures and prints."""
    import clray

    rows = []
    with tempfile.TemporaryDirectory() as root:
        grid = {"training.boundaries.window": list(WINDOWS), "training.boundaries.threshold": list(THRESHOLDS)}
        base = experiment()
        base["training"]["boundaries"] = {"name": "detected"}
        found = clray.sweep({"name": "detection", "experiment": base, "grid": grid}, root, local=True)
        for row in found.trials.to_dict("records"):
            hit, false, delay = quality(found.trial(row["trial_id"]).boundaries())
            name = f"window {row['param.training.boundaries.window']:.0f}, threshold {row['param.training.boundaries.threshold']:g}"
            late = f", {delay:4.1f} batches late" if hit else ""
            rows.append((name, f"{hit:6.1%} found, {false:.2f} false alarms a task{late}", ""))
        told: tuple[dict[str, Any], ...] = ({"name": "given"}, {"name": "detected"}, {"window": 5, "threshold": 0.05})
        cases = [{"strategy": strategy, "training.boundaries": how} for strategy in STRATEGIES.values() for how in told]
        compared = clray.sweep({"name": "strategies", "experiment": experiment(), "cases": cases}, root, local=True).trials
        for position, name in enumerate(STRATEGIES):
            own = [compared.iloc[len(told) * position + i] for i in range(len(told))]
            means = [f"{one['acc_mean']:.3f} ± {one['acc_sem']:.3f}" for one in own]
            rows.append((f"{name}: ACC, given / detected / with window 5, threshold 0.05", " / ".join(means), ""))
    report("benchmarks.boundaries", rows)


if __name__ == "__main__":
    main()
