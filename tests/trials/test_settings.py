"""Settings by dotted key, and which of them tell trials apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clray
from clray.trials.settings import flattened, told_apart
from tests.core.tiny import tiny


def test_tables_that_were_swept_are_taken_apart() -> None:
    assert dict(flattened("optimizer", {"name": "sgd", "schedule": {"name": "cosine"}})) == {
        "optimizer.name": "sgd",
        "optimizer.schedule.name": "cosine",
    }
    assert dict(flattened("strategy", [{"name": "ewc", "strength": 2.0}])) == {"strategy.name": "ewc", "strategy.strength": 2.0}
    assert dict(flattened("strategy", [{"name": "ewc", "strength": 2.0}, {"name": "er"}])) == {
        "strategy.name": "ewc+er",
        "strategy.ewc.strength": 2.0,
    }
    assert dict(flattened("model.hidden", [32, 32])) == {"model.hidden": [32, 32]}


def test_only_what_differs_and_is_not_said_yet_is_told() -> None:
    configs: dict[str, dict[str, Any]] = {
        "a": {"name": "one", "seed": 0, "optimizer": {"name": "sgd", "learning_rate": 0.1}, "dataset": {"name": "digits", "root": "x"}},
        "b": {"name": "two", "seed": 0, "optimizer": {"name": "sgd", "learning_rate": 0.2}, "dataset": {"name": "digits", "root": "y"}},
        "c": {"seed": 0, "optimizer": {"name": "adam", "learning_rate": 0.1, "b1": 0.9}, "dataset": {"name": "digits"}},
    }
    assert told_apart({name: {} for name in configs}, configs) == {
        "a": {"optimizer.learning_rate": 0.1, "optimizer.name": "sgd"},
        "b": {"optimizer.learning_rate": 0.2, "optimizer.name": "sgd"},
        "c": {"optimizer.learning_rate": 0.1, "optimizer.name": "adam"},
    }
    swept = {"a": {"optimizer": {"name": "sgd", "learning_rate": 0.1}}, "b": {"optimizer.learning_rate": 0.2}, "c": {}}
    assert told_apart(swept, configs) == {
        "a": swept["a"],
        "b": {"optimizer.learning_rate": 0.2, "optimizer.name": "sgd"},
        "c": {"optimizer.learning_rate": 0.1, "optimizer.name": "adam"},
    }
    assert told_apart({"a": {"seed": 0}, "b": {}}, {"a": configs["a"], "b": {}}) == {"a": {"seed": 0}, "b": {}}, "a damaged config"


def test_what_one_sweep_varies_is_told_of_the_trials_of_another() -> None:
    configs = {"a": {"seed": 1, "n_repeats": 2}, "b": {"seed": 1, "n_repeats": 4}}
    assert told_apart({"a": {"seed": 1}, "b": {}}, configs) == {"a": {"n_repeats": 2, "seed": 1}, "b": {"n_repeats": 4, "seed": 1}}


def test_runs_of_one_file_with_other_settings_differ_in_the_table(tmp_path: Path) -> None:
    for rate in (0.05, 0.1):
        clray.run(tiny(optimizer__learning_rate=rate), output=str(tmp_path))
    results = clray.sweep({"name": "tiny", "experiment": tiny(seed=12), "grid": {"n_repeats": [2]}}, output=str(tmp_path), local=True)
    trials = clray.open(tmp_path / "tiny").trials
    assert sorted(zip(trials["param.optimizer.learning_rate"], trials["param.seed"], trials["param.n_repeats"], strict=True)) == [
        (0.05, 11, 4),
        (0.05, 12, 2),
        (0.1, 11, 4),
    ]
    assert len(results.trials) == 3
