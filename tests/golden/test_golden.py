"""A small experiment gives the numbers that are written down, whoever changed what since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.digits import GOLDEN, measure

TOLERANCE = 1e-4
"""Far above float32 rounding on another machine, far below what any change of data, order, keys or arithmetic does."""


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    """What is written down; that the file is missing is an error and nothing writes it but its own command."""
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def found(golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the same experiment gives now."""
    return measure(golden["experiment"], tmp_path_factory.mktemp("golden"))


def test_everything_that_is_measured_is_written_down(golden: dict[str, Any], found: dict[str, Any]) -> None:
    assert set(golden) == {"experiment", *found}


@pytest.mark.parametrize("name", ["trial_id", "classes"])
def test_identity_and_classes_are_the_same(golden: dict[str, Any], found: dict[str, Any], name: str) -> None:
    assert found[name] == golden[name]


@pytest.mark.parametrize("name", ["accuracy", "loss", "train_loss", "train_accuracy", "representations"])
def test_numbers_are_the_same(golden: dict[str, Any], found: dict[str, Any], name: str) -> None:
    np.testing.assert_allclose(found[name], golden[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("group", ["metrics", "weights"])
def test_named_numbers_are_the_same(golden: dict[str, Any], found: dict[str, Any], group: str) -> None:
    assert sorted(found[group]) == sorted(golden[group])
    for name, values in golden[group].items():
        np.testing.assert_allclose(found[group][name], values, rtol=0, atol=TOLERANCE, err_msg=name)


def test_the_numbers_are_worth_comparing(golden: dict[str, Any]) -> None:
    accuracy = np.asarray(golden["accuracy"])
    assert accuracy.shape == (3, 3, 4, 3)
    assert accuracy[2, 2, :, 2].mean() > 0.8, "the last task is learned"
    assert accuracy[2, 2, :, 0].mean() < accuracy[0, 2, :, 0].mean(), "the first one is partly forgotten"
    assert Path(GOLDEN).stat().st_size < 20_000
