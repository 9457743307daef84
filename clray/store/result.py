"""RESULT.json: written when a trial is complete, and what makes it count as finished.

Beside the metrics it holds the sha256 of the trial's files that lie outside the committed folders (``files``), and of itself
(``checksum``), so that damage to any file of a finished trial can be told.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import secrets
from collections.abc import Mapping
from typing import Any

from clray.store.commit import DamagedError
from clray.store.filesystem import Storage
from clray.store.layout import TrialLayout
from clray.store.sealed import CHECKSUM, checksum_of, sealed

OUTCOMES = ("done", "diverged")


def small_files(trial: TrialLayout) -> dict[str, str]:
    """Name to path of the files that every attempt finds the same, outside the committed folders."""
    return {path.rpartition("/")[2]: path for path in (trial.config, trial.classes, trial.eval_samples)}


def transform_files(trial: TrialLayout) -> dict[str, str]:
    """The same for files that only trials with transformed images have."""
    return {path.rpartition("/")[2]: path for path in (trial.permutations, trial.angles)}


def write_result(storage: Storage, trial: TrialLayout, result: Mapping[str, Any]) -> None:
    """Creates RESULT.json with the checksums of what it stands for; one that is there and whole is left as it is.

    Args:
        result: plain data with ``status``, ``n_tasks`` and ``attempts`` at least.

    Raises:
        OutputError: the output failed, or a file of the trial is missing.
    """
    files = {}
    for name, path in small_files(trial).items():
        try:
            files[name] = hashlib.sha256(storage.read_bytes(path)).hexdigest()
        except FileNotFoundError:
            raise DamagedError(f"{storage.shown(path)} is missing: running the same command again writes it anew") from None
    for name, path in transform_files(trial).items():
        with contextlib.suppress(FileNotFoundError):
            files[name] = hashlib.sha256(storage.read_bytes(path)).hexdigest()
    document = sealed({**result, "files": files, "nonce": secrets.token_hex(16)})
    data = json.dumps(document, indent=1, allow_nan=False).encode()
    try:
        storage.create_bytes(trial.result, data)
    except FileExistsError:
        # One that can be read stays: it was computed from the same commits, or is ours and the reply was lost.
        with contextlib.suppress(DamagedError):
            present = read_result(storage, trial)
            if present is not None and present.get("trial_id") == result.get("trial_id"):
                return
        storage.replace_bytes(trial.result, data)


def read_result(storage: Storage, trial: TrialLayout) -> dict[str, Any] | None:
    """RESULT.json without its checksum; None where the trial is not complete.

    Raises:
        DamagedError: it is not what was written.
        OutputError: the storage cannot be read.
    """
    try:
        data = storage.read_bytes(trial.result)
    except FileNotFoundError:
        return None
    try:
        document = json.loads(data, parse_constant=_refuse)
        if document.pop(CHECKSUM, None) not in (None, checksum_of(document)):
            raise ValueError("its checksum is wrong")
        _check(document)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DamagedError(f"{storage.shown(trial.result)} is damaged ({reason}): running the same command again writes it anew") from error
    assert isinstance(document, dict)
    return document


def _check(document: Mapping[str, Any]) -> None:
    if document["status"] not in OUTCOMES:
        raise ValueError(f"status {document['status']!r}")
    counts = {"n_tasks": document["n_tasks"], "attempts": document["attempts"], "n_diverged": document.get("n_diverged", 0)}
    for key, value in counts.items():
        if type(value) is not int or not 0 <= value < 2**31:
            raise ValueError(f"{key} is not a count")
    for key in ("metrics", "phases", "files"):
        if not isinstance(document.get(key, {}), dict):
            raise TypeError(f"{key} is not a table")
    numbers = [document.get("seconds"), *document.get("phases", {}).values()]
    for values in document.get("metrics", {}).values():
        numbers += [values["mean"], values["sem"], *values.get("repeats", ())]
    given = [number for number in numbers if number is not None]
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number) for number in given):
        raise TypeError("a number is something else")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
