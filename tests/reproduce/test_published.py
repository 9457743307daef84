"""Published files: what is refused, which trial a row is about, and that those that come with clray hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clray.documents import parse_sweep, parse_table, read_sweep
from clray.errors import ConfigError
from clray.places import Document
from clray.reproduce.find import OWN, SHIPPED, find_files, known_tables
from clray.reproduce.match import match_rows, overridden
from clray.reproduce.published import Published, read_published
from clray.trials.expand import Trial, expand
from tests.trials.sweeps import expanded, parsed, sweep

REPOSITORY = Path(__file__).parents[2]
SPLIT_MNIST = [
    *("t_89e19a2c8d", "t_deac359c9c", "t_79b787bdee"),  # finetune in scenario task, domain, class
    *("t_1356a20a68", "t_9151188b1b", "t_ff5b604b5f"),  # cumulative
    *("t_685c68800b", "t_bbfd26b56a", "t_39da1d6f5c"),  # si
    *("t_f3b0db9d29", "t_f2b877374f", "t_03945264b6"),  # ewc
]
NUMBERS = {"mean": 50.0, "sem": 1.0, "n": 20, "source": "a paper, table 1"}


def rows(*points: dict[str, Any]) -> tuple[Published, Document]:
    """A published file with a row a point."""
    document = Document("x.published.yaml", {"rows": [{"method": f"m{i}", "point": point, **NUMBERS} for i, point in enumerate(points)]})
    return parse_table(document, Published), document


def matched(data: dict[str, Any], *points: dict[str, Any], settings: dict[str, Any] | None = None) -> list[Trial]:
    """The trials that points are about."""
    return match_rows(*rows(*points), parsed(data), expanded(data), settings)


def refused(data: dict[str, Any], *points: dict[str, Any], settings: dict[str, Any] | None = None) -> str:
    """The message with which points are refused."""
    with pytest.raises(ConfigError) as caught:
        matched(data, *points, settings=settings)
    return str(caught.value)


# --- Which trial ---------------------------------------------------------------------------------------------------------------------


def test_a_row_finds_its_trial_by_meaning_and_not_by_spelling() -> None:
    data = sweep(cases=[{"strategy": {"name": "ewc", "importance": 10.0}}, {"strategy": {"name": "si"}, "optimizer.learning_rate": 0.01}])
    ewc, si = expanded(data)
    spelt_differently = [
        {"optimizer": {"learning_rate": 0.01, "name": "sgd"}, "strategy": [{"name": "si", "importance": 0.1, "xi": 0.1}]},
        {"strategy": {"importance": 10, "name": "ewc", "mode": "separate"}, "sequence.scenario": "domain"},
    ]
    assert [trial.trial_id for trial in matched(data, *spelt_differently)] == [si.trial_id, ewc.trial_id]


def test_several_rows_may_be_about_one_trial() -> None:
    data = sweep(cases=[{"seed": 1}, {"seed": 2}])
    assert len({trial.trial_id for trial in matched(data, {"seed": 1}, {"seed": 1})}) == 1


def test_axes_that_a_row_leaves_out_stay_open_and_may_leave_one_trial() -> None:
    data = sweep(zip={"seed": [1, 2], "training.batch_size": [4, 8]}, grid={"optimizer.learning_rate": [0.1]})
    assert [trial.experiment.training.batch_size for trial in matched(data, {"seed": 2}, {"training.batch_size": 4})] == [8, 4]


def test_a_row_that_matches_no_trial_is_named() -> None:
    said = refused(sweep(cases=[{"seed": 1}]), {"seed": 1}, {"seed": 2})
    assert said.startswith("x.published.yaml: rows[1] (m1): no trial of the sweep is the one that this row is about; its point is t_")


def test_a_row_that_matches_several_trials_is_named_with_what_it_leaves_open() -> None:
    data = sweep(grid={"optimizer.learning_rate": [0.1, 0.2], "seed": [0, 1]})
    said = refused(data, {"optimizer.learning_rate": 0.1})
    ids = [trial.trial_id for trial in expanded(data)[:2]]
    assert said == f"x.published.yaml: rows[0] (m0): 2 trials of the sweep match ({', '.join(ids)}); set seed in its point too"


def test_a_row_whose_point_is_not_valid_is_named() -> None:
    said = refused(sweep(cases=[{"seed": 1}]), {"optimizer.learning_rat": 0.1})
    assert said.startswith("x.published.yaml: rows[0] (m0): point.optimizer.learning_rat: unknown key; did you mean 'learning_rate'?")


def test_settings_go_before_what_a_row_says() -> None:
    point = {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "training.batch_size": 8}
    assert overridden(point, {"training": {"epochs": 2}}) == {"optimizer": point["optimizer"]}
    assert overridden(point, {"optimizer.learning_rate": 0.2, "seed": 3}) == {**point, "optimizer.learning_rate": 0.2}
    data = sweep(cases=[{"seed": 1}])
    data["experiment"]["training"]["batch_size"] = 4  # as plan_sweep applies --set training.batch_size=4
    assert refused(data, {"seed": 1, "training.batch_size": 8})
    assert matched(data, {"seed": 1, "training.batch_size": 8}, settings={"training.batch_size": 4})


# --- The file ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sme": 0.1}, "x.published.yaml:2: rows.0.sme: unknown key; did you mean 'sem'? valid: mean, method, n, point, sem, source"),
        ({"mean": 101.0}, "x.published.yaml:2: rows.0.mean: must be less than or equal to 100, got 101.0"),
        ({"sem": -1.0}, "x.published.yaml:2: rows.0.sem: must be greater than or equal to 0, got -1.0"),
        ({"n": 2.5}, "x.published.yaml:2: rows.0.n: must be a whole number, got 2.5"),
        ({"point": {}}, "x.published.yaml:2: rows.0.point: must be a table with at least one key, got {}"),
        ({"source": ""}, "x.published.yaml:2: rows.0.source: "),
    ],
)
def test_a_published_file_that_is_not_valid_is_refused_with_its_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    row = {"method": "EWC", "point": {"seed": 1}, **NUMBERS, **changes}
    (tmp_path / "x.published.yaml").write_text(f"rows:\n  - {json.dumps(row)}\n")
    with pytest.raises(ConfigError) as caught:
        read_published(tmp_path / "x.published.yaml")
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)


@pytest.mark.parametrize("text", ["rows: []", "row: 1", "rows: {a: 1}"])
def test_a_published_file_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.published.yaml").write_text(text)
    with pytest.raises(ConfigError, match="rows: "):
        read_published(tmp_path / "x.published.yaml")


# --- Names ---------------------------------------------------------------------------------------------------------------------------


def test_tables_of_the_working_directory_go_before_those_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_files("split_mnist") == (SHIPPED / "split_mnist.yaml", SHIPPED / "split_mnist.published.yaml")
    OWN.mkdir(parents=True)
    for name in ("split_mnist", "mine"):
        (OWN / f"{name}.published.yaml").touch()
    assert find_files("split_mnist")[0] == SHIPPED / "split_mnist.yaml"  # numbers without a sweep are no table
    for name in ("split_mnist", "mine"):
        (OWN / f"{name}.yaml").touch()
        assert find_files(name) == (OWN / f"{name}.yaml", OWN / f"{name}.published.yaml")
    assert list(known_tables()) == ["permuted_mnist", "split_mnist", "mine"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("split_mnits", "no published table 'split_mnits'; did you mean 'split_mnist'? valid: permuted_mnist, split_mnist. "),
        ("split_mnist_strengths", "no published table 'split_mnist_strengths'; did you mean 'split_mnist'? "),
        ("not/there.yaml", "not/there.yaml: no such file; tables that come with clray are given by name alone: permuted_mnist"),
        ("alone.yaml", "alone.yaml: the published numbers to compare with are missing: they are read from alone.published.yaml"),
        ("my.published.yaml", "my.published.yaml: give the sweep file that these numbers belong to, my.yaml"),
    ],
)
def test_a_name_that_is_none_says_what_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("alone.yaml").touch()
    with pytest.raises(ConfigError) as caught:
        find_files(name)
    assert str(caught.value).startswith(message)


# --- What comes with clray -----------------------------------------------------------------------------------------------------------


def trials_of(name: str) -> tuple[Any, list[Trial]]:
    """The sweep of a shipped table and its trials."""
    document, base = read_sweep(SHIPPED / f"{name}.yaml")
    found = parse_sweep(document)
    return found, expand(found, base, document=document)


def test_the_package_ships_the_files_of_the_repository() -> None:
    names = sorted(path.name for path in (REPOSITORY / OWN).iterdir())
    assert sorted(path.name for path in SHIPPED.iterdir()) == names
    assert {"split_mnist.yaml", "split_mnist.published.yaml", "permuted_mnist.yaml", "permuted_mnist.published.yaml"} <= set(names)


@pytest.mark.parametrize("name", ["split_mnist", "permuted_mnist"])
def test_every_shipped_row_finds_one_trial_and_every_trial_has_a_row(name: str) -> None:
    found, trials = trials_of(name)
    matches = match_rows(*read_published(SHIPPED / f"{name}.published.yaml"), found, trials)
    assert [trial.trial_id for trial in matches] == [trial.trial_id for trial in trials]


def test_trials_of_split_mnist_are_those_that_were_computed() -> None:
    assert [trial.trial_id for trial in trials_of("split_mnist")[1]] == SPLIT_MNIST


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "split_mnist",
            {
                "None": "85.15 1.0 57.33 1.66 19.9 0.02",
                "offline": "99.64 0.03 98.41 0.06 97.93 0.04",
                "SI": "99.14 0.11 63.77 1.18 20.04 0.08",
                "EWC": "98.64 0.22 63.95 1.9 20.01 0.06",
            },
        ),
        (
            "permuted_mnist",
            {
                "None": "81.79 0.48 78.51 0.24 17.26 0.19",
                "EWC": "94.74 0.05 94.31 0.11 25.04 0.5",
                "online EWC": "95.96 0.06 94.42 0.13 33.88 0.49",
                "SI": "94.75 0.14 95.33 0.11 29.31 0.62",
                "offline": "97.68 0.01 97.59 0.01 97.59 0.02",
            },
        ),
    ],
)
def test_the_numbers_are_those_of_the_papers_for_task_domain_and_class(name: str, published: dict[str, str]) -> None:
    table, _ = read_published(SHIPPED / f"{name}.published.yaml")
    found: dict[str, str] = {}
    for row in table.rows:
        assert (row.n, row.source[:6]) == (20, "arXiv ")
        found[row.method] = f"{found.get(row.method, '')} {row.mean} {row.sem}".strip()
    assert found == published
    assert [row.point["sequence.scenario"] for row in table.rows] == ["task", "domain", "class"] * len(published)
