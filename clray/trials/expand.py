"""Expands a sweep into trials. Pure: no files, no data, no JAX.

Points are the product, in this order, of ``grid`` (itself a product, the last key fastest), ``zip``, ``cases`` and
``random``. Equal points are one trial.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from clray.config import Experiment, RandomSearch, Sweep
from clray.documents import Document, parse_experiment
from clray.errors import ConfigError


@dataclass(frozen=True)
class Trial:
    """One point of a sweep.

    Attributes:
        trial_id: content hash; see ``Experiment.trial_id``.
        params: the swept dotted keys with this point's values, as written.
        experiment: the whole validated experiment.
    """

    trial_id: str
    params: Mapping[str, Any]
    experiment: Experiment


def points(sweep: Sweep) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Every point as dotted key to value, with dotted key to origin (``grid``, ``zip`` ...) for messages.

    Raises:
        ConfigError: two axes set the same key, or one sets a table that the other reaches into.
    """
    _refuse_clashes(sweep)
    grid = list(itertools.product(*(_tagged("grid", key, values) for key, values in sweep.grid.items())))
    rows = [_tagged("zip", key, values) for key, values in sweep.zip.items()]
    zipped = list(zip(*rows, strict=True)) if rows else [()]
    cases = [tuple((f"cases[{i}]", key, v) for key, v in case.items()) for i, case in enumerate(sweep.cases or [{}])]
    drawn = [tuple(("random", key, v) for key, v in draw.items()) for draw in _draws(sweep.random)] if sweep.random else [()]
    for parts in itertools.product(grid, zipped, cases, drawn):
        flat = [item for part in parts for item in part]
        yield {key: value for _, key, value in flat}, {key: origin for origin, key, _ in flat}


def expand(sweep: Sweep, base: Document, fingerprint: Any = None) -> list[Trial]:
    """All trials of a sweep, each validated as a whole experiment; equal points merged.

    Args:
        sweep: the validated sweep.
        base: the document of its experiment, for messages.
        fingerprint: ``DatasetOptions -> str | None`` for data that people own.

    Raises:
        ConfigError: a point is not a valid experiment; the message names the key and where its value came from.
    """
    trials: dict[str, Trial] = {}
    base = base if "name" in base.data else base.override({"name": sweep.name}, "name of the sweep")
    marks: dict[Any, str | None] = {}
    for values, origins in points(sweep):
        places = {key: f"{base.source}: {origin}.{key}" for key, origin in origins.items()}
        experiment = parse_experiment(base.override(values, places))
        if experiment.dataset not in marks:
            marks[experiment.dataset] = fingerprint(experiment.dataset) if fingerprint else None
        trial_id = experiment.trial_id(marks[experiment.dataset])
        trials.setdefault(trial_id, Trial(trial_id, values, experiment))
    return list(trials.values())


def _tagged(origin: str, key: str, values: list[Any]) -> list[tuple[str, str, Any]]:
    return [(origin, key, value) for value in values]


def _refuse_clashes(sweep: Sweep) -> None:
    random = sweep.random.keys if sweep.random else {}
    cases = {key for case in sweep.cases or [] for key in case}
    axes = [(name, key) for name, keys in (("grid", sweep.grid), ("zip", sweep.zip), ("cases", cases), ("random", random)) for key in keys]
    for (first, a), (second, b) in itertools.combinations(sorted(axes, key=lambda axis: axis[1]), 2):
        inside = b.startswith(a + ".") or a.startswith(b + ".")
        if a == b or (inside and first != second) or (inside and first in ("grid", "zip")):
            raise ConfigError(f"sweep {sweep.name}: {first}.{a} and {second}.{b} set the same value; keep one of them")


def _draws(random: RandomSearch) -> Iterator[dict[str, Any]]:
    """n points; each key has a generator of its own, so that adding a key or raising n changes no earlier draw."""
    generators = {
        key: np.random.default_rng(np.random.SeedSequence([random.seed, *key.encode()])) for key in random.keys
    }
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
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
