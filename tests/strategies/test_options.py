"""What cannot be is refused before anything runs, with the key and what is valid."""

from __future__ import annotations

import re
from typing import Any

import pytest

from clray.errors import ConfigError
from clray.trials.plan import plan_run
from tests.core.tiny import tiny

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "er", "memory_size": 253}, "strategy.memory_size: 253 is larger than the 252 training samples of the sequence"),
    ({"name": "er", "memory_size": 5, "selection": "ring"}, "strategy.memory_size: 5 leaves no slot for each of the 6 classes"),
    ({"name": "er", "weighting": "by_task", "alpha": 0.2}, "alpha is used only with weighting: alpha"),
    ({"name": "er", "alpha": 1.5}, "alpha"),
    ({"name": "er", "selection": "newest"}, "'reservoir', 'class_balanced', 'ring'"),
    ({"name": "er", "memory_size": 2, "selection": "herding"}, "strategy.memory_size: 2 leaves no sample for each of the 3 tasks"),
    ({"name": "gem", "selection": "reservoir"}, "reservoir places samples as they come by"),
    ({"name": "agem", "selection": "ring"}, "choose one of random, class_balanced, kmeans, gss, lambda, herding"),
    ({"name": "er", "memory": 5}, "memory_size"),
    ({"name": "der++", "memory_size": 1000}, "strategy.memory_size: 1000 is larger than the 252"),
    ({"name": "agem", "memory_size": 2}, "strategy.memory_size: 2 split between 3 tasks"),
    ({"name": "gem", "memory_size": 85}, "strategy.memory_size: 85 is larger than the 84 training samples of a task"),
    ({"name": "gem", "margin": -0.1}, "margin"),
    ({"name": "ewc", "gamma": 0.5}, "gamma is used only with mode: online"),
    ({"name": "ewc", "fisher_sample_size": 85}, "strategy.fisher_sample_size: 85 is more than the 84 training samples of a task"),
    ({"name": "mas", "sample_size": 85}, "strategy.sample_size: 85 is more than the 84"),
    ({"name": "si", "xi": 0.0}, "xi"),
    ({"name": "lwf", "temperature": 0.0}, "temperature"),
    ({"name": "shrink_perturb", "shrink": 1.1}, "shrink"),
]


@pytest.mark.parametrize(("strategy", "message"), REFUSED)
def test_refused(strategy: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan_run(tiny(strategy=strategy))


def test_the_position_in_a_list_is_named() -> None:
    with pytest.raises(ConfigError, match=re.escape("strategy.1.memory_size: 500")):
        plan_run(tiny(strategy=[{"name": "ewc"}, {"name": "er", "memory_size": 500}]))
