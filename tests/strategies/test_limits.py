"""Limits that say what a strategy is, through the real training program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from clray.strategies import TABLE
from tests.core.tiny import Arrays, assert_same_bits, prepare, table, tiny, train

NO_STRENGTH: dict[str, list[dict[str, Any]]] = {
    "l2": [{}],
    "ewc": [{}, {"mode": "online", "fisher": "argmax", "fisher_sample_size": 20}],
    "si": [{}],
    "mas": [{}],
    "lwf": [{}],
    "er": [{}],
    "der": [{}],
    "der++": [{}],
    "shrink_perturb": [{}],
}
WITHOUT_STRENGTHS = {"finetune", "cumulative", "agem", "gem"}
ZERO = {"importance": 0.0, "alpha": 0.0, "beta": 0.0, "shrink": 1.0, "noise": 0.0}
CASES = [(name, options) for name, cases in NO_STRENGTH.items() for options in cases]
ROUNDING = 2e-5
"""Sums over more rows are added up in another order; 24 steps of momentum amplify that some hundred times."""


def trained(folder: Path, strategy: Mapping[str, Any], *, zero: tuple[bool, bool]) -> list[Arrays]:
    """Two lanes of the same repeat, with the strategy's default numbers or with those that leave it nothing to do."""
    memory = {"memory_size": 30} if "memory_size" in options_of(strategy["name"]) else {}
    experiment = tiny(
        n_repeats=1,
        sequence={"n_tasks": 2},
        model={"name": "mlp", "hidden": [11]},
        optimizer={"name": "sgd", "learning_rate": 0.05, "momentum": 0.8},
        strategy={**memory, **strategy},
        training={"steps": 12, "batch_size": 10},
        logging={"log_frequency": 6, "n_subsamples": 2},
    )
    (trial,) = prepare(experiment, folder=folder)
    lanes = jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=0), trial.lanes())
    numbers = {
        name: np.array([ZERO.get(name[2:], value[0]) if none else value[0] for none in zero], np.float32)
        for name, value in lanes.strategy.items()
    }
    return train(trial, lanes._replace(strategy=numbers), jax.local_devices()[:1], width=2)


def options_of(name: str) -> Mapping[str, Any]:
    from clray import plugins

    return plugins.options_class("strategies", name).model_fields


@pytest.fixture(scope="module")
def finetune(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    return trained(tmp_path_factory.mktemp("finetune"), {"name": "finetune"}, zero=(False, False))[0]


def test_every_strategy_with_a_strength_has_its_limit_tested() -> None:
    assert set(NO_STRENGTH) | WITHOUT_STRENGTHS == set(TABLE)
    assert not set(NO_STRENGTH) & WITHOUT_STRENGTHS


@pytest.mark.parametrize(("name", "options"), CASES)
def test_without_strength_it_is_finetune_and_the_lane_beside_it_is_not(
    name: str, options: dict[str, Any], finetune: Arrays, tmp_path: Path
) -> None:
    none, some = trained(tmp_path / "mixed", {"name": name, **options}, zero=(True, False))
    for key, expected in finetune.items():
        if not key.startswith("state .strategy"):
            np.testing.assert_allclose(none[key], expected, rtol=ROUNDING, atol=ROUNDING, err_msg=key)
    difference = np.abs(some["state .params['head.kernel']"] - finetune["state .params['head.kernel']"]).max()
    assert difference > 20 * ROUNDING, "the default strength does nothing here"
    again, _ = trained(tmp_path / "alike", {"name": name, **options}, zero=(False, False))
    assert_same_bits(again, some)


@pytest.mark.parametrize("name", ["agem", "gem"])
def test_projections_change_nothing_in_the_first_task_but_do_in_the_second(name: str, finetune: Arrays, tmp_path: Path) -> None:
    found, _ = trained(tmp_path / "sweep", {"name": name}, zero=(False, False))
    np.testing.assert_allclose(found["0 head.kernel"], finetune["0 head.kernel"], rtol=ROUNDING, atol=ROUNDING)
    assert np.abs(found["1 head.kernel"] - finetune["1 head.kernel"]).max() > 20 * ROUNDING


def test_gem_of_a_single_task_is_plain_training(tmp_path: Path) -> None:
    """There is no earlier task: its arrays would have no rows."""
    options = {"n_repeats": 1, "sequence": {"n_tasks": 1}, "model": {"name": "mlp", "hidden": [11]}}
    ends = []
    ends = []
    for name in ("gem", "finetune"):
        (trial,) = prepare(tiny(strategy={"name": name}, **options), folder=tmp_path / name)
        trial.run()
        ends.append(table(trial.folder / "task_000", "end.parquet")["loss"])
    np.testing.assert_allclose(*ends, rtol=ROUNDING)


def test_replay_of_everything_comes_near_to_joint_and_to_cumulative_training(tmp_path: Path) -> None:
    """Memory for the whole sequence, every task so far weighed the same: what is left is that later tasks come later."""
    experiment = tiny(
        n_repeats=4,
        sequence={"n_tasks": 5},
        model={"name": "mlp", "hidden": [24]},
        optimizer={"name": "sgd", "learning_rate": 0.1},
        training={"epochs": 20, "batch_size": 12},
        strategy={"name": "er", "memory_size": 420, "replay_batch": 48, "weighting": "by_task"},
        logging={"log_frequency": 140, "n_subsamples": 2, "representations": "none", "weights": False},
        baselines=["joint"],
    )
    (trial,) = prepare(experiment, folder=tmp_path / "replay")
    replayed = trial.run()["metrics"]["acc"]["mean"]
    joint = float(table(trial.folder / "joint", "end.parquet")["accuracy"].mean())
    (plain,) = prepare({**experiment, "strategy": {"name": "finetune"}, "baselines": []}, folder=tmp_path / "plain")
    forgotten = plain.run()["metrics"]["acc"]["mean"]
    (everything,) = prepare({**experiment, "strategy": {"name": "cumulative"}, "baselines": []}, folder=tmp_path / "cumulative")
    cumulative = everything.run()["metrics"]["acc"]["mean"]
    assert joint - 0.02 <= replayed <= joint + 0.02
    assert cumulative - 0.02 <= replayed <= cumulative + 0.02
    assert forgotten < joint - 0.08
