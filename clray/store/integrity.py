"""Reads every committed file of a sweep against its checksum, and sets damaged parts aside so that the next run makes them anew."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from clray.errors import OutputError
from clray.store.commit import Commit, DamagedError
from clray.store.filesystem import Storage, is_name
from clray.store.layout import COMMIT, SweepLayout, TrialLayout, folder_order, is_folder_name, is_study_folder
from clray.store.reader import committed_folders, read_commit, verify
from clray.store.result import read_result, small_files, transform_files
from clray.store.upkeep import set_aside, set_file_aside

REMOTE_THREADS = 16
MOST_TASKS = 100_000
WHOLE = "(all)"
"""The part of a trial of which not even a listing can be had."""


@dataclass(frozen=True)
class Damage:
    """What is wrong with one folder or file of a trial.

    Attributes:
        part: name of the folder or file in the trial's folder.
        problems: one sentence each.
    """

    trial_id: str
    part: str
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """Something that can be checked by itself.

    Attributes:
        n_bytes: what has to be read.
        check: returns problems; takes a function that is called with the size of each block read.
    """

    trial_id: str
    name: str
    n_bytes: int
    check: Callable[[Callable[[int], None]], list[str]]


def parts_of(storage: Storage, trial_id: str) -> list[Part]:
    """The parts of one trial: its committed folders, RESULT.json, and what that stands for. Reads the small files only."""
    trial = SweepLayout().trial(trial_id)
    parts: list[Part] = []
    try:
        folders = committed_folders(storage, trial)
    except OutputError as error:
        _unless_unreachable(storage, error)
        return [_wrong(trial_id, WHOLE, f"{error}: move it away")]
    config = ""
    try:
        result = read_result(storage, trial)
    except OutputError as error:
        _unless_unreachable(storage, error)
        result = None
        parts.append(_wrong(trial_id, "RESULT.json", str(error)))
    if result is not None:
        config = result.get("config", "")
        expected = TrialLayout.folder_names(min(result["n_tasks"], MOST_TASKS), joint="joint_acc" in result.get("metrics", {}))
        beside = result.get("folders", [])
        expected += [name for name in beside if isinstance(name, str) and is_study_folder(name)] if isinstance(beside, list) else []
        missing = sorted(set(expected) - set(folders), key=folder_order)
        parts += [_wrong(trial_id, name, "is missing, though the trial is complete") for name in missing[:1000]]
        hashes = result.get("files", {})
        written = small_files(trial) | {name: path for name, path in transform_files(trial).items() if name in hashes}
        parts += [_small(storage, trial_id, name, path, hashes) for name, path in written.items()]
    if storage.is_local:  # there a folder gets its name whole; keys of an object store without COMMIT.json are just not committed
        lost = [name for name in storage.list_names(trial.base) if is_folder_name(name) and name not in folders]
        known = {part.name for part in parts}
        parts += [_wrong(trial_id, name, f"has no {COMMIT}") for name in lost if name not in known]
    parts += [_folder(storage, trial, trial_id, name, config) for name in folders]
    return parts


def check_parts(storage: Storage, parts: list[Part], on_bytes: Callable[[int], None]) -> Iterator[tuple[Part, Damage | None]]:
    """Checks parts, several at a time, and yields them in order as they are done."""
    workers = min(4, os.cpu_count() or 1) if storage.is_local else REMOTE_THREADS

    def check(part: Part) -> list[str]:
        try:
            return part.check(on_bytes)
        except OutputError as error:
            _unless_unreachable(storage, error)
            return [str(error)]

    with ThreadPoolExecutor(workers, "clray-verify") as pool:
        try:
            for part, problems in zip(parts, pool.map(check, parts), strict=True):
                yield part, Damage(part.trial_id, part.name, tuple(problems)) if problems else None
        finally:
            pool.shutdown(cancel_futures=True)


def set_damage_aside(storage: Storage, trial_id: str, damaged: list[Damage]) -> list[str]:
    """Gives the damaged parts of a trial, and its RESULT.json, names that begin with a dot: the next run makes them anew.

    What is no folder any more at all is left to the user. Nobody else may be writing the trial.

    Returns:
        The new names.
    """
    trial = SweepLayout().trial(trial_id)
    moved = []
    mendable = [damage for damage in damaged if is_name(damage.part)]
    for damage in mendable:
        if is_folder_name(damage.part):
            if storage.exists(trial.folder(damage.part)):
                moved.append(set_aside(storage, trial, damage.part))
        elif storage.exists(trial.folder(damage.part)):
            moved.append(set_file_aside(storage, trial, damage.part))
    if mendable and storage.exists(trial.result):
        moved.append(set_file_aside(storage, trial, trial.result.rpartition("/")[2]))
    return moved


def _folder(storage: Storage, trial: TrialLayout, trial_id: str, name: str, config: str) -> Part:
    try:
        commit = read_commit(storage, trial, name)
    except OutputError as error:
        _unless_unreachable(storage, error)
        return _wrong(trial_id, name, str(error))
    if commit is None:
        return _wrong(trial_id, name, f"has no {COMMIT}")
    if config and commit.config != config:
        return _wrong(trial_id, name, f"belongs to another experiment (config {commit.config[:10]}, the trial's is {config[:10]})")

    def check(on_bytes: Callable[[int], None], commit: Commit = commit) -> list[str]:
        return verify(storage, trial, commit, on_bytes=on_bytes)

    return Part(trial_id, name, sum(entry.n_bytes for entry in commit.files.values()), check)


def _small(storage: Storage, trial_id: str, name: str, path: str, checksums: dict[str, str]) -> Part:
    def check(on_bytes: Callable[[int], None]) -> list[str]:
        try:
            data = storage.read_bytes(path)
        except FileNotFoundError:
            return [f"{storage.shown(path)} is missing"]
        on_bytes(len(data))
        same = hashlib.sha256(data).hexdigest() == checksums.get(name)
        return [] if same else [f"{storage.shown(path)} has another sha256 than when the trial was completed"]

    return Part(trial_id, name, 0, check)


def _wrong(trial_id: str, name: str, problem: str) -> Part:
    return Part(trial_id, name, 0, lambda on_bytes: [problem])


def _unless_unreachable(storage: Storage, error: OutputError) -> None:
    """A bucket out of reach says nothing about its files; a file that a disk does not give back is damaged."""
    if not storage.is_local and not isinstance(error, DamagedError):
        raise error
