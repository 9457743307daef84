"""Leftovers, damaged folders and old state."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clray.store import layout
from clray.store.commit import DamagedError
from clray.store.filesystem import Storage, join_path
from clray.store.layout import SweepLayout, TrialLayout
from clray.store.reader import committed_folders, read_commit, read_file, verify
from clray.store.upkeep import discard_temporary, discard_uncommitted, prune_state, set_aside


def test_staging_folders_and_temporary_files_are_discarded(local: Storage, trial: TrialLayout, write: Callable) -> None:
    write(local, trial, "task_000", "001-a")
    kept = local.list_files(trial.base)
    for path in [
        trial.file("task_000.tmp-001-dead", "metrics.parquet"),
        trial.file("task_001.tmp-002-dead", "COMMIT.json"),
        trial.folder(".tmp-0123456789abcdef"),
        trial.file(".trash-0123456789abcdef", "metrics.parquet"),
        join_path(trial.attempts, ".tmp-0123456789abcdef"),
    ]:
        local.replace_bytes(path, b"left")
    local.replace_bytes(trial.attempt(1), b"{}")
    assert len(discard_uncommitted(local, trial)) == 5
    assert local.list_files(trial.base) == kept | {"attempts/001.json": 2}
    assert discard_uncommitted(local, trial) == []


def test_uncommitted_folder_with_a_final_name_is_set_aside(local: Storage, trial: TrialLayout, write: Callable, value_of: Callable) -> None:
    local.replace_bytes(trial.file("task_000", "metrics.parquet"), b"copied without its commit")
    assert discard_uncommitted(local, trial) == [trial.folder(".damaged-task_000-1")]
    write(local, trial, "task_000", "001-a")
    assert value_of(local, trial, "task_000") == 1.0


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_keys_of_dead_attempts_go_once_the_folder_is_committed(
    request: pytest.FixtureRequest, trial: TrialLayout, write: Callable, value_of: Callable, kind: str
) -> None:
    storage: Storage = request.getfixturevalue(kind)
    dead = join_path(trial.keys("task_000", "001-dead"), "metrics.parquet")
    storage.replace_bytes(dead, b"left")
    assert discard_uncommitted(storage, trial) == []
    assert storage.exists(dead)
    write(storage, trial, "task_000", "002-b")
    assert discard_uncommitted(storage, trial) == [dead]
    assert value_of(storage, trial, "task_000") == 1.0


def test_damaged_folder_is_set_aside_and_written_anew(storage: Storage, trial: TrialLayout, write: Callable, value_of: Callable) -> None:
    for number in (1, 2):
        commit = write(storage, trial, "task_000", f"00{number}-a", number).commit
        storage.replace_bytes(commit.file("metrics.parquet"), b"damaged")
        assert verify(storage, trial, commit) != []
        assert set_aside(storage, trial, "task_000") == f".damaged-task_000-{number}"
        assert committed_folders(storage, trial) == []
        assert read_commit(storage, trial, "task_000") is None
        aside = trial.folder(f".damaged-task_000-{number}")
        assert sorted(storage.list_files(aside)) == sorted([*(entry.key for entry in commit.files.values()), "COMMIT.json"])
    write(storage, trial, "task_000", "003-a", 3.0)
    assert value_of(storage, trial, "task_000") == 3.0
    with pytest.raises(FileNotFoundError):
        set_aside(storage, trial, "task_001")


def test_state_is_kept_for_the_last_two_folders_of_the_sequence(storage: Storage, trial: TrialLayout, write: Callable) -> None:
    def with_state() -> list[str]:
        return [name.split("/")[0] for name in sorted(storage.list_files(trial.base)) if name.endswith(layout.STATE)]

    for folder in ["initial", "task_000"]:
        write(storage, trial, folder, "001-a")
    assert prune_state(storage, trial) == []
    for folder in ["task_001", "task_002", "joint"]:
        write(storage, trial, folder, "001-a")
    assert len(prune_state(storage, trial)) == 2
    assert with_state() == ["joint", "task_001", "task_002"]
    assert prune_state(storage, trial) == []
    for folder in committed_folders(storage, trial):
        commit = read_commit(storage, trial, folder)
        assert commit is not None
        assert layout.STATE in commit.files
        assert verify(storage, trial, commit) == []
    commit = read_commit(storage, trial, "task_000")
    assert commit is not None
    with pytest.raises(DamagedError, match="is missing"):
        read_file(storage, commit, layout.STATE)
    assert len(prune_state(storage, trial, keep_last=1)) == 1


def test_temporary_files_of_a_sweep_are_discarded(local: Storage) -> None:
    local.replace_bytes(".tmp-0123456789abcdef", b"left")
    local.replace_bytes(SweepLayout().sweep, b"name: digits")
    assert discard_temporary(local, "") == [".tmp-0123456789abcdef"]
    assert local.list_names("") == ["sweep.yaml"]
