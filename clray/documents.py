"""Reads YAML 1.2 files with line numbers, and turns every validation problem into one message that names the place.

``parse_experiment`` and ``parse_sweep`` are the only ways from outside data to the models of ``config``.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from clray import plugins
from clray.config import Experiment, PluginOptions, Sweep
from clray.errors import ConfigError, did_you_mean

Path_ = tuple[str | int, ...]
MAX_BYTES = 10_000_000
MAX_NODES = 1_000_000
PLUGIN_TABLES = {"dataset": "datasets", "model": "models", "optimizer": "optimizers", "strategy": "strategies"}


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
        for end in range(len(path), -1, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
            if path[:end] in self.lines:
                return f"{self.source}:{self.lines[path[:end]]}"
        return self.source

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
        places = dict(self.origins)
        for dotted, value in values.items():
            origin = origins if isinstance(origins, str) else origins[dotted]
            path = _split(dotted, origin)
            data, path = _replace(data, path, value, dotted, origin)
            places[path] = origin
        return Document(self.source, data, self.lines, places)


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


def read_yaml(path: str | Path) -> Document:
    """Reads one YAML 1.2 file whose top level is a table.

    Raises:
        ConfigError: the file is missing, does not parse, or holds what no table of clray can (tags, dates, odd keys).
    """
    source = str(path)
    try:
        raw = Path(path).read_bytes()
        text = raw.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{source}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror or error}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{source}: {len(raw)} bytes is more than a sweep file can be ({MAX_BYTES})")
    return parse_yaml(text, source)


def parse_yaml(text: str, source: str) -> Document:
    """Like ``read_yaml`` for text that is already there."""
    node = _load(text, source)
    if not isinstance(node, CommentedMap):
        raise ConfigError(f"{source}: the top level must be a table (key: value lines), not {_kind(node)}")
    lines: dict[Path_, int] = {}
    budget = iter(range(MAX_NODES))
    return Document(source, _plain(node, (), lines, source, budget), lines)


def parse_value(text: str, source: str) -> Any:
    """One value as YAML 1.2 would read it (for ``--set key=value``)."""
    return _plain(_load(text, source), (), {}, source, iter(range(MAX_NODES)))


def _load(text: str, source: str) -> Any:
    yaml = YAML(typ="rt", pure=True)
    try:
        return yaml.load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = (error.problem or error.context or "not valid YAML").splitlines()[0]
        raise ConfigError(f"{place}: {problem}") from None
    except (YAMLError, ValueError, RecursionError, ArithmeticError, AttributeError, KeyError, TypeError, AssertionError, IndexError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else (str(error).splitlines() or ["not valid YAML"])[0]
        raise ConfigError(f"{source}: {reason}") from None


def _kind(node: Any) -> str:
    return {type(None): "nothing", CommentedSeq: "a list"}.get(type(node), f"{str(node)[:40]!r}")


def _plain(node: Any, path: Path_, lines: dict[Path_, int], source: str, budget: Iterator[int]) -> Any:
    place = Document(source, {}, lines).where(path)
    if next(budget, None) is None or len(path) > 60:
        raise ConfigError(f"{source}: too many or too deeply nested values (aliases that expand into each other?)")
    if getattr(getattr(node, "tag", None), "value", None) and not isinstance(node, (CommentedMap, CommentedSeq)):
        raise ConfigError(f"{place}: tags such as {node.tag.value} are not allowed")
    if isinstance(node, CommentedMap):
        if node.tag.value:
            raise ConfigError(f"{place}: tags such as {node.tag.value} are not allowed")
        table = {}
        for key, value in node.items():
            if not isinstance(key, str):
                raise ConfigError(f"{place}: key {key!r} must be text")
            inner = (*path, key)
            if key in (node.lc.data or {}):
                lines[inner] = node.lc.key(key)[0] + 1
            table[key] = _plain(value, inner, lines, source, budget)
        return table
    if isinstance(node, CommentedSeq):
        if node.tag.value:
            raise ConfigError(f"{place}: tags such as {node.tag.value} are not allowed")
        items = []
        for index, value in enumerate(node):
            inner = (*path, index)
            if index in (node.lc.data or {}):
                lines[inner] = node.lc.item(index)[0] + 1
            items.append(_plain(value, inner, lines, source, budget))
        return items
    if node is None or isinstance(node, bool):
        return node
    for plain in (int, float, str):
        if isinstance(node, plain):
            return plain(node)
    raise ConfigError(f"{place}: {node} reads as a {type(node).__name__}; put it in quotes if it is text")


class Problem(NamedTuple):
    """One thing that is wrong, at one path."""

    path: Path_
    text: str


def parse_experiment(document: Document) -> Experiment:
    """Validates an experiment with all its plug-in options.

    Raises:
        ConfigError: one message with every problem found, each with its place and what is valid.
    """
    data = _tuples(document.data)
    problems: list[Problem] = []
    if "strategy" not in data:
        data["strategy"] = ({"name": "finetune"},)
    for key, kind in PLUGIN_TABLES.items():
        if key not in data:
            continue
        value = data[key]
        many = key == "strategy"
        tables = value if many and isinstance(value, tuple) else [value]
        built = [_plugin(kind, table, (key, i) if tables is value else (key,), problems) for i, table in enumerate(tables)]
        data[key] = tuple(built) if many else built[0]
    try:
        experiment = Experiment.model_validate(data)
    except ValidationError as error:
        failed = {problem.path[0] for problem in problems}
        problems += [p for p in _problems(error, Experiment, ()) if not p.path or p.path[0] not in failed]
        experiment = None
    if problems or experiment is None:
        raise ConfigError(_message(document, problems))
    return experiment


def parse_dataset(name: str, options: Mapping[str, Any]) -> Any:
    """Validates the options of one data set, for commands that need nothing else.

    Raises:
        ConfigError: as for experiments.
    """
    document = Document("data set", {"name": name, **options}, origins={(key,): f"--set {key}" for key in options})
    problems: list[Problem] = []
    built = _plugin("datasets", _tuples(document.data), (), problems)
    if problems:
        raise ConfigError(_message(document, problems))
    return built


def _tuples(value: Any) -> Any:
    """Lists as tuples, in copies: the models are immutable and strict."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _plugin(kind: str, table: Any, path: Path_, problems: list[Problem]) -> PluginOptions | None:
    if isinstance(table, PluginOptions):
        return table
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        problems.append(Problem(path, f"must be a table with a name, such as {{name: {plugins.names(kind)[0]}}}"))
        return None
    try:
        options = plugins.options_class(kind, table["name"])
    except ConfigError as error:
        problems.append(Problem((*path, "name"), str(error)))
        return None
    try:
        return options.model_validate(table)
    except ValidationError as error:
        problems += _problems(error, options, path)
        return None


