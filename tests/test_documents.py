"""YAML 1.2 as plain data with lines, and messages that say where each problem was written."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clray.documents import MAX_DEPTH, MAX_WHOLE_NUMBER, parse_experiment, parse_value, parse_yaml, read_sweep, read_yaml
from clray.errors import ConfigError
from clray.places import Document

Plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=6), inner, max_size=3),
    max_leaves=12,
)


def refusal(text: str) -> str:
    """The message with which a text is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f.yaml")
    return str(caught.value)


@given(st.dictionaries(st.text(min_size=1, max_size=6), Plain, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_json_is_yaml_and_reads_as_itself(data: dict[str, Any]) -> None:
    assert parse_yaml(json.dumps(data), "f.yaml").data == data


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@#,?\n\t \x00\ufeff01.~", max_size=40))
@example("a: &a [*a]")
@example("? [x]\n: 1")
@example("%YAML 9.9\n--- a")
@example("a: !!timestamp 1")
@example("a: 99999-99-99")
@example("<<: 1")
@example("a: &x 1\n*x : 2")
@settings(max_examples=500, deadline=None)
def test_any_text_is_read_or_refused_with_the_file_in_front(text: str) -> None:
    try:
        document = parse_yaml(text, "f.yaml")
    except ConfigError as error:
        assert str(error).startswith("f.yaml:")
    else:
        json.dumps(document.data)  # plain data: dicts with text keys, lists, text, numbers, true, false, null


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", 1000),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("true", True),
        ("~", None),
        ("", None),
        ("'0.1'", "0.1"),
        ("[1, [2.0, x], {a: null}]", [1, [2.0, "x"], {"a": None}]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = parse_value(text, "--set x")
    assert read == value
    assert type(read) is type(value)


def test_every_key_and_item_knows_its_line() -> None:
    document = parse_yaml("a: 1\nb:\n  c: [1,\n      2]\n  d: {e: 3}\n", "f.yaml")
    assert document.where(("a",)) == "f.yaml:1"
    assert document.where(("b", "c", 1)) == "f.yaml:4"
    assert document.where(("b", "d", "e")) == "f.yaml:5"
    assert document.where(("b", "not", "there")) == "f.yaml:2"
    assert document.where(("not", "there")) == "f.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\n", "f.yaml:2:1: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence that begins on line 1)"),
        ("a: 1\nb: 'x\n", "f.yaml:3:1: found unexpected end of stream (while scanning a quoted scalar that begins on line 2)"),
        ("a: 1\n\tb: 2\n", "f.yaml:2:1: found character '\\t' that cannot start any token"),
        ("a: 1\nb: 2\na: 3\n", 'f.yaml:3:1: found duplicate key "a"'),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1: expected a single document in the stream, but found another document"),
        ("a: *b\n", "f.yaml:1:4: found undefined alias 'b'"),
        ('a: "\\ud800"\n', "f.yaml:1: '\\ud800' holds half a character"),
        ("a: 1\nb: \x07\n", "f.yaml:2: character #x0007 is not allowed in YAML"),
        ("a: 1\nb: " + "9" * 5000, "f.yaml:2: a number of too many digits"),
        ("a:\n  3: x\n", "f.yaml:2: the key 3 must be text"),
        ("a: 2024-01-01\n", "f.yaml:1: 2024-01-01 reads as a date; put it in quotes"),
        ("a:\n  b: !!python/name:os.system x\n", "f.yaml:2: tags such as tag:yaml.org,2002:python/name:os.system are not allowed"),
        ("a: " + "[" * 5000, f"f.yaml:1:{MAX_DEPTH + 3}: nested more than {MAX_DEPTH} levels deep"),
        ("{" * 5000, f"f.yaml:1:{MAX_DEPTH + 1}: nested more than {MAX_DEPTH} levels deep"),
        ("- a\n", "f.yaml: the top level must be a table (key: value lines), not a list"),
        ("# nothing\n", "f.yaml: the top level must be a table (key: value lines), not nothing"),
    ],
)
def test_a_text_that_does_not_parse_is_refused_at_line_and_column(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


def test_exponential_aliases_and_deep_texts_are_refused_without_expanding_them() -> None:
    """Read to the end, they would take hours and terabytes; the bound on the time only keeps the test from hanging."""
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 15)]
    merged = [f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}, <<: *a{i - 1}}}" for i in range(1, 40)]
    chained = [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 1000)]
    begun = time.monotonic()
    for first, lines in (("a0: &a0 [x]", levels), ("a0: &a0 {z: 1}", merged), ("a0: &a0 [x]", chained)):
        assert "too many values (aliases that expand into each other?)" in refusal("\n".join([first, *lines]))
    assert time.monotonic() - begun < 60


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"a: 1\nb: " + bytes(range(128, 256)))
    with pytest.raises(ConfigError, match=r"binary.yaml:2: byte 8 is not UTF-8"):
        read_yaml(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_bytes(b"a: " + b"x" * 11_000_000)
    with pytest.raises(ConfigError, match=r"11000003 bytes is more than"):
        read_yaml(tmp_path / "large.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_yaml(tmp_path / "f.yaml").data == {"name": "x"}


def test_overriding_copies_and_remembers_where_values_came_from() -> None:
    before = parse_yaml("a: {b: 1}\nc: [1, {d: 2}]\n", "f.yaml")
    after = before.override({"a.b": 9, "c.1.d": 8, "e.f": 7}, {"a.b": "--set a.b", "c.1.d": "grid.c.1.d", "e.f": "--set e.f"})
    assert before.data == {"a": {"b": 1}, "c": [1, {"d": 2}]}
    assert after.data == {"a": {"b": 9}, "c": [1, {"d": 8}], "e": {"f": 7}}
    assert after.where(("a", "b")) == "--set a.b"
    assert after.where(("c", 1, "d")) == "grid.c.1.d"
    assert after.where(("c", 0)) == "f.yaml:2"
    assert after.where(("e",)) == "--set e.f"  # there only because of what was set in it


def test_what_was_in_an_overridden_list_or_table_has_no_place_any_more() -> None:
    before = parse_yaml("a: [1, 2]\nb: {c: {d: 3}}\n", "f.yaml").override({"b.c.d": 4}, "--set b.c.d")
    after = before.override({"a": [5, 6], "b.c": {"d": 7}}, {"a": "--set a", "b.c": "--set b.c"})
    assert after.where(("a", 0)) == "--set a"
    assert after.where(("b", "c", "d")) == "--set b.c"
    assert after.where(("b",)) == "f.yaml:2"
    assert before.where(("a", 0)) == "f.yaml:1"
    assert before.where(("b", "c", "d")) == "--set b.c.d"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("a.x", "goes through 1, which is not a table"),
        ("b.2", "goes through a list of 2 items"),
        ("b.x", "goes through a list of 2 items"),
        ("a..b", "is not a dotted key"),
        (".a", "is not a dotted key"),
    ],
)
def test_dotted_keys_that_lead_nowhere_are_refused(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml("a: 1\nb: [1, 2]\n", "f.yaml").override({key: 0}, "--set")


def test_the_experiment_of_a_sweep_is_found_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "e.yaml").write_text("\nseed: 3\n")
    (tmp_path / "s.yaml").write_text("name: s\nexperiment: inner/e.yaml\n")
    sweep, experiment = read_sweep(tmp_path / "s.yaml")
    assert sweep.data["experiment"] == {"seed": 3}
    assert experiment.where(("seed",)) == f"{tmp_path / 'inner' / 'e.yaml'}:2"


