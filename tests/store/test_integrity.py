"""``clray status --verify`` finds every kind of damage, and what is set aside is made anew."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from clray.store.commit import DamagedError
from clray.store.filesystem import Storage
from clray.store.integrity import Damage, check_parts, parts_of, set_damage_aside
from clray.store.layout import TrialLayout
from clray.store.reader import committed_folders, read_commit
from clray.store.result import read_result, write_result
from clray.trials.status import read_status

TRIAL_ID = "t_0123456789"
FOLDERS = ["initial", "task_000", "task_001"]


@pytest.fixture
def complete(trial: TrialLayout, write: Callable) -> Callable[[Storage], Storage]:
    """Makes a complete trial of two tasks."""

    def build(storage: Storage) -> Storage:
        for folder in FOLDERS:
            write(storage, trial, folder, "001-a")
        for path in (trial.config, trial.classes, trial.eval_samples):
            storage.replace_bytes(path, path.encode())
        write_result(storage, trial, {"status": "done", "n_tasks": 2, "attempts": 1, "config": "confighash"})
        return storage

    return build


def damage_in(storage: Storage) -> list[Damage]:
    return [damage for _, damage in check_parts(storage, parts_of(storage, TRIAL_ID), lambda n: None) if damage]


def flip(storage: Storage, path: str, at: int = -5) -> None:
    data = bytearray(storage.read_bytes(path))
    data[at] ^= 1
    storage.replace_bytes(path, bytes(data))


def file_of(storage: Storage, trial: TrialLayout, folder: str, name: str) -> str:
    commit = read_commit(storage, trial, folder)
    assert commit is not None
    return commit.file(name)


def test_a_whole_trial_has_no_damage_and_every_byte_is_counted(storage: Storage, trial: TrialLayout, complete: Callable) -> None:
    complete(storage)
    parts, read = parts_of(storage, TRIAL_ID), []
    assert [damage for _, damage in check_parts(storage, parts, read.append)] == [None] * len(parts)
    commits = [read_commit(storage, trial, folder) for folder in FOLDERS]
    n_bytes = sum(entry.n_bytes for commit in commits if commit for entry in commit.files.values())
    assert sum(part.n_bytes for part in parts) == n_bytes
    small = sum(storage.size(path) for path in (trial.config, trial.classes, trial.eval_samples))
    assert sum(read) == n_bytes + small


@pytest.mark.parametrize("name", ["metrics.parquet", "weights.head.kernel.npy", "state.msgpack"])
def test_a_flipped_bit_in_any_committed_file_is_found_there(storage: Storage, trial: TrialLayout, complete: Callable, name: str) -> None:
    complete(storage)
    flip(storage, file_of(storage, trial, "task_000", name))
    (damage,) = damage_in(storage)
    assert (damage.trial_id, damage.part) == (TRIAL_ID, "task_000")
    assert name in damage.problems[0]


@pytest.mark.parametrize("name", ["config.yaml", "classes.npy", "eval_samples.npy", "RESULT.json"])
def test_damage_outside_the_folders_is_found(storage: Storage, trial: TrialLayout, complete: Callable, name: str) -> None:
    complete(storage)
    flip(storage, trial.folder(name))
    assert [damage.part for damage in damage_in(storage)] == [name]
    if name != "RESULT.json":
        storage.remove_file(trial.folder(name))
        assert [damage.part for damage in damage_in(storage)] == [name]


def test_a_lost_folder_of_a_complete_trial_is_found(storage: Storage, trial: TrialLayout, complete: Callable) -> None:
    complete(storage)
    storage.remove_tree(trial.folder("task_001"))
    assert [damage.part for damage in damage_in(storage)] == ["task_001"]


def test_a_folder_of_another_experiment_is_found(memory: Storage, trial: TrialLayout, complete: Callable) -> None:
    complete(memory)
    memory.remove_file(trial.result)
    write_result(memory, trial, {"status": "done", "n_tasks": 2, "attempts": 1, "config": "another"})
    assert {damage.part for damage in damage_in(memory)} == set(FOLDERS)


def test_an_unfinished_trial_is_checked_as_far_as_it_is_committed(storage: Storage, trial: TrialLayout, write: Callable) -> None:
    write(storage, trial, "initial", "001-a")
    storage.replace_bytes(trial.config, b"not checked before the end")
    assert damage_in(storage) == []
    flip(storage, file_of(storage, trial, "initial", "metrics.parquet"))
    assert [damage.part for damage in damage_in(storage)] == ["initial"]


def test_every_flipped_bit_of_a_result_is_noticed(memory: Storage, trial: TrialLayout, complete: Callable) -> None:
    complete(memory)
    data = memory.read_bytes(trial.result)
    whole = read_result(memory, trial)
    for at in range(len(data)):
        for bit in (0, 3, 6):
            memory.replace_bytes(trial.result, data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
            try:
                found = read_result(memory, trial)
            except DamagedError:
                continue
            assert found == whole or "checksum" not in json.loads(memory.read_bytes(trial.result))


def test_what_is_set_aside_counts_as_not_done_and_stays_readable(
    storage: Storage, trial: TrialLayout, complete: Callable, write: Callable
) -> None:
    complete(storage)
    flip(storage, file_of(storage, trial, "task_000", "weights.head.kernel.npy"))
    flip(storage, trial.classes)
    moved = set_damage_aside(storage, TRIAL_ID, damage_in(storage))
    assert sorted(moved) == [".damaged-RESULT.json-1", ".damaged-classes.npy-1", ".damaged-task_000-1"]
    assert committed_folders(storage, trial) == ["initial", "task_001"]
    assert read_status(storage, trial, driver_alive=False).status == "pending"
    names = storage.list_names(trial.base)
    assert {*moved} <= {*names}
    assert {"RESULT.json", "classes.npy", "task_000"}.isdisjoint(names)
    write(storage, trial, "task_000", "002-b")
    storage.replace_bytes(trial.classes, trial.classes.encode())
    write_result(storage, trial, {"status": "done", "n_tasks": 2, "attempts": 2, "config": "confighash"})
    assert damage_in(storage) == []


def test_a_damaged_result_is_an_interrupted_trial_that_says_why(storage: Storage, trial: TrialLayout, complete: Callable) -> None:
    complete(storage)
    flip(storage, trial.result)
    found = read_status(storage, trial, driver_alive=False)
    assert (found.status, found.tasks, found.cause) == ("interrupted", 2, "storage")
    assert "RESULT.json is damaged" in found.error