def parse_sweep(document: Document) -> Sweep:
    """Validates a sweep file; the points themselves are validated when they are expanded.

    ``experiment`` may be a path, relative to the sweep file.
    """
    try:
        return Sweep.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError(_message(document, _problems(error, Sweep, ()))) from None


def read_sweep(path: str | Path) -> tuple[Document, Document]:
    """Reads a sweep file and the experiment it holds or points to.

    Returns:
        The sweep's document, with the experiment's data in place, and the experiment's own document.
    """
    document = read_yaml(path)
    experiment = document.data.get("experiment")
    if isinstance(experiment, str):
        inner = read_yaml(Path(path).parent / experiment)
        return Document(document.source, document.data | {"experiment": inner.data}, document.lines), inner
    if not isinstance(experiment, dict):
        place = document.where(("experiment",))
        raise ConfigError(f"{place}: experiment: must be a table or the path of an experiment file")
    return document, document.inner("experiment")


def _message(document: Document, problems: Iterable[Problem]) -> str:
    lines = []
    for path, text in problems:
        key = ".".join(str(part) for part in path)
        lines.append(f"{document.where(path)}: {key}: {text}" if key else f"{document.where(path)}: {text}")
    return "\n".join(dict.fromkeys(lines))


def _problems(error: ValidationError, model: type[BaseModel], prefix: Path_) -> list[Problem]:
    problems: dict[Path_, list[str]] = {}
    for detail in error.errors(include_url=False):
        path, table = _real_path(model, detail["loc"])
        if detail["type"] == "extra_forbidden":
            text = f"unknown key; {did_you_mean(str(path[-1]), table.model_fields)}"
        elif detail["type"] == "missing":
            text = "is missing"
        elif detail["type"] == "value_error":
            text = str(detail["ctx"]["error"])
        else:
            message = detail["msg"].replace("Input should be", "must be", 1)
            text = f"{message}, got {str(detail['input'])[:80]!r}" if not isinstance(detail["input"], str) else f"{message}, got {detail['input'][:80]!r}"
        problems.setdefault((*prefix, *path), []).append(text)
    return [Problem(path, "; or ".join(dict.fromkeys(texts))) for path, texts in problems.items()]


def _real_path(model: type[BaseModel], loc: tuple[str | int, ...]) -> tuple[Path_, type[BaseModel]]:
    """The keys of ``loc`` that are really in the file (pydantic adds names of union members), and the table they end in."""
    path: list[str | int] = []
    table: type[BaseModel] = model
    inside = False
    for part in loc:
        if isinstance(part, int) or not inside:
            path.append(part)
        if isinstance(part, str) and part in table.model_fields:
            inner = _inner_table(table.model_fields[part])
            table, inside = (inner, False) if inner else (table, True)
    return tuple(path), table


def _inner_table(info: FieldInfo) -> type[BaseModel] | None:
    for candidate in (info.annotation, *get_args(info.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
