"""How boundaries are asked for, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clray import plugins
from clray.config import Boundaries
from clray.errors import ConfigError
from clray.options import StrategyOptions
from clray.strategies import TABLE
from clray.strategies.base import Strategy
from clray.trials.plan import plan_run
from tests.core.tiny import tiny


def asked(boundaries: Any, **changes: Any) -> Any:
    return plan_run(tiny(training={"epochs": 3, "batch_size": 16, "boundaries": boundaries}, **changes)).trials[0]


def test_short_forms_mean_the_same() -> None:
    whole = asked({"name": "detected", "window": 10, "threshold": 0.1})
    assert asked("detected").trial_id == asked({"name": "detected"}).trial_id == asked({"window": 10}).trial_id == whole.trial_id
    assert whole.experiment.training.boundaries == Boundaries(name="detected")


def test_given_boundaries_are_the_default_and_in_no_trial_id() -> None:
    default = plan_run(tiny()).trials[0].trial_id
    assert asked("given").trial_id == asked({"name": "given"}).trial_id == default
    assert asked("detected").trial_id != default


def test_a_config_that_was_written_reads_back_as_the_same(tmp_path: Path) -> None:
    for boundaries in ("given", "detected", {"window": 5, "threshold": 0.3}):
        trial = asked(boundaries)
        assert plan_run(trial.experiment.plain()).trials[0].trial_id == trial.trial_id


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"window": 0}, "training.boundaries.window: must be greater than or equal to 1, got 0"),
    ({"threshold": 0.0}, "training.boundaries.threshold: must be greater than 0, got 0.0"),
    ({"threshold": 1.0}, "training.boundaries.threshold: must be less than 1, got 1.0"),
    ({"window": 16}, "training.boundaries.window: 16 is larger than the 15 batches of a task, whose end would go unnoticed; use 1 to 15"),
    ({"name": "given", "window": 5}, "training.boundaries: window and threshold are used only with name: detected"),
    ({"name": "guessed"}, "training.boundaries.name: must be 'given' or 'detected'"),
    ({"windows": 5}, "training.boundaries.windows: unknown key; did you mean 'window'?"),
    ("found", "must be 'given' or 'detected', got"),
    (3, "training.boundaries: must be a table, got 3"),
]


@pytest.mark.parametrize(("boundaries", "message"), REFUSED, ids=str)
def test_refused(boundaries: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        asked(boundaries)
    assert message in str(refused.value)


NEED_BOUNDARIES = {
    "ewc": "fisher: exact is taken over the data of a task when it ends; fisher: running is not",
    "mas": "its importances are taken over the data of a task when it ends",
    "agem": "its memory is filled from the data of a task when it ends",
    "gem": "its memory is filled from the data of a task when it ends",
    "cumulative": "its batches come from all data of the tasks so far",
    "shrink_perturb": "it changes the weights at every boundary, so that a false alarm would cost what was learnt",
}
DO_NOT = {"finetune", "l2", "si", "lwf", "er", "der", "der++"}


@pytest.mark.parametrize("name", TABLE)
def test_every_strategy_works_without_boundaries_or_says_why_not(name: str) -> None:
    memory = {"memory_size": 20} if "memory_size" in plugins.options_class("strategies", name).model_fields else {}
    strategy = {"name": name, **memory}
    if name in DO_NOT:
        asked("detected", strategy=strategy)
        return
    with pytest.raises(ConfigError) as refused:
        asked("detected", strategy=[{"name": "finetune"}, strategy])
    expected = f"strategy.1.name: {name} does not work with training.boundaries: detected: {NEED_BOUNDARIES[name]}. Use boundaries: given"
    assert expected in str(refused.value)


def test_a_strategy_does_without_that_is_hooked_to_boundary_but_not_to_what_is_never_called() -> None:
    for name in DO_NOT:
        hooks = plugins.options_class("strategies", name)(name=name).build()
        assert (hooks.begin_task, hooks.end_task) == (Strategy().begin_task, Strategy().end_task), name


def test_what_else_depends_on_given_boundaries() -> None:
    asked("detected", strategy={"name": "ewc", "fisher": "running"})
    for changes, message in (
        ({"strategy": {"name": "er", "memory_size": 20, "selection": "ring"}}, "selection: ring has a part of the memory for every class"),
        ({"optimizer": {"name": "sgd", "schedule": {"name": "cosine"}}}, "optimizer.schedule: a schedule per task needs to know"),
    ):
        with pytest.raises(ConfigError) as refused:
            asked("detected", **changes)
        assert message in str(refused.value)
    with pytest.raises(ConfigError, match=r"training.reset_optimizer: needs to know where tasks begin"):
        plan_run(tiny(training={"epochs": 3, "batch_size": 16, "boundaries": "detected", "reset_optimizer": True}))
    asked("detected", optimizer={"name": "sgd", "schedule": {"name": "cosine", "per": "sequence"}})


class Silent(StrategyOptions):
    """Says nothing about boundaries."""

    def build(self) -> Strategy:
        return Strategy()


def test_a_strategy_of_ones_own_has_to_say_that_it_can_do_without() -> None:
    with pytest.raises(ConfigError, match=r"its class does not say that it can do without \(needs_boundaries\)"):
        asked("detected", strategy={"name": f"{__name__}:Silent"})


EWC_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"fisher": "running", "fisher_sample_size": 5}, "fisher_sample_size is not used with fisher: running"),
    ({"fisher_decay": 0.5}, "fisher_decay is used only with fisher: running"),
    ({"fisher": "running", "fisher_decay": 1.0}, "strategy.fisher_decay: must be less than 1"),
]


@pytest.mark.parametrize(("options", "message"), EWC_OPTIONS)
def test_running_fisher(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_run(tiny(strategy={"name": "ewc", **options}))
    assert message in str(refused.value)
