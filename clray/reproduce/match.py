"""Which trial of a sweep a published row is about: the one that its point expands to, by trial id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clray.config import Sweep
from clray.errors import ConfigError
from clray.places import Document
from clray.problems import Path_
from clray.reproduce.published import Published
from clray.trials.expand import Fingerprint, Trial, expand, reaches_into

MOST_SHOWN = 5


def match_rows(
    published: Published,
    document: Document,
    sweep: Sweep,
    trials: Sequence[Trial],
    settings: Mapping[str, Any] | None = None,
    fingerprint: Fingerprint | None = None,
) -> list[Trial]:
    """The trial of every row, in the order of the rows.

    A row's point is expanded like a case of the sweep. Axes of the sweep that it leaves out stay open, and may leave one trial only.

    Args:
        document: of the published rows, for messages.
        sweep: as it is run: ``settings`` are applied to its experiment.
        trials: what it expands to.
        settings: dotted keys that were overridden, which hold for rows too.
        fingerprint: as for ``expand``.

    Raises:
        ConfigError: a row's point is not valid, or matches no trial, or several.
    """
    by_id = {trial.trial_id: trial for trial in trials}
    base = Document(document.source, sweep.experiment)
    matches = []
    for index, row in enumerate(published.rows):
        name = f"{document.where(('rows', index))}: rows[{index}] ({row.method})"
        try:
            candidates = expand(narrowed(sweep, overridden(row.point, settings or {})), base, fingerprint, place=_place)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        found = [by_id[candidate.trial_id] for candidate in candidates if candidate.trial_id in by_id]
        if len(found) != 1:
            raise ConfigError(f"{name}: {_not_one(found, candidates, trials)}")
        matches.append(found[0])
    return matches


def overridden(point: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The point under settings: what a setting replaces is left to it, what it changes inside a table of the point is added."""
    kept = {key: value for key, value in point.items() if not any(reaches_into(key, setting) for setting in settings)}
    return kept | {setting: value for setting, value in settings.items() if any(reaches_into(setting, key) for key in kept)}


def narrowed(sweep: Sweep, point: Mapping[str, Any]) -> Sweep:
    """The sweep with the point as its only case, and of its other axes those keys that the point does not set."""

    def left_open(axis: Mapping[str, Any]) -> dict[str, Any]:
        return {key: values for key, values in axis.items() if not any(reaches_into(key, p) or reaches_into(p, key) for p in point)}

    keys = left_open(sweep.random.keys) if sweep.random else {}
    random = sweep.random.model_copy(update={"keys": keys}) if sweep.random and keys else None
    return sweep.model_copy(update={"grid": left_open(sweep.grid), "zip": left_open(sweep.zip), "cases": [dict(point)], "random": random})


def _place(document: Document, path: Path_) -> str:
    del document
    return f"{'point' if path[0] == 'cases' else path[0]}.{path[-1]}"


def _not_one(found: Sequence[Trial], candidates: Sequence[Trial], trials: Sequence[Trial]) -> str:
    if not found:
        expands = f"; its point is {candidates[0].trial_id}" if len(candidates) == 1 else ""
        return (
            f"no trial of the sweep is the one that this row is about{expands}. The point sets the dotted keys of one of the sweep's "
            f"{len(trials)} trials: 'clray sweep FILE --dry-run' lists them"
        )
    shown = ", ".join(trial.trial_id for trial in found[:MOST_SHOWN]) + (", ..." if len(found) > MOST_SHOWN else "")
    keys = sorted({key for trial in found for key in trial.params if len({repr(other.params.get(key)) for other in found}) > 1})
    return f"{len(found)} trials of the sweep match ({shown}); set {', '.join(keys)} in its point too"
