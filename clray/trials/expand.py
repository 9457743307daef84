"""Expands a sweep into trials. Pure: no files, no data, no JAX.

Points are the product, in this order, of ``grid`` (itself a product, the last key fastest), ``zip``, ``cases`` and
``random``. Equal points are one trial.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clray.config import Experiment, RandomSearch, Sweep
from clray.documents import Known, parse_experiment
from clray.errors import ConfigError
from clray.options import DatasetOptions
from clray.places import Document
from clray.problems import Path_

MOST_POINTS = 100_000

Fingerprint = Callable[[DatasetOptions], str | None]


@dataclass(frozen=True)
class Trial:
    """One point of a sweep.

    Attributes:
        trial_id: content hash; see ``Experiment.trial_id``.
        params: the swept dotted keys with this point's values, as written.
        experiment: the whole validated experiment.
        paths: the swept dotted keys with their paths in the sweep file.
    """

    trial_id: str
    params: Mapping[str, Any]
    experiment: Experiment
    paths: Mapping[str, Path_] = field(default_factory=dict)


def points(sweep: Sweep) -> Iterator[tuple[dict[str, Any], dict[str, Path_]]]:
    """Every point as dotted key to value, with dotted key to its path in the sweep file (``("grid", "seed")``) for messages.

    Raises:
        ConfigError: two axes set the same key, one sets a table that the other reaches into, or there are too many points.
    """
    check_axes(sweep)
    grid = itertools.product(*([(("grid", key), key, value) for value in values] for key, values in sweep.grid.items()))
    rows = [[(("zip", key), key, value) for value in values] for key, values in sweep.zip.items()]
    zipped = zip(*rows, strict=True) if rows else [()]
    cases = (tuple((("cases", i, key), key, v) for key, v in case.items()) for i, case in enumerate(sweep.cases or [{}]))
    drawn = (tuple((("random", "keys", key), key, v) for key, v in draw.items()) for draw in _draws(sweep.random))
    for parts in itertools.product(grid, zipped, cases, drawn):
        flat = [item for part in parts for item in part]
        yield {key: value for _, key, value in flat}, {key: path for path, key, _ in flat}


def count_points(sweep: Sweep) -> int:
    """Number of points, before equal ones are merged."""
    zipped = len(next(iter(sweep.zip.values()), [None]))
    return math.prod(map(len, sweep.grid.values())) * zipped * len(sweep.cases or [{}]) * (sweep.random.n if sweep.random else 1)


def expand(
    sweep: Sweep,
    base: Document,
    fingerprint: Fingerprint | None = None,
    document: Document | None = None,
    place: Callable[[Document, Path_], str] | None = None,
) -> list[Trial]:
    """All trials of a sweep, each validated as a whole experiment; equal points merged.

    Args:
        sweep: the validated sweep.
        base: the document of its experiment, for messages.
        fingerprint: of data that people own.
        document: of the sweep itself, for messages.
        place: names the place of a value of an axis, for messages; default ``axis_place``.

    Raises:
        ConfigError: a point is not a valid experiment; the message names the key and where its value came from.
    """
    trials: dict[str, Trial] = {}
    document = document or Document(base.source, {})
    try:
        check_axes(sweep)
    except ConfigError as error:
        raise ConfigError(document.locate(str(error))) from None
    base = base if "name" in base.data else base.override({"name": sweep.name}, "name of the sweep")
    marks: dict[Any, str | None] = {}
    places: dict[Path_, str] = {}
    known: Known = {}
    for values, paths in points(sweep):
        places |= {path: (place or axis_place)(document, path) for path in paths.values() if path not in places}
        experiment = parse_experiment(base.override(values, {key: places[path] for key, path in paths.items()}), known)
        if experiment.dataset not in marks:
            marks[experiment.dataset] = fingerprint_at(base, fingerprint, experiment.dataset) if fingerprint else None
        trial_id = experiment.trial_id(marks[experiment.dataset])
        trials.setdefault(trial_id, Trial(trial_id, values, experiment, paths))
    return list(trials.values())


def fingerprint_at(base: Document, fingerprint: Fingerprint, options: DatasetOptions) -> str | None:
    """The fingerprint, with the place of the data set in what a missing option makes it say."""
    try:
        return fingerprint(options)
    except ConfigError as error:
        raise ConfigError(f"{base.where(('dataset',))}: {error}") from None


def axis_place(document: Document, path: Path_) -> str:
    """``file:line: grid.seed`` for a path in the sweep file."""
    axis = f"cases[{path[1]}]" if path[0] == "cases" else path[0]
    return f"{document.where(path)}: {axis}.{path[-1]}"


def swept_keys(sweep: Sweep) -> set[str]:
    """The dotted keys that some axis sets."""
    return {*sweep.grid, *sweep.zip, *(sweep.random.keys if sweep.random else ()), *(key for case in sweep.cases or () for key in case)}


def reaches_into(a: str, b: str) -> bool:
    """Whether the dotted key ``a`` is ``b`` or lies inside the table ``b``."""
    return f"{a}.".startswith(f"{b}.")


def check_axes(sweep: Sweep) -> None:
    """Raises ``ConfigError`` where axes set the same value, or make too many points."""
    _refuse_clashes(sweep)
    n = count_points(sweep)
    if n > MOST_POINTS:
        raise ConfigError(f"grid, zip, cases and random together make {n} points, and {MOST_POINTS} is the most; take values out")


def _refuse_clashes(sweep: Sweep) -> None:
    """A key belongs to one axis, and no axis reaches into a table that another sets.

    Within one case, and within random, a table may be set first and something in it after that.
    """
    cases = dict.fromkeys(key for case in sweep.cases or [] for key in case)
    random = list(sweep.random.keys) if sweep.random else []
    axes = [(name, key) for name, keys in (("grid", sweep.grid), ("zip", sweep.zip), ("cases", cases), ("random", random)) for key in keys]
    for (first, a), (second, b) in itertools.combinations(axes, 2):
        if (reaches_into(a, b) or reaches_into(b, a)) and (first != second or first in ("grid", "zip")):
            raise ConfigError(f"{first}.{a} and {second}.{b} set the same value; keep one of them")
    for axis, keys in (("random", random), *(("cases", list(case)) for case in sweep.cases or [])):
        for a, b in itertools.combinations(keys, 2):
            if reaches_into(a, b):
                raise ConfigError(f"{axis}: {b} comes after {a} and would replace it; put {b} first")


def _draws(random: RandomSearch | None) -> Iterator[dict[str, Any]]:
    """n points; each key has a generator of its own, so that adding a key or raising n changes no earlier draw."""
    if random is None:
        yield {}
        return
    generators = {key: np.random.default_rng(np.random.SeedSequence([random.seed, *key.encode()])) for key in random.keys}
    for _ in range(random.n):
        yield {key: _draw(generators[key], *next(iter(table.items()))) for key, table in random.keys.items()}


def _draw(rng: np.random.Generator, kind: str, values: list[Any]) -> Any:
    if kind == "choice":
        return values[int(rng.integers(len(values)))]
    low, high = values
    if kind == "int":
        return int(rng.integers(low, high, endpoint=True))
    if kind == "uniform":
        return float(rng.uniform(low, high))
    drawn = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return min(max(drawn, float(low)), float(high))  # exp and log together may leave the interval by a rounding error
