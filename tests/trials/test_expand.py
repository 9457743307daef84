"""A sweep is the product of its axes, in a fixed order, with equal points merged and draws that stay when the sweep grows."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clray import documents
from clray.errors import ConfigError
from clray.trials.expand import MOST_POINTS, count_points, expand, points
from tests.trials.sweeps import expanded, experiment, parsed, sweep

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 50),
    "n_repeats": st.integers(1, 4),
    "training.batch_size": st.integers(1, 40),
    "optimizer.learning_rate": st.floats(1e-6, 10.0) | st.integers(1, 3),
    "optimizer.momentum": st.floats(0.0, 0.99),
    "model.hidden": st.lists(st.integers(1, 9), min_size=1, max_size=2),
    "model.activation": st.sampled_from(["relu", "tanh", "gelu"]),
}


@st.composite
def axes(draw: st.DrawFn) -> dict[str, Any]:
    """Grid, zip and cases over different keys, each of one to three values."""
    keys = draw(st.permutations(list(VALUES)))
    in_grid, in_zip, in_cases = draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 2))
    grid, zipped, cases = keys[:in_grid], keys[2 : 2 + in_zip], keys[4 : 4 + in_cases]
    length = draw(st.integers(1, 3))
    out: dict[str, Any] = {}
    if grid:
        out["grid"] = {key: draw(st.lists(VALUES[key], min_size=1, max_size=3)) for key in grid}
    if zipped:
        out["zip"] = {key: draw(st.lists(VALUES[key], min_size=length, max_size=length)) for key in zipped}
    if cases:
        out["cases"] = draw(st.lists(st.fixed_dictionaries({}, optional={key: VALUES[key] for key in cases}), min_size=1, max_size=3))
    return out


def by_definition(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The points by plain loops: grid with the last key fastest, inside it zip, inside that cases."""
    combinations: list[dict[str, Any]] = [{}]
    for key, values in data.get("grid", {}).items():
        combinations = [{**point, key: value} for point in combinations for value in values]
    zipped = data.get("zip", {})
    n_rows = len(next(iter(zipped.values()))) if zipped else 1
    rows = [{key: values[i] for key, values in zipped.items()} for i in range(n_rows)]
    return [{**point, **row, **case} for point in combinations for row in rows for case in data.get("cases", [{}])]


@given(axes())
@settings(max_examples=60, deadline=None)
def test_points_are_the_product_in_the_order_of_the_definition(given_axes: dict[str, Any]) -> None:
    checked = parsed(sweep(**given_axes))
    found = [values for values, _ in points(checked)]
    assert found == by_definition(given_axes)
    assert count_points(checked) == len(found)
    grid, zipped = given_axes.get("grid", {}), given_axes.get("zip", {})
    n_rows = len(next(iter(zipped.values()))) if zipped else 1
    assert len(found) == math.prod(map(len, grid.values())) * n_rows * len(given_axes.get("cases", [{}]))


@given(axes())
@settings(max_examples=40, deadline=None)
def test_each_trial_is_the_experiment_with_the_point_put_in(given_axes: dict[str, Any]) -> None:
    trials = expanded(sweep(**given_axes))
    for trial in trials:
        plain = trial.experiment.plain()
        for key, value in trial.params.items():
            table: Any = plain
            for part in key.split("."):
                table = table[part]
            assert table == value


@given(axes())
@settings(max_examples=40, deadline=None)
def test_equal_points_are_one_trial_and_the_first_stays(given_axes: dict[str, Any]) -> None:
    trials = expanded(sweep(**given_axes))
    ids = [trial.trial_id for trial in trials]
    assert len(set(ids)) == len(ids)
    one_by_one = [expanded(sweep(cases=[point]))[0].trial_id for point in by_definition(given_axes)]
    assert ids == list(dict.fromkeys(one_by_one))


def test_one_and_one_point_zero_are_one_trial() -> None:
    trials = expanded(sweep(grid={"optimizer.learning_rate": [1, 1.0, 2]}))
    assert [trial.params["optimizer.learning_rate"] for trial in trials] == [1, 2]


