"""Reads YAML 1.2 files with line numbers, and turns every validation problem into one message that names the place.

``parse_experiment``, ``parse_sweep`` and ``parse_table`` are the only ways from outside data to the models of ``config``.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from clray import plugins
from clray.compatibility import incompatible
from clray.config import Experiment, Sweep
from clray.errors import ConfigError
from clray.options import PluginOptions, TableT
from clray.places import Document, join_place
from clray.problems import Path_, Problem, problems_of, show_given
from clray.study.config import IDEAL_STRATEGY, Study

MAX_BYTES = 10_000_000
MAX_NODES = 200_000
MAX_DEPTH = 50
MAX_WHOLE_NUMBER = 2**53  # the last up to which a float, and so JSON, tells whole numbers apart
RUAMEL_TRIPS = (ValueError, RecursionError, ArithmeticError, AttributeError, KeyError, TypeError, AssertionError, IndexError)
"""What ruamel raises on some texts that are no YAML, beside its own errors."""
PLUGIN_TABLES = {"dataset": "datasets", "model": "models", "optimizer": "optimizers", "strategy": "strategies", "loggers": "loggers"}
LISTS = ("strategy", "loggers")
"""Tables of which there may be several; one alone need not be in a list."""
FINETUNE = [{"name": "finetune"}]
Known = dict[tuple[str, int], tuple[Any, Any]]
"""Key of a plug-in's table and id of what is written there, to that itself and the options that were read from it."""


