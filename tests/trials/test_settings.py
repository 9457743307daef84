"""Settings by dotted key, and which of them tell trials apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import clray
from clray.artifacts import write_config
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.store.reader import read_plain_yaml
from clray.trials.plan import plan_run
from clray.trials.settings import flattened, settings_of_config, told_apart
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


def test_what_is_a_table_in_one_and_none_in_another_is_one_setting() -> None:
    configs: dict[str, dict[str, Any]] = {
        "a": {"downstream": None, "strategy": [{"name": "er", "schedule": None}]},
        "b": {"downstream": {"fractions": "all", "n": 3}, "strategy": [{"name": "er", "schedule": {"name": "cosine"}}]},
    }
    assert told_apart({"a": {}, "b": {}}, configs) == {
        "a": {"downstream": None, "strategy.schedule": None},
        "b": {"downstream": {"fractions": "all", "n": 3}, "strategy.schedule": {"name": "cosine"}},
    }


def test_lists_of_equal_names_are_told_whole() -> None:
    methods = [[{"name": "kmeans", "label": label}, {"name": "kmeans", "label": "b"}] for label in "ac"]
    assert told_apart({"a": {}, "b": {}}, {"a": {"methods": methods[0]}, "b": {"methods": methods[1]}}) == {
        "a": {"methods": methods[0]},
        "b": {"methods": methods[1]},
    }


def test_folders_tell_apart_where_their_content_is_the_data_set() -> None:
    def told(name: str) -> Any:
        return told_apart({"a": {}, "b": {}}, {key: {"dataset": {"name": name, "root": f"/{key}"}} for key in "ab"})

    assert told("arrays") == {"a": {"dataset.root": "/a"}, "b": {"dataset.root": "/b"}}
    assert told("mnist") == {"a": {}, "b": {}}


def test_values_are_those_of_the_experiment() -> None:
    configs = {"a": {"n": 48, "rate": 0.1}, "b": {"n": None, "rate": 0.2}}
    assert told_apart({"a": {"n": 48.0}, "b": {"rate": "0.2"}}, configs) == {"a": {"n": 48, "rate": 0.1}, "b": {"rate": 0.2, "n": None}}


@pytest.mark.parametrize("content", ["seed: 2020-01-01", "seed: [.nan]", "seed: " + 20_000 * "[", "seed: {", "[1]", "\xff", None])
def test_a_damaged_config_says_nothing(tmp_path: Path, content: str | None) -> None:
    config = tmp_path / "config.yaml"
    if content is None:
        config.mkdir()
    else:
        config.write_bytes(content.encode("latin-1"))
    assert settings_of_config(Storage.of(tmp_path), "config.yaml") == {}
    assert settings_of_config(Storage.of(tmp_path), "none.yaml") == {}


def test_a_damaged_config_of_another_trial_stops_nothing(tmp_path: Path) -> None:
    first = clray.run(tiny(), output=str(tmp_path))
    config = tmp_path / "tiny" / "trials" / first.trial_ids[0] / "config.yaml"
    config.unlink()
    config.mkdir()
    again = clray.run(tiny(seed=12), output=str(tmp_path))
    assert sorted(again.trials["status"]) == ["done", "done"]


def test_a_config_is_read_as_it_was_written(tmp_path: Path) -> None:
    (trial,) = plan_run(tiny(strategy=[{"name": "er"}, {"name": "ewc"}], baselines=["expert"], model__hidden=[8, 16])).trials
    storage, layout = Storage.of(tmp_path), SweepLayout().trial(trial.trial_id)
    write_config(storage, layout, trial.experiment)
    assert settings_of_config(storage, layout.config) == read_plain_yaml(storage, layout.config) == trial.experiment.plain()


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