def test_a_table_as_value_replaces_the_whole_table() -> None:
    (trial,) = expanded(sweep(grid={"optimizer": [{"name": "adam"}]}))
    assert trial.experiment.optimizer.name == "adam"
    assert trial.experiment.optimizer.learning_rate == 1e-3  # adam's own, not the 0.1 of the base


def test_a_case_may_set_a_table_and_then_something_in_it() -> None:
    (trial,) = expanded(sweep(cases=[{"optimizer": {"name": "adam"}, "optimizer.b1": 0.5}]))
    assert (trial.experiment.optimizer.name, trial.experiment.optimizer.b1) == ("adam", 0.5)  # type: ignore[attr-defined]


@given(n=st.integers(1, 12), more=st.integers(0, 12), seed=st.integers(0, 2**40), added=st.booleans())
@settings(max_examples=60, deadline=None)
def test_draws_stay_when_n_grows_or_a_key_is_added(n: int, more: int, seed: int, added: bool) -> None:
    keys: dict[str, Any] = {
        "optimizer.learning_rate": {"loguniform": [1e-4, 1.0]},
        "seed": {"int": [0, 1000]},
        "optimizer.momentum": {"uniform": [0, 0.9]},
        "model.activation": {"choice": ["relu", "tanh", "gelu"]},
    }
    extra = {"training.batch_size": {"int": [1, 40]}, **keys} if added else keys
    few = [values for values, _ in points(parsed(sweep(random={"n": n, "seed": seed, "keys": keys})))]
    many = [values for values, _ in points(parsed(sweep(random={"n": n + more, "seed": seed, "keys": extra})))]
    assert few == [{key: values[key] for key in keys} for values in many[:n]]


@given(low=st.floats(1e-8, 1e3), factor=st.floats(1.0001, 1e6), seed=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_draws_lie_within_their_bounds(low: float, factor: float, seed: int) -> None:
    keys = {"a": {"uniform": [low, low * factor]}, "b": {"loguniform": [low, low * factor]}, "c": {"int": [-1, 1]}}
    drawn = [values for values, _ in points(parsed(sweep(random={"n": 20, "seed": seed, "keys": keys})))]
    for point in drawn:
        assert low <= point["a"] <= low * factor
        assert low <= point["b"] <= low * factor
        assert point["c"] in (-1, 0, 1)


def test_whole_numbers_reach_both_bounds_and_choices_all_values() -> None:
    keys = {"a": {"int": [3, 5]}, "b": {"choice": ["x", [1], {"name": "y"}]}}
    drawn = [values for values, _ in points(parsed(sweep(random={"n": 60, "keys": keys})))]
    assert {point["a"] for point in drawn} == {3, 4, 5}
    assert [value for value in ("x", [1], {"name": "y"}) if value not in [point["b"] for point in drawn]] == []


def test_every_random_point_meets_every_point_of_the_grid() -> None:
    data = sweep(grid={"seed": [0, 1]}, random={"n": 3, "keys": {"optimizer.learning_rate": {"uniform": [0.1, 0.2]}}})
    rates = [[t.params["optimizer.learning_rate"] for t in expanded(data) if t.params["seed"] == seed] for seed in (0, 1)]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == 3


CLASHING: list[dict[str, Any]] = [
    {"grid": {"seed": [0]}, "zip": {"seed": [1]}},
    {"grid": {"optimizer": [{"name": "sgd"}], "optimizer.learning_rate": [0.1]}},
    {"grid": {"optimizer.learning_rate": [0.1]}, "cases": [{"optimizer": {"name": "sgd"}}]},
    {"zip": {"model.hidden": [[8]]}, "random": {"n": 1, "keys": {"model.hidden.0": {"int": [4, 8]}}}},
    {"cases": [{"seed": 1}], "random": {"n": 1, "keys": {"seed": {"int": [1, 2]}}}},
]


@pytest.mark.parametrize("clashing", CLASHING, ids=str)
def test_axes_that_set_the_same_value_are_refused(clashing: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="set the same value; keep one of them"):
        expanded(sweep(**clashing))


def test_a_table_after_what_is_in_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="cases: training comes after training.epochs and would replace it"):
        expanded(sweep(cases=[{"training.epochs": 3, "training": {"epochs": 1, "batch_size": 8}}]))


