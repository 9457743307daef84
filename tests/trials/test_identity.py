"""The trial id is a hash of what the experiment means: nothing that changes the meaning is lost, nothing else enters."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clray.documents import parse_experiment, parse_yaml
from clray.places import Document
from clray.trials.plan import plan_run, plan_sweep
from tests.trials.sweeps import EXPERIMENT, experiment, trial_id

REPOSITORY = Path(__file__).parents[2]
Rate = st.floats(1e-12, 10.0)


def rated(rate: Any, **optimizer: Any) -> dict[str, Any]:
    """The small experiment at one learning rate."""
    return experiment(optimizer={"name": "sgd", "learning_rate": rate, **optimizer})


def test_ids_of_the_quickstart_are_what_they_were() -> None:
    """Results that people have are found again by later versions: change these only with a reason to run everything anew."""
    plan = plan_sweep(REPOSITORY / "sweeps" / "quickstart.yaml")
    assert [trial.trial_id for trial in plan.trials] == [
        "t_bbba16cb5d",
        "t_b024196729",
        "t_0b196eb1b4",
        "t_61c6dc6511",
        "t_46b2c066c6",
        "t_04bc0f26ec",
    ]


@given(a=Rate, b=Rate)
@settings(deadline=None)
def test_different_numbers_are_different_trials(a: float, b: float) -> None:
    assert (trial_id(rated(a)) == trial_id(rated(b))) == (a == b)


@given(rate=Rate)
@settings(deadline=None)
def test_a_number_read_from_yaml_is_the_number(rate: float) -> None:
    read = parse_experiment(parse_yaml(json.dumps(rated(rate)), "file.yaml"))
    assert read.trial_id() == trial_id(rated(rate))


def test_one_is_one_point_zero_and_ten_to_the_minus_five_is_not_nothing() -> None:
    assert trial_id(rated(1)) == trial_id(rated(1.0))
    assert trial_id(rated(0.1, weight_decay=0)) == trial_id(rated(0.1, weight_decay=0.0)) == trial_id(rated(0.1))
    assert trial_id(rated(0.1, weight_decay=1e-5)) != trial_id(rated(0.1))
    text = json.dumps(rated(0.1, weight_decay="W")).replace('"W"', "1e-5")
    assert parse_experiment(parse_yaml(text, "f")).trial_id() == trial_id(rated(0.1, weight_decay=0.00001))


@given(st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_order_of_keys_means_nothing(random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        keys = list(value)
        random.shuffle(keys)
        return {key: shuffled(value[key]) for key in keys}

    assert trial_id(shuffled(EXPERIMENT)) == trial_id(EXPERIMENT)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_defaults_spelled_out_mean_nothing(data: st.DataObject) -> None:
    whole = parse_experiment(Document("experiment", EXPERIMENT)).plain()
    spelled = copy.deepcopy(EXPERIMENT)
    for key, value in whole.items():
        if isinstance(value, dict):
            for inner, default in value.items():
                if default is not None and data.draw(st.booleans(), label=f"{key}.{inner}"):
                    spelled.setdefault(key, {}).setdefault(inner, default)
        elif value is not None and data.draw(st.booleans(), label=key):
            spelled.setdefault(key, value)
    assert trial_id(spelled) == trial_id(EXPERIMENT)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another"},
        {"dataset": {**EXPERIMENT["dataset"], "root": "/somewhere/else"}},
        {"strategy": {"name": "finetune"}},
        {"strategy": [{"name": "finetune"}]},
        {"optimizer": {**EXPERIMENT["optimizer"], "schedule": {}}},
        {"optimizer": {**EXPERIMENT["optimizer"], "schedule": {"name": "constant"}}},
        {"baselines": []},
        {"seed": 0},
    ],
    ids=str,
)
def test_what_does_not_change_the_meaning_does_not_change_the_id(changes: dict[str, Any]) -> None:
    assert trial_id(experiment(**changes)) == trial_id(EXPERIMENT)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"n_repeats": 3},
        {"repeats": [0]},
        {"sequence": {"n_tasks": 3}},
        {"sequence": {"n_tasks": 2, "policy": "reuse"}},
        {"dataset": {"name": "digits"}},
        {"dataset": {**EXPERIMENT["dataset"], "normalize": "standard"}},
        {"model": {"name": "mlp", "hidden": [8, 8]}},
        {"model": {"name": "mlp", "hidden": [8], "activation": "tanh"}},
        {"optimizer": {"name": "adam", "learning_rate": 0.1}},
        {"strategy": [{"name": "finetune"}, {"name": "finetune"}]},
        {"training": {"epochs": 1, "batch_size": 8, "reset_optimizer": True}},
        {"logging": {"log_frequency": 5, "n_subsamples": 4, "weights": False}},
        {"baselines": ["expert"]},
    ],
    ids=str,
)
def test_what_changes_the_meaning_changes_the_id(changes: dict[str, Any]) -> None:
    assert trial_id(experiment(**changes)) != trial_id(EXPERIMENT)


def test_the_order_of_repeats_is_the_order_of_their_axis() -> None:
    assert trial_id(experiment(repeats=[1, 0])) != trial_id(experiment(repeats=[0, 1]))


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """A folder of a user's own arrays."""
    folder = tmp_path / "arrays"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", 80), ("test", 40)):
        np.save(folder / f"X_{part}.npy", rng.random((n, 6), dtype=np.float32))
        np.save(folder / f"y_{part}.npy", np.arange(n) % 4)
    return folder


def test_own_files_enter_by_content_and_not_by_place(arrays: Path, tmp_path: Path) -> None:
    def id_of(folder: Path) -> str:
        return plan_run(experiment(name="own", dataset={"name": "arrays", "root": str(folder)})).trials[0].trial_id

    before = id_of(arrays)
    shutil.copytree(arrays, tmp_path / "copy")
    assert id_of(tmp_path / "copy") == before
    labels = np.load(arrays / "y_test.npy")
    np.save(arrays / "y_test.npy", labels[::-1])
    assert id_of(arrays) != before
