"""What cannot be is refused before anything runs, with the key and what is valid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import annotated_types
import pytest

from clray import plugins
from clray.cli import main
from clray.errors import ConfigError
from clray.strategies import TABLE
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


def fields_of(name: str) -> dict[str, Any]:
    return {key: field for key, field in plugins.options_class("strategies", name).model_fields.items() if key != "name"}


@pytest.mark.parametrize("name", TABLE)
def test_an_unknown_option_is_told_with_all_those_of_the_strategy(name: str) -> None:
    with pytest.raises(ConfigError, match=r"strategy.strenghth: unknown key") as refused:
        plan_run(tiny(strategy={"name": name, "strenghth": 1}))
    told = str(refused.value)
    assert "\n" not in told
    for key in fields_of(name):
        assert re.search(rf"\b{key}\b", told.partition("valid")[2]), key


BELOW = [
    (name, key, limit)
    for name in TABLE
    for key, field in fields_of(name).items()
    for limit in field.metadata
    if isinstance(limit, (annotated_types.Ge, annotated_types.Gt))
]


def test_every_strategy_with_numbers_has_limits_for_them() -> None:
    assert {name for name, _, _ in BELOW} == set(TABLE) - {"finetune", "cumulative"}


@pytest.mark.parametrize(("name", "key", "limit"), BELOW, ids=str)
def test_a_number_out_of_its_range_is_told_with_the_range(name: str, key: str, limit: Any) -> None:
    lowest = getattr(limit, "ge", None)
    value = limit.gt if lowest is None else lowest - 1
    what = f"greater than {limit.gt:g}" if lowest is None else f"greater than or equal to {lowest:g}"
    with pytest.raises(ConfigError) as refused:
        plan_run(tiny(strategy={"name": name, key: value}))
    assert f"strategy.{key}: must be {what}, got {value}" in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["strategy.memory=5"], ["strategy.memory", "memory_size", "selection"]),
        (["strategy.alpha=2"], ["strategy.alpha", "less than or equal to 1"]),
        (["strategy.memory_size=100000"], ["strategy.memory_size", "larger than the", "training samples"]),
        (["strategy.selection=newest"], ["strategy.selection", "reservoir"]),
        (["strategy={name: cumulative}", "sequence.policy=reuse"], ["strategy.name", "cumulative", "disjoint or fixed"]),
        (["strategy={name: gem}", "training.boundaries=detected"], ["strategy.name", "gem", "boundaries: given"]),
        (["training.boundaries={window: 5000}"], ["training.boundaries.window", "5000 is larger than"]),
    ],
)
def test_the_command_ends_with_code_2_and_one_line(
    settings: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "er.yaml"
    file.write_text(
        "name: er\nsequence: {n_tasks: 3, policy: disjoint}\ndataset: {name: digits}\nmodel: {name: mlp, hidden: [5]}\n"
        "optimizer: {name: sgd}\nstrategy: {name: er, memory_size: 20}\ntraining: {epochs: 1, batch_size: 16}\n"
    )
    options = [part for setting in settings for part in ("--set", setting)]
    monkeypatch.setattr("sys.argv", ["clray", "run", str(file), "--output", str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    assert all(word in told for word in words), told
    assert not (tmp_path / "out").exists()