def test_keys_that_only_begin_alike_do_not_clash() -> None:
    assert len(expanded(sweep(grid={"n_repeats": [1, 2]}, zip={"repeats": [[0]]}))) == 2


def test_too_many_points_are_refused_without_making_them() -> None:
    ten = list(range(10))
    data = sweep(grid={"seed": ten, "n_repeats": ten}, random={"n": 10**9, "keys": {"model.hidden.0": {"int": [1, 2]}}})
    with pytest.raises(ConfigError, match=f"make 100000000000 points, and {MOST_POINTS} is the most"):
        expanded(data)


def test_a_wrong_point_names_its_axis_and_line(tmp_path: Any) -> None:
    from clray.trials.plan import plan_sweep

    path = tmp_path / "s.yaml"
    lines = ["name: s", "experiment:", "  sequence: {n_tasks: 2}", "  dataset: {name: digits}", "  model: {name: mlp}"]
    lines += ["  optimizer: {name: sgd}", "  training: {epochs: 1}", "  logging: {log_frequency: 1, n_subsamples: 2}"]
    lines += ["cases:", "- {seed: 1}", "- {seed: 2, training.epochs: 0}"]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError) as caught:
        plan_sweep(path)
    assert str(caught.value) == f"{path}:11: cases[1].training.epochs: must be greater than or equal to 1, got 0"


def test_files_that_people_own_are_looked_at_once_a_data_set() -> None:
    looked: list[Any] = []
    data = sweep(grid={"seed": [0, 1, 2], "dataset.train_per_class": [20, 30]})

    def fingerprint(options: Any) -> None:
        looked.append(options.train_per_class)

    checked = parsed(data)
    from clray.places import Document

    trials = expand(checked, Document("s", data["experiment"]), fingerprint)
    assert len(trials) == len(list(itertools.product(range(3), range(2))))
    assert looked == [20, 30]


def test_tables_that_no_axis_changes_are_validated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    validated: list[str] = []
    read = documents._plugin

    def counted(kind: str, *given: Any) -> Any:
        validated.append(kind)
        return read(kind, *given)

    monkeypatch.setattr(documents, "_plugin", counted)
    trials = expanded(sweep(grid={"seed": list(range(20)), "model": [{"name": "mlp", "hidden": [4]}, {"name": "mlp", "hidden": [5]}]}))
    assert sorted(validated) == ["datasets", "models", "models", "optimizers", "strategies"]
    assert [trial.experiment.model.hidden for trial in trials[:3]] == [(4,), (5,), (4,)]  # type: ignore[attr-defined]


POPPING = """
from pydantic import model_validator

from clray.selection.random import Random


class Popping(Random):
    k: int = 1

    @model_validator(mode="before")
    @classmethod
    def _take_out(cls, table):
        if "kk" in table:
            return {"k": table.pop("kk"), **table}
        return table
"""


def test_a_plugin_that_takes_its_table_apart_spoils_no_later_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "popping.py").write_text(POPPING)
    monkeypatch.syspath_prepend(tmp_path)
    memory = {"methods": [{"name": "popping:Popping", "kk": 3}], "fractions": [0.5], "num_samples": 2}
    trials = expanded(sweep(base=experiment(study="gradient_similarity", memory=memory), grid={"seed": [0, 1, 2]}))
    assert [trial.experiment.memory.methods[0].k for trial in trials] == [3, 3, 3]  # type: ignore[attr-defined]


def test_all_problems_of_a_point_are_told_in_one_order() -> None:
    wrong = experiment(optimizer={"name": "nope"}, training={"epochs": 1, "batch_size": float("inf")})
    with pytest.raises(ConfigError) as caught:
        expanded(sweep(base=wrong, grid={"seed": [0, 1]}))
    first, second = str(caught.value).splitlines()[-2:]
    assert "batch_size" in first  # numbers that nothing can take come first, wherever they are
    assert "nope" in second
