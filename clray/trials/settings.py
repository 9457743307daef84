"""Settings of trials by dotted key, and which of them tell the trials of one folder apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clray.trials.expand import reaches_into

NOT_OF_THE_EXPERIMENT = "name", "loggers", "dataset.root"
"""Keys of an experiment that are not part of its identity."""


def flattened(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values of a table. A list of tables (strategies) counts as one where it has one."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        if len(value) == 1:
            yield from flattened(key, value[0])
            return
        yield f"{key}.name", "+".join(str(item.get("name", "?")) for item in value)
        for item in value:
            for part, inner in flattened(f"{key}.{item.get('name', '?')}", {k: v for k, v in item.items() if k != "name"}):
                yield part, inner
    elif isinstance(value, dict):
        for part, inner in value.items():
            yield from flattened(f"{key}.{part}" if key else str(part), inner)
    else:
        yield key, value


def told_apart(params: Mapping[str, Mapping[str, Any]], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings that tell trials apart that different commands left in one folder.

    Args:
        params: trial id to the settings it is shown with: the swept keys of its own sweep.
        configs: trial id to its whole experiment as plain data.

    Returns:
        Trial id to ``params`` and, where these do not say it, what else differs between trials that have the key at all.
    """
    flat = {trial_id: dict(flattened("", config)) for trial_id, config in configs.items()}
    values: dict[str, list[Any]] = {}
    for settings in flat.values():
        for key, value in settings.items():
            known = values.setdefault(key, [])
            if value not in known:
                known.append(value)
    differing = {key for key, known in values.items() if len(known) > 1}
    wanted = differing | {key for own in params.values() for key in own}
    wanted = {key for key in wanted if not any(reaches_into(key, other) for other in NOT_OF_THE_EXPERIMENT)}
    told = {}
    for trial_id, own in params.items():
        settings = flat.get(trial_id, {})
        said = [*own]
        more = {key for key in wanted & settings.keys() if not any(reaches_into(key, k) or reaches_into(k, key) for k in said)}
        told[trial_id] = {**own, **{key: settings[key] for key in sorted(more)}}
    return told
