"""Sweep and experiment files that are nearly right: valid ones, changed where people and programs get them wrong."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.trials.sweeps import experiment, sweep

EXPERIMENTS = [
    experiment(),
    experiment(
        baselines=["expert"],
        strategy=[{"name": "ewc", "strength": 10.0}, {"name": "er", "buffer_size": 8}],
        sequence={"n_tasks": 2, "policy": "fixed", "classes": [[0, 1], [2, 3]]},
    ),
    experiment(optimizer={"name": "adamw", "learning_rate": 0.01, "schedule": {"name": "cosine", "per": "task"}}, repeats=[0]),
]
SWEEPS = [
    sweep(grid={"optimizer.learning_rate": [0.1, 0.2]}, zip={"seed": [1, 2], "training.batch_size": [4, 8]}),
    sweep(cases=[{"seed": 1}, {"optimizer": {"name": "adam", "learning_rate": 0.01}}], resources={"num_gpus": "auto", "num_cpus": 1}),
    sweep(random={"n": 3, "seed": 0, "keys": {"optimizer.learning_rate": {"loguniform": [1e-4, 1e-1]}, "seed": {"int": [0, 9]}}}),
]


def _nested(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


JUNK: list[Any] = [
    None, True, False, 0, 1, -1, 3, 0.5, -0.5, 1e-300, 1e308, 10**15, 10**30, -(10**400), 2**31, 2**53, 2**63, 10_000_000,
    float("inf"), float("-inf"), float("nan"), "", " ", "1", "1e5", "true", "no", "null", "~", "SGD", "digits ", "ümlaut", "\u202e", "日本",
    "\x00", "\x1b[31m", "a" * 5000, "../../etc/passwd", "/dev/zero", "s3://key:secret@bucket", "os:system", "os.path:join", ":", "a:", ":b",
    "builtins:dict", "clray.config:Table", "clray.nowhere:X", "2026-01-01", "0x10", "1_000", "${HOME}", "{{x}}", "[", "*a", "&a", "<<",
    [], {}, [[]], [{}], [None], {"": 1}, {"name": None}, {"name": 3}, {"name": []}, {"name": {"name": "mlp"}}, [1, "a", None], [1] * 300,
    {"a.b": 1}, {".": 1}, {"..": 2}, {"name": "mlp", "hidden": [0]}, {"name": "mlp", "hidden": [10**9]}, [[0, 1]] * 4, _nested(30, list),
    _nested(70, dict), _nested(500, list),
]  # fmt: skip

TEXT = [
    "\t", "  ", "\n", ":", ": ", "- ", "{", "}", "[", "]", "&a ", "*a", "<<: *a\n", "!!python/object/apply:os.system ['true'] ",
    "!!binary ",
    "!!float ", "!x ", "? ", "| ", "> ", "%YAML 1.1\n---\n", "---\n", "...\n", "# ", "'", '"', "\\", "\x00", "\x85", "\u2028", "\ufeff",
    "\udc80", "1" * 5000, "[" * 200, "{a: " * 60, "&a [*a]", "name: again\n", '"name": "twice", ', "0o17", "1:30:00", "12e03", "=",
]  # fmt: skip

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9))
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [*{chr(97 + i)}, *{chr(97 + i)}], y{i}: 1}}\n" for i in range(20)
)
WHOLE = [
    BOMB, MERGE_BOMB, BOMB + "name: s\nexperiment: *i\ngrid: *i\n", "", "\n", "null", "3", "- 1", "[]", "{}", "{", "a", "a: b: c",
    "&a [*a]",
    "&a {b: *a}", "? [1, 2]\n: 3\n", "1: 2\n", "true: 1\n", "name: s\nexperiment: self.yaml\n", "experiment: /dev/null\n",
    "experiment: .\nname: s\n", "[" * 3000, "{a: " * 3000, "- " * 3000, "name: " + "9" * 20_000, "? " * 2000, "a: |\n" + " x\n" * 2000,
]  # fmt: skip


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in _paths(item, (*path, key)))]


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))  # copy.deepcopy gives up on what is nested deeply


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@st.composite
def changed(draw: st.DrawFn, documents: list[dict[str, Any]]) -> Any:
    """A document with one to three places deleted, renamed, doubled, swapped or replaced by junk."""
    document: Any = _copy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 3))):
        places = [path for path in _paths(document) if path]
        if not places:
            break
        *parents, last = draw(st.sampled_from(places))
        table = _at(document, tuple(parents))
        match draw(st.sampled_from(["junk", "junk", "junk", "delete", "rename", "wrap", "swap", "add"])):
            case "junk":
                table[last] = draw(st.sampled_from(JUNK).map(_copy) | st.integers() | st.floats() | st.text(max_size=20))
            case "delete":
                del table[last]
            case "rename" if isinstance(table, dict):
                table[draw(st.text(max_size=12) | st.just(f"{last}x") | st.just(str(last).upper()))] = table.pop(last)
            case "wrap":
                table[last] = draw(st.sampled_from([[table[last]], {"name": table[last]}, str(table[last])]))
            case "swap":
                other = draw(st.sampled_from(places))
                if other[:1] != (*parents, last)[:1]:  # no table inside itself
                    table[last] = _copy(_at(document, other))
            case _ if isinstance(table, dict):
                table[draw(st.sampled_from(["lr", "optimizer.lr", "gird", "", "é", "name", "strategy"]))] = draw(
                    st.sampled_from(JUNK).map(_copy)
                )
    return document


@st.composite
def files(draw: st.DrawFn, documents: list[dict[str, Any]]) -> bytes:
    """The bytes of a malformed file."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.sampled_from(WHOLE)).encode()
    text = json.dumps(draw(changed(documents)), indent=draw(st.sampled_from([None, 1])), ensure_ascii=draw(st.booleans()))
    if draw(st.booleans()):
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(text)))
            end = at + draw(st.sampled_from([0, 0, 1, 5, 50]))
            text = text[:at] + draw(st.sampled_from(["", *TEXT])) + text[end:]
    data = text.encode("utf-8", "surrogatepass")
    return data if draw(st.integers(0, 9)) else data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=3))
