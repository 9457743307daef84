"""Settings of trials by dotted key, and which of them tell the trials of one folder apart."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clray.config import canonical_json
from clray.errors import OutputError
from clray.store.filesystem import Storage
from clray.store.reader import plain_yaml
from clray.trials.expand import reaches_into

TELL_NOTHING = "name", "loggers", "ideal_models"
"""Keys that are not part of a trial's identity. ``dataset.root`` is one where the data set has files of its own everywhere."""

FOLDERS = "arrays", "image_folder"
"""Data sets that are what lies in ``dataset.root``."""


def flattened(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values of a table. A list of tables (strategies) counts as one where it has one, and as one value where
    two of them have the same name."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        if len(value) == 1:
            yield from flattened(key, value[0])
            return
        names = [str(item.get("name", "?")) for item in value]
        if len(set(names)) < len(names):
            yield key, value
            return
        yield f"{key}.name", "+".join(names)
        for name, item in zip(names, value, strict=True):
            for part, inner in flattened(f"{key}.{name}", {k: v for k, v in item.items() if k != "name"}):
                yield part, inner
    elif isinstance(value, dict):
        for part, inner in value.items():
            yield from flattened(f"{key}.{part}" if key else str(part), inner)
    else:
        yield key, value


def settings_of_config(storage: Storage, path: str) -> dict[str, Any]:
    """A config.yaml as plain data, without the parts that are damaged; empty where it is not there. Made for many files that are
    nearly the same."""
    try:
        parts = [_top_level(part) for part in re.split(r"(?m)^(?=[a-z_]+:)", storage.read_bytes(path).decode()) if part]
        config = {key: value for part in parts for key, value in part.items()}
        canonical_json(config)
    except (FileNotFoundError, OutputError, UnicodeDecodeError, RecursionError, TypeError, ValueError):
        return {}
    return config


@functools.lru_cache(maxsize=1024)
def _top_level(text: str) -> dict[str, Any]:
    return plain_yaml(text)


def told_apart(params: Mapping[str, Mapping[str, Any]], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings that tell trials apart that different commands left in one folder.

    Args:
        params: trial id to the settings it is shown with: the swept keys of its own sweep.
        configs: trial id to its whole experiment as plain data.

    Returns:
        Trial id to ``params``, with the values of its experiment, and, where these do not say it, what else differs between trials
        that have the key at all.
    """
    flat = {trial_id: dict(flattened("", config)) for trial_id, config in configs.items()}
    _join_tables(list(flat.values()))
    values: dict[str, set[Any]] = {}
    for settings in flat.values():
        for key, value in settings.items():
            values.setdefault(key, set()).add(canonical_json(value) if isinstance(value, (list, dict)) else value)
    wanted = {key for key, known in values.items() if len(known) > 1} | {key for own in params.values() for key in own}
    wanted = {key for key in wanted if not any(reaches_into(key, other) for other in TELL_NOTHING)}
    told = {}
    for trial_id, own in params.items():
        settings = flat.get(trial_id, {})
        tells = wanted if settings.get("dataset.name") in FOLDERS or ":" in str(settings.get("dataset.name")) else wanted - {"dataset.root"}
        more = {key for key in tells & settings.keys() if not any(reaches_into(key, k) or reaches_into(k, key) for k in own)}
        said = {key: settings.get(key, value) for key, value in own.items()}
        told[trial_id] = {**said, **{key: settings[key] for key in sorted(more)}}
    return told


def _join_tables(flat: Sequence[dict[str, Any]]) -> None:
    """What is a table in one trial and none in another becomes one value in all of them."""
    keys = {key for settings in flat for key in settings}
    inner = {key.rsplit(".", n)[0] for key in keys for n in range(1, 1 + key.count("."))}
    for table in keys & inner:
        for settings in flat:
            parts = [key for key in settings if key != table and reaches_into(key, table)]
            if parts:
                settings[table] = {key.removeprefix(f"{table}."): settings.pop(key) for key in parts}