GOOD: dict[str, Any] = {
    "sequence": {"n_tasks": 2},
    "dataset": {"name": "digits"},
    "model": {"name": "mlp"},
    "optimizer": {"name": "sgd"},
    "training": {"epochs": 1},
}


def problems(**changes: Any) -> list[str]:
    """Lines of the message about one experiment."""
    with pytest.raises(ConfigError) as caught:
        parse_experiment(Document("f", GOOD | changes))
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_repeats": True}, "f: n_repeats: must be a whole number, got true"),
        ({"n_repeats": 2.0}, "f: n_repeats: must be a whole number, got 2.0"),
        ({"n_repeats": "2"}, "f: n_repeats: must be a whole number, got '2', which is text; leave the quotes out"),
        ({"n_repeats": "two"}, "f: n_repeats: must be a whole number, got 'two', which is text"),
        ({"n_repeats": None}, "f: n_repeats: must be a whole number, got nothing"),
        ({"n_repeats": 10**400}, f"f: n_repeats: must be a whole number up to {MAX_WHOLE_NUMBER}, got 1000"),
        ({"training": None}, "f: training: must be a table, got nothing"),
        ({"training": {"epochs": 1, "batch_size": [8]}}, "f: training.batch_size: must be a whole number, got [8]"),
        ({"optimizer": {"name": "sgd", "learning_rate": float("nan")}}, "f: optimizer.learning_rate: must be a finite number, got nan"),
        ({"optimizer": {"name": "sgd", "learning_rate": 10**400}}, "f: optimizer.learning_rate: must be a whole number up to"),
        ({"optimizer": {"name": "sgd", "nesterov": "yes"}}, "f: optimizer.nesterov: must be true or false, got 'yes', which is text"),
        ({"optimizer": {"name": "sgd", "schedule": {"nam": "cosine"}}}, "f: optimizer.schedule.nam: unknown key; did you mean 'name'?"),
        ({"optimizer": "sgd"}, "f: optimizer: must be a table with a name, such as {name: sgd}, got 'sgd'; names: sgd, adam"),
        ({"model": {"name": "mlp", "hidden": []}}, "f: model.hidden: must be a list of at least 1, got []"),
        ({"model": {"name": "mlp", "hidden": 8}}, "f: model.hidden: must be a list, got 8"),
        ({"model": {"name": "mlp", "hidden": [8, 2.5]}}, "f: model.hidden.1: must be a whole number, got 2.5"),
        ({"dataset": {"name": "digits", "resize": "big"}}, "f: dataset.resize: must be a list or a whole number, got 'big', which is text"),
        ({"dataset": {"name": "digits", "resize": -3}}, "f: dataset.resize: must be greater than or equal to 1, got -3"),
        ({"dataset": {"name": "digits", "resize": [8]}}, "f: dataset.resize.1: is missing: the list needs 2 values"),
        ({"logging": {"eval_tasks": "some"}}, "f: logging.eval_tasks: must be 'all' or a list, got 'some'"),
        ({"logging": {"eval_tasks": [-1]}}, "f: logging.eval_tasks.0: must be greater than or equal to 0, got -1"),
        (
            {"sequence": {"n_tasks": 2, "policy": "disjunct"}},
            "f: sequence.policy: must be 'disjoint', 'reuse', 'fixed', 'permuted' or 'rotated', got",
        ),
        ({"sequence": {"n_tasks": 2, "scenario": "clas"}}, "f: sequence.scenario: must be 'domain', 'task' or 'class', got 'clas'"),
        (
            {"sequence": {"n_tasks": 2, "scenario": "class", "policy": "reuse"}},
            "f: sequence: scenario class needs every class to have one label in the whole sequence, which policy reuse does not give; "
            "use policy disjoint, fixed, permuted or rotated",
        ),
        (
            {"sequence": {"n_tasks": 1, "policy": "permuted", "classes": [[0, 1]]}},
            "f: sequence: classes are listed only with policy fixed, not permuted",
        ),
        (
            {"sequence": {"n_tasks": 2, "keep_first": True}},
            "f: sequence: keep_first is used only with policy permuted or rotated, not disjoint",
        ),
        (
            {"sequence": {"n_tasks": 2, "policy": "permuted", "angles": [0, 9]}},
            "f: sequence: angles and angle_range are used only with policy rot",
        ),
        ({"sequence": {"n_tasks": 2, "policy": "rotated", "angles": [0]}}, "f: sequence: angles lists 1 but n_tasks is 2"),
        (
            {"sequence": {"n_tasks": 2, "policy": "rotated", "angles": [0, 9], "keep_first": True}},
            "f: sequence: angles lists the angle of every task: leave keep_first and angle_range out",
        ),
        (
            {"sequence": {"n_tasks": 2, "policy": "rotated", "angle_range": [9, 9]}},
            "f: sequence: angle_range takes [low, high] with low < high",
        ),
        (
            {"sequence": {"n_tasks": 1, "policy": "rotated", "angles": [361]}},
            "f: sequence.angles.0: must be less than or equal to 360, got 361",
        ),
        (
            {"training": {"epochs": 1, "active_classes": "seen"}},
            "f: training.active_classes: seen is used only with sequence.scenario: class, not domain",
        ),
        ({"strategy": [{"name": "finetune"}, {"name": "finetune", "x": 1}]}, "f: strategy.1.x: unknown key; valid: name"),
        ({"name": "../x"}, "f: name: must be 1 to 100 letters, digits, '.', '_' or '-', the first a letter or digit, got '../x'"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_one_wrong_value_is_one_line_in_the_words_of_the_file(changes: dict[str, Any], message: str) -> None:
    lines = problems(**changes)
    assert lines[0].startswith(message)
    assert len(lines) == 1


def test_everything_that_is_wrong_is_told_at_once() -> None:
    lines = problems(seed=-1, model={"name": "mpl"}, training={"epoch": 1}, sequence={})
    assert {line.split(": ")[1] for line in lines} == {"model.name", "seed", "sequence.n_tasks", "training.epoch"}
