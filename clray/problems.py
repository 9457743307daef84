"""Turns what pydantic finds wrong with a table into the words of the files people write: lists and tables, not tuples and models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from clray.errors import did_you_mean
from clray.options import NAME_PATTERN

Path_ = tuple[str | int, ...]
SHOWN_CHARACTERS = 80
TEXT_THAT_IS_NONE = ("whole number", "number", "true or false")

KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}


class Problem(NamedTuple):
    """One thing that is wrong, at one path of keys."""

    path: Path_
    text: str


def problems_of(error: ValidationError, model: type[BaseModel], data: Any, prefix: Path_ = ()) -> list[Problem]:
    """One problem a place.

    Args:
        model: the table that was validated.
        data: what it was validated from; tells keys of the file from names that pydantic adds for members of a union.
        prefix: path of the table in the file.
    """
    wanted: dict[Path_, dict[str, str]] = {}
    told: dict[Path_, list[str]] = {}
    given: dict[Path_, Any] = {}
    for detail in error.errors(include_url=False):
        kind = detail["type"]
        path, table = _real_path(model, detail["loc"], data, missing=kind == "missing")
        given[path] = detail["input"]
        if kind == "extra_forbidden":
            told.setdefault(path, []).append(f"unknown key; {did_you_mean(str(path[-1]), table.model_fields)}")
        elif kind == "missing":
            told.setdefault(path, []).append(_missing(table, path))
        elif kind == "value_error":
            told.setdefault(path, []).append(str(detail["ctx"]["error"]))
        else:
            wanted.setdefault(path, {})[kind] = _requirement(kind, detail["msg"], detail.get("ctx", {}))
    for path, requirements in wanted.items():
        told.setdefault(path, []).append(_must(requirements, given[path]))
    deepest = [path for path in told if not any(other[: len(path)] == path and len(other) > len(path) for other in told)]
    return [Problem((*prefix, *path), "; ".join(dict.fromkeys(told[path]))) for path in deepest]


def show_given(value: Any) -> str:
    """A value as it would stand in a file, cut where it is long."""
    if value is None:
        return "nothing"
    try:
        text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _requirement(kind: str, message: str, context: Mapping[str, Any]) -> str:
    if kind in KINDS:
        return KINDS[kind]
    if kind == "too_short":
        return f"a list of at least {context['min_length']}" if context["field_type"] != "Dictionary" else "a table with at least one key"
    if kind == "too_long":
        return f"a list of at most {context['max_length']}"
    if kind == "string_pattern_mismatch" and context["pattern"] == NAME_PATTERN:
        return "1 to 100 letters, digits, '.', '_' or '-', the first a letter or digit"
    return message.removeprefix("Input should be ").removeprefix("a valid ")


def _must(wanted: Mapping[str, str], value: Any) -> str:
    """Of a union, only the member that the value nearly is: for -3, a number out of range, lists are beside the point."""
    requirements = [text for kind, text in wanted.items() if kind.startswith(("greater_", "less_"))] or list(wanted.values())
    text = f"must be {' or '.join(dict.fromkeys(requirements))}, got {show_given(value)}"
    quoted = isinstance(value, str) and any(name in requirement for requirement in requirements for name in TEXT_THAT_IS_NONE)
    return f"{text}, which is text{'; leave the quotes out' if quoted and _reads_as_other(value) else ''}" if quoted else text


def _reads_as_other(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("true", "false")
    return True


FILLED_IN = frozenset({"strategy"})
"""Required in an experiment, but not in what people write: ``finetune`` where there is none."""


def _missing(table: type[BaseModel], path: Path_) -> str:
    if isinstance(path[-1], int):
        return f"is missing: the list needs {path[-1] + 1} values"
    needed = [key for key, field in table.model_fields.items() if field.is_required() and key not in FILLED_IN]
    return f"is missing; needed here: {', '.join(needed)}"


def _real_path(model: type[BaseModel], loc: tuple[str | int, ...], data: Any, missing: bool) -> tuple[Path_, type[BaseModel]]:
    """The keys of ``loc`` that are really in the file, and the table they end in."""
    path: list[str | int] = []
    table = model
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(data, Mapping) and (part in data or (missing and last)):
            inner = _inner_table(table.model_fields[part]) if part in table.model_fields else None
            path.append(part)
            if not last and inner:
                table = inner
            data = data.get(part)
        elif isinstance(data, (list, tuple)) and isinstance(part, int) and (part < len(data) or (missing and last)):
            path.append(part)
            data = data[part] if part < len(data) else None
    return tuple(path), table


def _inner_table(info: FieldInfo) -> type[BaseModel] | None:
    for candidate in (info.annotation, *get_args(info.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
