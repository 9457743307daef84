"""What people see of values."""

from __future__ import annotations

from typing import Any

import pytest

from clray.config import canonical_json
from clray.display import show_value

TABLES: list[tuple[Any, str]] = [
    ({"name": "finetune"}, "finetune"),
    ({"name": "er", "memory_size": 100, "selection": {"name": "gss", "n": 3}}, "er(memory_size=100, selection=gss(n=3))"),
    ([{"name": "er"}, {"name": "ewc", "importance": 1.5}], "er+ewc(importance=1.5)"),
    ({"fractions": [0.5]}, '{"fractions":[0.5]}'),
]


@pytest.mark.parametrize(("table", "shown"), TABLES)
def test_tables_are_shown_by_their_names(table: Any, shown: str) -> None:
    assert show_value(table) == shown
    assert sorted(show_value(canonical_json(table))) == sorted(shown), "as JSON text the keys are sorted"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.1, "0.1"),
        (1e-5, "1e-05"),
        (True, "true"),
        (None, "null"),
        ([64, 64], "[64,64]"),
        ([], "[]"),
        ("all", "all"),
        ("{", "{"),
        ("[64]", "[64]"),
    ],
)
def test_plain_values_are_shown_as_they_are_written(value: Any, shown: str) -> None:
    assert show_value(value) == shown