def read_yaml(path: str | Path) -> Document:
    """Reads one YAML 1.2 file whose top level is a table.

    Raises:
        ConfigError: the file is missing, does not parse, or holds what no table of clray can (tags, dates, odd keys).
    """
    source = str(path)
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{source}: no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{source}: {len(raw)} bytes is more than a sweep file can be ({MAX_BYTES})")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b"\n", 0, error.start)
        raise ConfigError(f"{source}:{line}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    return parse_yaml(text, source)


def parse_yaml(text: str, source: str) -> Document:
    """Like ``read_yaml`` for text that is already there."""
    node = _load(text, source)
    if not isinstance(node, CommentedMap):
        kind = {type(None): "nothing", CommentedSeq: "a list"}.get(type(node)) or show_given(node)
        raise ConfigError(f"{source}: the top level must be a table (key: value lines), not {kind}")
    reader = _Reader(source)
    return Document(source, reader.plain(node, ()), reader.lines)


def parse_value(text: str, source: str) -> Any:
    """One value as YAML 1.2 would read it (for ``--set key=value``)."""
    return _Reader(source).plain(_load(text, source), ())


class _ShallowComposer(Composer):
    """Refuses what is nested too deeply as soon as it gets there: ruamel itself would take its time, up to the recursion limit."""

    levels = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.levels += 1
        try:
            if self.levels > MAX_DEPTH:
                mark = self.parser.peek_event().start_mark
                raise ComposerError(None, None, f"nested more than {MAX_DEPTH} levels deep", mark)
            return super().compose_node(parent, index)
        finally:
            self.levels -= 1


def _load(text: str, source: str) -> Any:
    yaml = YAML(typ="rt", pure=True)
    yaml.Composer = _ShallowComposer
    try:
        return yaml.load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise ConfigError(f"{place}: {_explained(error)}") from None
    except ReaderError as error:
        line = 1 + text.count("\n", 0, error.position)
        raise ConfigError(f"{source}:{line}: character #x{error.character:04x} is not allowed in YAML") from None
    except (
        YAMLError,
        ValueError,
        RecursionError,
        ArithmeticError,
        AttributeError,
        KeyError,
        TypeError,
        AssertionError,
        IndexError,
    ) as error:
        digits = re.search(r"\d{4000}", text)
        if digits:
            raise ConfigError(f"{source}:{1 + text.count(chr(10), 0, digits.start())}: a number of too many digits") from None
        raise ConfigError(f"{source}: {(str(error).splitlines() or ['not valid YAML'])[0]}") from None


def _explained(error: MarkedYAMLError) -> str:
    """The problem, with what it happened in where that began on another line."""
    problem = (error.problem or error.context or "not valid YAML").splitlines()[0]
    context, begun = error.context or "", error.context_mark
    if problem.startswith("but "):
        return f"{context}, {problem}"
    elsewhere = begun and error.problem_mark and begun.line != error.problem_mark.line
    if elsewhere and context.startswith(("while parsing a", "while scanning a")):
        return f"{problem} ({context} that begins on line {begun.line + 1})"
    return problem


class _Reader:
    """Turns ruamel's nodes into plain data and notes the line of every key and list item."""

    def __init__(self, source: str):
        self.source = source
        self.lines: dict[Path_, int] = {}
        self._left = MAX_NODES

    def plain(self, node: Any, path: Path_) -> Any:
        self._left -= 1
        if self._left < 0 or len(path) > MAX_DEPTH:
            self._refuse(path, "too many values (aliases that expand into each other?)")
        tag = getattr(getattr(node, "tag", None), "value", None)
        if tag:
            self._refuse(path, f"tags such as {tag} are not allowed")
        if isinstance(node, CommentedMap):
            return {self._key(node, key, path): self.plain(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, CommentedSeq):
            for index in node.lc.data or ():
                self.lines[(*path, index)] = node.lc.item(index)[0] + 1
            return [self.plain(value, (*path, index)) for index, value in enumerate(node)]
        if node is None or isinstance(node, bool):
            return node
        for kind in (int, float):
            if isinstance(node, kind):
                return kind(node)
        if isinstance(node, str):
            return self._text(str(node), path)
        self._refuse(path, f"{show_given(node)} reads as a {type(node).__name__}; put it in quotes if it is text")

    def _text(self, text: str, path: Path_) -> str:
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")  # JSON's escapes write one character as two halves
        except UnicodeDecodeError:
            self._refuse(path, f"{text!r} holds half a character")

    def _key(self, node: CommentedMap, key: Any, path: Path_) -> str:
        if key in (node.lc.data or {}):
            self.lines[(*path, key)] = node.lc.key(key)[0] + 1
        if not isinstance(key, str):
            self._refuse((*path, key), f"the key {show_given(key)} must be text")
        return self._text(str(key), (*path, key))

    def _refuse(self, path: Path_, text: str) -> NoReturn:
        raise ConfigError(f"{Document(self.source, {}, self.lines).where(path)}: {text}")


def parse_experiment(document: Document, known: Known | None = None) -> Experiment:
    """Validates an experiment with all its plug-in options.

    Args:
        document: of the experiment.
        known: plug-ins' tables that were read for other points of the same sweep; filled here. What no axis changes is read once.

    Raises:
        ConfigError: one message with every problem found, each with its place and what is valid.
    """
    problems: list[Problem] = []
    known = {} if known is None else known
    given = document.data if "strategy" in document.data else document.data | {"strategy": FINETUNE}
    read = {key: known[key, id(value)][1] for key, value in given.items() if (key, id(value)) in known}
    data = {key: read[key] if key in read else _tuples(value, (key,), problems) for key, value in given.items()}
    for key in PLUGIN_TABLES:
        if key in data and key not in read:
            data[key] = _plugins(key, data[key], problems)
            if isinstance(given[key], (dict, list)) and not problems:
                known[key, id(given[key])] = given[key], data[key]  # with the table itself, so that no other gets its id
    model = Study if "study" in data else Experiment
    if model is Study:
        _prepare_study(data, "strategy" in document.data, problems)
    try:
        experiment = model.model_validate(data)
    except ValidationError as error:
        # Of what is wrong in a plug-in's table only its own message counts; those of a study are one level further in.
        failed = {problem.path[: 3 if problem.path[0] == "memory" else 1] for problem in problems}
        problems += [p for p in problems_of(error, model, data) if not p.path or not failed & {p.path[:1], p.path[:3]}]
        experiment = None
    if experiment is not None and not problems:
        problems = incompatible(experiment)
    if problems or experiment is None:
        raise ConfigError(_message(document, problems))
    return experiment


def _plugins(key: str, value: Any, problems: list[Problem]) -> Any:
    """The options of the plug-in, or plug-ins, that a table of the top level names."""
    many = key in LISTS
    tables = value if many and isinstance(value, tuple) else [value]
    if key == "loggers":
        tables = type(tables)({"name": table} if isinstance(table, str) else table for table in tables)
        value = tables if isinstance(value, tuple) else value
    kind = PLUGIN_TABLES[key]
    built = [_plugin(kind, table, (key, i) if tables is value else (key,), problems) for i, table in enumerate(tables)]
    return tuple(built) if many else built[0]


def _prepare_study(data: dict[str, Any], has_strategy: bool, problems: list[Problem]) -> None:
    """Fills in what a study's file leaves to it: the strategy of its ideal models, and the options of its selections."""
    ideal = (_plugin("strategies", IDEAL_STRATEGY, ("strategy",), problems),)
    if has_strategy and data["strategy"] != ideal:
        problems.append(Problem(("strategy",), "a study trains its models with all data so far; leave strategy out"))
    data["strategy"] = ideal
    memory = data.get("memory")
    if isinstance(memory, dict) and isinstance(memory.get("methods"), tuple):
        tables = [{"name": method} if isinstance(method, str) else method for method in memory["methods"]]
        built = [_plugin("selections", table, ("memory", "methods", i), problems) for i, table in enumerate(tables)]
        data["memory"] = memory | {"methods": tuple(built)}


def parse_dataset(name: str, options: Mapping[str, Any]) -> Any:
    """Validates the options of one data set, for commands that need nothing else.

    Raises:
        ConfigError: as for experiments.
    """
    document = Document("data set", {"name": name, **options}, origins={(key,): f"--set {key}" for key in options})
    problems: list[Problem] = []
    built = _plugin("datasets", _tuples(document.data, (), problems), (), problems)
    if problems:
        raise ConfigError(_message(document, problems))
    return built


def _tuples(value: Any, path: Path_, problems: list[Problem]) -> Any:
    """Lists as tuples, in copies: the models are immutable and strict. Notes numbers that no computation can take."""
    if isinstance(value, dict):
        return {key: _tuples(item, (*path, key), problems) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(item, (*path, index), problems) for index, item in enumerate(value))
    if isinstance(value, float) and not math.isfinite(value):
        problems.append(Problem(path, f"must be a finite number, got {value}"))
    elif isinstance(value, int) and abs(value) > MAX_WHOLE_NUMBER:
        problems.append(Problem(path, f"must be a whole number up to {MAX_WHOLE_NUMBER}, got {show_given(value)}"))
    return value


def _plugin(kind: str, table: Any, path: Path_, problems: list[Problem]) -> PluginOptions | None:
    if isinstance(table, PluginOptions):
        return table
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        names = plugins.names(kind)
        example = table if isinstance(table, str) and table in names else names[0]
        problems.append(
            Problem(path, f"must be a table with a name, such as {{name: {example}}}, got {show_given(table)}; names: {', '.join(names)}")
        )
        return None
    try:
        options = plugins.options_class(kind, table["name"])
    except ConfigError as error:
        problems.append(Problem((*path, "name"), str(error)))
        return None
    try:
        return options.model_validate(table)
    except ValidationError as error:
        known = [problem.path for problem in problems]
        problems += [problem for problem in problems_of(error, options, table, path) if problem.path not in known]
        return None


def parse_sweep(document: Document) -> Sweep:
    """Validates a sweep file; the points themselves are validated when they are expanded.

    ``experiment`` may be a path, relative to the sweep file.
    """
    problems: list[Problem] = []
    _tuples({key: value for key, value in document.data.items() if key != "experiment"}, (), problems)
    for key in ("grid", "zip"):
        if key in document.data and not document.data[key]:
            problems.append(Problem((key,), "is empty; give at least one dotted key with a list of values, or leave it out"))
    known = {problem.path for problem in problems}
    try:
        sweep = Sweep.model_validate(document.data)
    except ValidationError as error:
        problems += [problem for problem in problems_of(error, Sweep, document.data) if problem.path not in known]
    if problems:
        raise ConfigError(_message(document, problems))
    return sweep


def parse_table(document: Document, model: type[TableT]) -> TableT:
    """Validates a file that is one table of clray's own, without plug-ins.

    Raises:
        ConfigError: as for experiments.
    """
    problems: list[Problem] = []
    _tuples(document.data, (), problems)
    known = {problem.path for problem in problems}
    try:
        table = model.model_validate(document.data)
    except ValidationError as error:
        problems += [problem for problem in problems_of(error, model, document.data) if problem.path not in known]
    if problems:
        raise ConfigError(_message(document, problems))
    return table


def read_sweep(path: str | Path) -> tuple[Document, Document]:
    """Reads a sweep file and the experiment it holds or points to.

    Returns:
        The sweep's document, with the experiment's data in place, and the experiment's own document.
    """
    document = read_yaml(path)
    experiment = document.data.get("experiment")
    if isinstance(experiment, dict):
        return document, document.inner("experiment")
    place = document.where(("experiment",))
    if isinstance(experiment, str):
        try:
            inner = read_yaml(Path(path).parent / experiment)
        except ConfigError as error:
            raise ConfigError(f"{place}: experiment: {error}") from None
        if "experiment" in inner.data:
            raise ConfigError(f"{place}: experiment: {inner.source} is a sweep itself; name the file of one experiment")
        return Document(document.source, document.data | {"experiment": inner.data}, document.lines), inner
    if experiment is None and document.data.keys() & Experiment.model_fields.keys() - Sweep.model_fields.keys():
        raise ConfigError(
            f"{document.source}: this looks like one experiment: run it with 'clray run {document.source}'. A sweep file has a key "
            "experiment, with a table like this one or the path of such a file, and axes: grid, zip, cases, random"
        )
    raise ConfigError(f"{place}: experiment: must be a table or the path of an experiment file, got {show_given(experiment)}")


def _message(document: Document, problems: Iterable[Problem]) -> str:
    lines = []
    for path, text in problems:
        key = ".".join(str(part) for part in path)
        lines.append(join_place(document.where(path), f"{key}: {text}") if key else document.locate(text))
    return "\n".join(dict.fromkeys(lines))
