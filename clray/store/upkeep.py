"""Cleaning up in a trial: leftovers of attempts that died, damaged folders, state that is no longer needed.

All of this belongs to whoever owns the trial: two processes must not do it at the same time, but a process that lost its trial
and does not know yet may still be writing, and must do no harm.
"""

from __future__ import annotations

from collections.abc import Sequence

from clray.errors import OutputError
from clray.store.commit import DamagedError
from clray.store.filesystem import TEMPORARY_PREFIX, TRASH_PREFIX, Storage, join_path
from clray.store.layout import COMMIT, JOINT, STATE, TrialLayout, folder_order, is_folder_name, is_study_folder
from clray.store.reader import committed_folders, read_commit

_MAX_SET_ASIDE = 1000


def discard_uncommitted(storage: Storage, trial: TrialLayout) -> list[str]:
    """Remove what attempts left behind that did not commit; call when an attempt begins and when the trial is complete.

    Local disk: staging folders (renamed first, so that a writer that is still alive cannot publish half of one) and temporary
    files; a folder with a final name but without COMMIT.json, which only copying can produce, is set aside.

    Object store: keys in committed folders that their COMMIT.json does not name. Keys in folders that nobody has committed
    stay until somebody has: the COMMIT.json of a writer that was given up may still be under way, and would name them.

    Returns:
        What was removed or set aside, relative to the storage's root.
    """
    return _discard_local(storage, trial) if storage.is_local else _discard_keys(storage, trial)


def discard_temporary(storage: Storage, folder: str) -> list[str]:
    """Remove temporary files and trash that killed processes left directly in a folder (local disk only).

    Args:
        folder: relative to the root; ``""`` is the root. Nobody else may be writing there.
    """
    if not storage.is_local:
        return []
    removed = []
    for name in storage.list_names(folder):
        if name.startswith((TEMPORARY_PREFIX, TRASH_PREFIX)):
            path = join_path(folder, name) if folder else name
            storage.remove_tree(path)
            removed.append(path)
    return removed


def set_aside(storage: Storage, trial: TrialLayout, folder: str) -> str:
    """Give a damaged folder another name, so that it counts as not committed and is written anew.

    Returns:
        The new name, ``.damaged-<folder>-<n>``.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    for number in range(1, _MAX_SET_ASIDE):
        name = f".damaged-{folder}-{number}"
        try:
            storage.move_folder(trial.folder(folder), trial.folder(name), head=COMMIT)
            return name
        except FileExistsError:
            continue
    raise OutputError(f"{storage.shown(trial.base)} holds {_MAX_SET_ASIDE - 1} damaged copies of {folder}: check the disk, and remove them")


def set_file_aside(storage: Storage, trial: TrialLayout, name: str) -> str:
    """Give a damaged file of a trial, such as RESULT.json, another name.

    Returns:
        The new name, ``.damaged-<name>-<n>``.

    Raises:
        FileNotFoundError: there is no such file.
    """
    data = storage.read_bytes(trial.folder(name))
    for number in range(1, _MAX_SET_ASIDE):
        aside = f".damaged-{name}-{number}"
        try:
            storage.create_bytes(trial.folder(aside), data)
        except FileExistsError:
            continue
        storage.remove_file(trial.folder(name))
        return aside
    raise OutputError(f"{storage.shown(trial.base)} holds {_MAX_SET_ASIDE - 1} damaged copies of {name}: check the disk, and remove them")


def prune_state(storage: Storage, trial: TrialLayout, folders: Sequence[str] | None = None, keep_last: int = 2) -> list[str]:
    """Remove state.msgpack from all but the last committed folders of the sequence (``initial`` counts, ``joint`` does not).

    COMMIT.json still names the file, marked as transient, and readers accept that it is gone.

    Args:
        folders: committed folders of the sequence, in order; default all there are, which takes a look at each.
        keep_last: folders that keep their state.

    Returns:
        What was removed, relative to the storage's root.
    """
    if folders is None:
        folders = [name for name in committed_folders(storage, trial) if name != JOINT and not is_study_folder(name)]
    removed = []
    for folder in folders[: max(0, len(folders) - keep_last)]:
        path = trial.folder(folder)
        keys = [STATE] if storage.is_local else [key for key in storage.list_files(path) if key.split("/")[-1] == STATE]
        for key in keys:
            if storage.exists(join_path(path, key)):
                storage.remove_file(join_path(path, key))
                removed.append(join_path(path, key))
    return removed


def _discard_local(storage: Storage, trial: TrialLayout) -> list[str]:
    removed = [*discard_temporary(storage, trial.base), *discard_temporary(storage, trial.attempts)]
    for name in storage.list_names(trial.base):
        path = trial.folder(name)
        if is_folder_name(name.partition(".tmp-")[0]) and ".tmp-" in name:
            storage.remove_tree(path)
            removed.append(path)
        elif is_folder_name(name) and not storage.exists(trial.commit(name)):
            removed.append(trial.folder(set_aside(storage, trial, name)))
    return removed


def _discard_keys(storage: Storage, trial: TrialLayout) -> list[str]:
    removed = []
    for folder in sorted(committed_folders(storage, trial), key=folder_order):
        try:
            commit = read_commit(storage, trial, folder)
        except DamagedError:
            continue  # the owner sets the folder aside, with everything in it
        if commit is None:
            continue
        named = {COMMIT, *(entry.key for entry in commit.files.values())}
        for key in storage.list_files(trial.folder(folder)):
            if key not in named:
                storage.remove_file(join_path(commit.path, key))
                removed.append(join_path(commit.path, key))
    return removed
