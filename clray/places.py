"""Plain data with the place each value came from, so that every message can name file and line, option or axis."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from clray.errors import ConfigError
from clray.problems import Path_


@dataclass(frozen=True)
class Document:
    """Plain data with the place each value came from.

    Attributes:
        source: file name, or what stands for it in messages.
        data: tables as dicts, lists as lists, scalars as str, int, float, bool, None.
        lines: path of keys to line, counted from 1; paths missing here use their nearest parent.
        origins: path to an origin that is not a line of the file (``--set ...``, ``grid ...``).
    """

    source: str
    data: dict[str, Any]
    lines: Mapping[Path_, int] = field(default_factory=dict)
    origins: Mapping[Path_, str] = field(default_factory=dict)

    def where(self, path: Path_) -> str:
        """``file:line``, or the origin of an overridden value, for the longest known part of ``path``."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
            if path[:end] in self.lines:
                return f"{self.source}:{self.lines[path[:end]]}"
            deeper = next((known for known in self.origins if known[:end] == path[:end]), None)
            if deeper:  # a table that is there only because a dotted key set something in it
                return self.origins[deeper]
        return self.source

    def where_dotted(self, text: str) -> str:
        """Like ``where``, for a message that begins with a dotted key; keys of the file may have dots themselves."""
        match = re.match(r"\w+(\.\w+)*", text)
        dotted = match.group(0) if match else ""
        known = [path for path in (*self.lines, *self.origins) if f"{dotted}.".startswith(".".join(map(str, path)) + ".")]
        return self.where(max(known, key=lambda path: len(".".join(map(str, path))), default=()))

    def locate(self, text: str) -> str:
        """A message that begins with a dotted key, with its place in front."""
        return join_place(self.where_dotted(text), text)

    def inner(self, key: str) -> Document:
        """The document of one table, with its own places."""
        return Document(
            self.source,
            self.data[key],
            {path[1:]: line for path, line in self.lines.items() if path[:1] == (key,)},
            {path[1:]: origin for path, origin in self.origins.items() if path[:1] == (key,)},
        )

    def override(self, values: Mapping[str, Any], origins: Mapping[str, str] | str) -> Document:
        """A copy with dotted keys replaced. A table as value replaces the whole table.

        Args:
            values: dotted key to value.
            origins: where the values came from, for messages; one for all or one a key.

        Raises:
            ConfigError: a dotted key leads through a value that is no table.
        """
        data: Any = self.data
        lines, places = self.lines, dict(self.origins)
        for dotted, value in values.items():
            origin = origins if isinstance(origins, str) else origins[dotted]
            path = _split(dotted, origin)
            data, path = _replace(data, path, value, dotted, origin)
            if isinstance(value, (Mapping, list, tuple)):  # what was in the old value has no place any more
                lines, places = _outside(lines, path), _outside(places, path)
            places[path] = origin
        return Document(self.source, data, lines, places)


Place = TypeVar("Place")


def _outside(places: Mapping[Path_, Place], path: Path_) -> dict[Path_, Place]:
    """All places but those of what is in the value at ``path``."""
    return {known: place for known, place in places.items() if len(known) <= len(path) or known[: len(path)] != path}


def join_place(place: str, text: str) -> str:
    """``place: text``; what came from --set or an axis names its key already."""
    key, colon, rest = text.partition(": ")
    whole, dot, index = key.rpartition(".")
    item = ""
    if dot and index.isdigit() and not place.endswith((f" {key}", f".{key}")):
        key, item = whole, f"item {index}: "
    return f"{place}: {item}{rest}" if colon and place.endswith((f" {key}", f".{key}")) else f"{place}: {text}"


def _split(dotted: str, origin: str) -> Path_:
    parts = dotted.split(".")
    if not all(parts):
        raise ConfigError(f"{origin}: {dotted!r} is not a dotted key such as optimizer.learning_rate")
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _replace(data: Any, path: Path_, value: Any, dotted: str, origin: str) -> tuple[Any, Path_]:
    """Copy-on-write replacement of one value; returns the new data and the path as taken."""
    if not path:
        return value, ()
    head, rest = path[0], path[1:]
    if isinstance(data, list):
        if not isinstance(head, int) or head >= len(data):
            raise ConfigError(f"{origin}: {dotted!r} goes through a list of {len(data)} items; use a number below that")
        inner, taken = _replace(data[head], rest, value, dotted, origin)
        return [*data[:head], inner, *data[head + 1 :]], (head, *taken)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: {dotted!r} goes through {data!r}, which is not a table")
    key = str(head)
    inner, taken = _replace(data.get(key), rest, value, dotted, origin)
    return {**data, key: inner}, (key, *taken)
