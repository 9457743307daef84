"""Readers follow COMMIT.json only, and notice everything that is not as it was written."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from clray.errors import OutputError
from clray.store import layout
from clray.store.commit import DamagedError, parse_commit
from clray.store.filesystem import Storage
from clray.store.layout import TrialLayout
from clray.store.reader import committed_folders, open_array, read_commit, read_file, read_table, verify

FILES = ["metrics.parquet", "weights.head.kernel.npy", "state.msgpack"]


def flip_bit(storage: Storage, path: str, at: int) -> None:
    data = bytearray(storage.read_bytes(path))
    data[at] ^= 1
    storage.replace_bytes(path, bytes(data))


def test_folder_without_commit_is_not_committed(storage: Storage, trial: TrialLayout) -> None:
    storage.replace_bytes(trial.file("task_000", "metrics.parquet"), b"something")
    assert read_commit(storage, trial, "task_000") is None
    assert committed_folders(storage, trial) == []


def test_folders_come_in_the_order_of_the_sequence(storage: Storage, trial: TrialLayout, write: Callable) -> None:
    for folder in ["joint", "task_1000", "task_002", "task_999", "initial"]:
        write(storage, trial, folder, "001-a")
    storage.replace_bytes(trial.file(".damaged-task_000-1", "COMMIT.json"), b"{}")
    storage.replace_bytes(trial.file("notes", "COMMIT.json"), b"{}")
    assert committed_folders(storage, trial) == ["initial", "task_002", "task_999", "task_1000", "joint"]


def test_every_flipped_bit_of_the_commit_file_is_noticed(memory: Storage, trial: TrialLayout, write: Callable) -> None:
    write(memory, trial, "task_000", "001-a")
    data = memory.read_bytes(trial.commit("task_000"))
    path = trial.folder("task_000")
    parse_commit(data, path, path)
    for at in range(len(data)):
        for bit in range(8):
            flipped = data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
            with pytest.raises(DamagedError):
                parse_commit(flipped, path, path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1}', b"[" * 100_000])
def test_malformed_commit_file_is_damage(storage: Storage, trial: TrialLayout, data: bytes) -> None:
    storage.replace_bytes(trial.commit("task_000"), data)
    with pytest.raises(DamagedError, match=r"COMMIT\.json is damaged"):
        read_commit(storage, trial, "task_000")


def test_commit_file_of_another_folder_is_damage(local: Storage, trial: TrialLayout, write: Callable) -> None:
    write(local, trial, "task_000", "001-a")
    local.move_folder(trial.folder("task_000"), trial.folder("task_001"), "COMMIT.json")
    with pytest.raises(DamagedError, match="belongs to the folder 'task_000'"):
        read_commit(local, trial, "task_001")


@pytest.mark.parametrize("key", ["../../secret", "/etc/passwd", "a//b", ""])
def test_keys_cannot_leave_the_folder(memory: Storage, trial: TrialLayout, write: Callable, key: str) -> None:
    from clray.store.sealed import checksum_of

    write(memory, trial, "task_000", "001-a")
    document = json.loads(memory.read_bytes(trial.commit("task_000")))
    document["files"]["state.msgpack"]["key"] = key
    del document["checksum"]
    document["checksum"] = checksum_of(document)
    with pytest.raises(DamagedError, match="cannot be a path"):
        parse_commit(json.dumps(document).encode(), trial.folder("task_000"), "here")


def test_later_format_asks_for_an_update(memory: Storage, trial: TrialLayout, write: Callable) -> None:
    from clray.store.sealed import checksum_of

    write(memory, trial, "task_000", "001-a")
    document = json.loads(memory.read_bytes(trial.commit("task_000"))) | {"format": 2}
    del document["checksum"]
    document["checksum"] = checksum_of(document)
    with pytest.raises(OutputError, match="update clray") as caught:
        parse_commit(json.dumps(document).encode(), trial.folder("task_000"), "here")
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bit_in_a_file_is_found_by_verify(storage: Storage, trial: TrialLayout, write: Callable, name: str) -> None:
    commit = write(storage, trial, "task_000", "001-a").commit
    flip_bit(storage, commit.file(name), -5)
    assert verify(storage, trial, commit, checksums=False) == []
    (problem,) = verify(storage, trial, commit)
    assert name in problem
    assert "another sha256" in problem


@pytest.mark.parametrize("name", FILES)
def test_truncated_and_missing_files_are_found_by_size(storage: Storage, trial: TrialLayout, write: Callable, name: str) -> None:
    commit = write(storage, trial, "task_000", "001-a").commit
    storage.replace_bytes(commit.file(name), storage.read_bytes(commit.file(name))[:-1])
    (problem,) = verify(storage, trial, commit, checksums=False)
    assert f"has {commit.files[name].n_bytes - 1} bytes instead of {commit.files[name].n_bytes}" in problem
    read = {"metrics.parquet": read_table, "weights.head.kernel.npy": open_array, "state.msgpack": read_file}[name]
    with pytest.raises(DamagedError, match="bytes instead of"):
        read(storage, commit, name)
    storage.remove_file(commit.file(name))
    problems = verify(storage, trial, commit)
    assert problems == ([] if name == "state.msgpack" else [f"{storage.shown(commit.file(name))} is missing"])
    with pytest.raises(DamagedError, match="is missing"):
        read(storage, commit, name)


@pytest.mark.parametrize("name", ["metrics.parquet", "state.msgpack"])
def test_files_that_are_read_whole_are_always_checked(storage: Storage, trial: TrialLayout, write: Callable, name: str) -> None:
    commit = write(storage, trial, "task_000", "001-a").commit
    flip_bit(storage, commit.file(name), 5)
    with pytest.raises(DamagedError, match="sha256"):
        (read_table if name in layout.SCHEMAS else read_file)(storage, commit, name)


def test_damaged_header_of_an_array_is_noticed(storage: Storage, trial: TrialLayout, write: Callable) -> None:
    commit = write(storage, trial, "task_000", "001-a").commit
    data = storage.read_bytes(commit.file("weights.head.kernel.npy"))
    for old, new in [
        (b"(3, 2, 4, 5)", b"(3, 2, 5, 4)"),
        (b"<f4", b"<i4"),
        (b"'shape'", b"'shap%'"),
        (b"\x93NUMPY", b"\x93NUMPX"),
        (b"<f4", b"|O "),
        (b"}", b"{"),
        (b"\x93NUMPY", b"PK\x03\x04\x00\x00"),
    ]:
        storage.replace_bytes(commit.file("weights.head.kernel.npy"), data.replace(old, new))
        with pytest.raises(DamagedError):
            open_array(storage, commit, "weights.head.kernel.npy")


def test_local_arrays_are_mapped(local: Storage, trial: TrialLayout, write: Callable) -> None:
    commit = write(local, trial, "task_000", "001-a").commit
    assert isinstance(open_array(local, commit, "weights.head.kernel.npy"), np.memmap)


def test_folder_copied_from_an_object_store_to_a_disk_reads_the_same(
    s3: Storage, local: Storage, trial: TrialLayout, write: Callable, value_of: Callable
) -> None:
    write(s3, trial, "task_000", "001-a", 3.0)
    for path in s3.list_files(""):
        local.replace_bytes(path, s3.read_bytes(path))
    assert value_of(local, trial, "task_000") == 3.0


def test_unreachable_store_is_an_error_and_not_uncommitted(s3: Storage, trial: TrialLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise OSError("InternalError")

    for method in ("cat_file", "info", "find", "ls"):
        monkeypatch.setattr(s3._fs, method, broken, raising=False)
    for call in (lambda: read_commit(s3, trial, "task_000"), lambda: committed_folders(s3, trial), lambda: s3.exists("a")):
        with pytest.raises(OutputError, match="InternalError"):
            call()
