"""Ideal models of an earlier study: found by what they are, and copied instead of being trained again."""

from __future__ import annotations

import os
from typing import Any

from clray.artifacts import TrialFolders, read_config
from clray.errors import ConfigError, OutputError, UserError
from clray.store import layout as names
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout, TrialLayout
from clray.store.reader import committed_folders, open_array, read_commit, read_file, read_table, verify
from clray.study.config import Study


def find_ideal_models(study: Study) -> tuple[Storage, TrialLayout]:
    """The trial in ``ideal_models`` whose networks are those of ``study``.

    Raises:
        ConfigError: there is none with networks of all tasks; says what differs.
    """
    assert study.ideal_models is not None
    key = f"ideal_models: {study.ideal_models}"
    try:
        storage, layouts = _trials(study.ideal_models)
        differs: dict[str, list[str]] = {}
        for layout in layouts:
            try:
                other = read_config(storage, layout)
            except UserError:
                continue
            shown = layout.base.rpartition("/")[2] or storage.display
            differs[shown] = _differences(study, other)
            if not differs[shown]:
                missing = _missing(storage, layout, study.sequence.n_tasks)
                if not missing:
                    return storage, layout
                differs[shown] = [f"{missing} is not committed"]
    except OutputError as error:
        raise ConfigError(f"{key}: {error}") from None
    if not differs:
        raise ConfigError(
            f"{key}: no trial of a study is there; give the folder of a sweep or of one of its trials, or leave the key out, as where its "
            "networks were copied before"
        )
    reasons = "; ".join(f"{name}: {', '.join(reason)}" for name, reason in sorted(differs.items())[:5])
    raise ConfigError(f"{key}: no study there has the ideal models that this file describes. What differs: {reasons}")


def _trials(folder: str) -> tuple[Storage, list[TrialLayout]]:
    """The trials of a sweep's folder, or the one whose folder it is."""
    storage = Storage.of(folder)
    if storage.exists("config.yaml"):
        parent, _, name = os.fspath(storage.root).rstrip("/").rpartition("/")
        above = Storage.of(parent or ".")
        return above, [TrialLayout(name)]
    layout = SweepLayout()
    found = [name for name in storage.list_names(layout.trials) if not name.startswith(".")]
    return storage, [layout.trial(name) for name in found]


def _differences(study: Study, other: Any) -> list[str]:
    """The keys in which the ideal models of two files differ."""
    if not isinstance(other, Study):
        return ["not a study"]

    def identity(one: Study) -> dict[str, Any]:
        options: Any = one.dataset
        return one.ideal_identity() | {"dataset": one.canonical_dataset(options.fingerprint())}

    own, theirs = identity(study), identity(other)
    return [key for key in sorted(own.keys() | theirs.keys()) if own.get(key) != theirs.get(key)]


def _missing(storage: Storage, layout: TrialLayout, n_tasks: int) -> str | None:
    there = committed_folders(storage, layout)
    for folder in names.TrialLayout.folder_names(n_tasks):
        if folder not in there:
            return folder
        commit = read_commit(storage, layout, folder)
        if folder != names.INITIAL and (commit is None or names.STATE not in commit.files or not storage.exists(commit.file(names.STATE))):
            return f"{folder}/{names.STATE}"
    return None


def adopt(folders: TrialFolders, study: Study) -> None:
    """Copies the folders of the ideal models that are not there yet.

    Raises:
        ConfigError: see ``find_ideal_models``.
        OutputError: a file there is damaged.
    """
    wanted = [name for name in names.TrialLayout.folder_names(study.sequence.n_tasks) if not folders.committed(name)]
    if not wanted:
        return
    storage, layout = find_ideal_models(study)
    for name in wanted:
        commit = read_commit(storage, layout, name)
        assert commit is not None
        problems = verify(storage, layout, commit)
        if problems:  # a copy would carry the damage under a fresh checksum
            raise OutputError(
                f"ideal_models: {'; '.join(problems)}. To repair that study: clray status --verify --set-aside, then its own command again"
            )
        with folders.commit(name) as out:
            for file, entry in commit.files.items():
                if entry.shape is not None:
                    out.array(file, open_array(storage, commit, file))
                elif entry.rows is not None:
                    out.table(file, read_table(storage, commit, file))
                elif not entry.transient or storage.exists(commit.file(file)):
                    out.bytes(file, read_file(storage, commit, file))
    folders.log.info("ideal models taken from %s", storage.shown(layout.base))
