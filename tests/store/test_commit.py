"""Committing a folder: what is written, what is refused, what happens when the disk or the store fails."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clray.errors import AlreadyCommittedError, OutputError
from clray.store import hashed_file, layout, staging
from clray.store.filesystem import Storage
from clray.store.layout import TrialLayout
from clray.store.reader import committed_folders, open_array, read_commit, read_file, read_table, verify
from clray.store.upkeep import discard_uncommitted
from clray.store.writer import FolderCommit, npy_bytes, write_json_create, write_once


def commit_to(storage: Storage, trial: TrialLayout, attempt: str = "001-a") -> FolderCommit:
    return FolderCommit(storage, trial, "task_003", attempt, "confighash")


def test_commit_file_says_what_was_written(storage: Storage, trial: TrialLayout, write: Callable) -> None:
    write(storage, trial, "task_003", "001-a")
    document = json.loads(storage.read_bytes(trial.commit("task_003")))
    assert {key: document[key] for key in ("format", "attempt", "config", "folder")} == {
        "format": 1,
        "attempt": "001-a",
        "config": "confighash",
        "folder": "task_003",
    }
    assert len(document["nonce"]) == 32
    assert document["time"].endswith("+00:00")
    assert document["files"]["metrics.parquet"]["rows"] == 6
    kernel = document["files"]["weights.head.kernel.npy"]
    assert kernel["shape"] == [3, 2, 4, 5]
    assert kernel["dtype"] == "float32"
    assert document["files"]["state.msgpack"]["transient"] is True
    for name, entry in document["files"].items():
        data = storage.read_bytes(trial.file("task_003", entry.get("key", name)))
        assert len(data) == entry["bytes"]
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        assert entry.get("key") == (None if storage.is_local else f"001-a/{name}")


def test_committed_folder_reads_back(storage: Storage, trial: TrialLayout, write: Callable, value_of: Callable) -> None:
    assert write(storage, trial, "initial", "001-a", 0.5).commit == read_commit(storage, trial, "initial")
    write(storage, trial, "task_000", "001-a", 1.5)
    assert committed_folders(storage, trial) == ["initial", "task_000"]
    assert value_of(storage, trial, "initial") == 0.5
    assert value_of(storage, trial, "task_000") == 1.5


def test_nothing_is_visible_before_the_block_ends(storage: Storage, trial: TrialLayout) -> None:
    with commit_to(storage, trial) as commit:
        commit.write_bytes("state.msgpack", b"state")
        assert read_commit(storage, trial, "task_003") is None
        assert committed_folders(storage, trial) == []
    assert committed_folders(storage, trial) == ["task_003"]


def test_exception_leaves_nothing(storage: Storage, trial: TrialLayout) -> None:
    def interrupted() -> None:
        with commit_to(storage, trial) as commit:
            commit.write_bytes("state.msgpack", b"state")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert storage.list_files("") == {}
    assert storage.list_names(trial.base) == []


def test_failed_file_prevents_the_commit_even_if_the_caller_carries_on(storage: Storage, trial: TrialLayout) -> None:
    def careless() -> None:
        with commit_to(storage, trial) as commit:
            with pytest.raises(ValueError, match="elements"):
                commit.write_array("weights.a.npy", (3,), np.float32, [np.zeros(2, np.float32)])
            commit.write_bytes("state.msgpack", b"state")

    with pytest.raises(RuntimeError, match=r"weights\.a\.npy was not written whole"):
        careless()
    assert storage.list_files("") == {}


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([np.zeros(2, np.float32)], "6 elements, but the blocks have 2"),
        ([np.zeros(6, np.float32), np.zeros(1, np.float32)], "7 or more"),
        ([np.zeros(6, np.float64)], "a block has float64"),
    ],
)
def test_array_blocks_must_fit_the_shape(local: Storage, trial: TrialLayout, blocks: list, message: str) -> None:
    with pytest.raises(ValueError, match=message), commit_to(local, trial) as commit:
        commit.write_array("weights.a.npy", (2, 3), np.float32, blocks)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "uint32", "int64", "float16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 0), (4,), (3, 2, 2)])
def test_array_equals_numpy_save(local: Storage, memory: Storage, trial: TrialLayout, dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
    expected = io.BytesIO()
    np.save(expected, array)
    blocks = [array] if array.ndim == 0 else [array[:1], array[1:]]
    for storage in (local, memory):
        with commit_to(storage, trial) as commit:
            commit.write_array("representations.npy", shape, dtype, blocks)
        assert commit.commit is not None
        assert storage.read_bytes(commit.commit.file("representations.npy")) == expected.getvalue()
        read = open_array(storage, commit.commit, "representations.npy")
        np.testing.assert_array_equal(read, array, strict=True)
        assert not read.flags.writeable
    assert npy_bytes(array) == expected.getvalue()


def test_blocks_may_be_slices_of_a_transposed_array(local: Storage, trial: TrialLayout) -> None:
    array = np.arange(24, dtype=np.int64).reshape(2, 3, 4).transpose(2, 0, 1)
    with commit_to(local, trial) as commit:
        commit.write_array("representations.npy", array.shape, np.int64, iter(array))
    assert commit.commit is not None
    np.testing.assert_array_equal(open_array(local, commit.commit, "representations.npy"), array)


@pytest.mark.parametrize("dtype", [object, "U5", "datetime64[s]", np.dtype([("a", int)])])
def test_dtypes_that_need_pickling_are_refused(local: Storage, trial: TrialLayout, dtype: Any) -> None:
    with pytest.raises(ValueError, match="cannot be kept"), commit_to(local, trial) as commit:
        commit.write_array("representations.npy", (1,), dtype, [np.zeros(1, dtype)])


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_array_is_streamed(request: pytest.FixtureRequest, trial: TrialLayout, kind: str) -> None:
    storage: Storage = request.getfixturevalue(kind)
    shape = (64, 2**18)  # 64 MiB in blocks of 1 MiB
    peaks = []

    def blocks() -> Iterator[np.ndarray]:
        tracemalloc.start()
        for index in range(shape[0]):
            yield np.full((1, shape[1]), index, np.float32)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    with commit_to(storage, trial) as commit:
        commit.write_array("representations.npy", shape, np.float32, blocks())
    assert peaks[0] < 5 * 2**20
    assert commit.commit is not None
    read = open_array(storage, commit.commit, "representations.npy")
    np.testing.assert_array_equal(read[:, 0], np.arange(shape[0]))


def test_table_columns_must_be_those_of_the_layout(local: Storage, trial: TrialLayout) -> None:
    with pytest.raises(ValueError, match="has the columns"), commit_to(local, trial) as commit:
        commit.write_table(layout.END, pa.table({"repeat": [1]}))


def test_table_is_compressed_with_zstd(local: Storage, trial: TrialLayout, write: Callable) -> None:
    import pyarrow.parquet as pq

    commit = write(local, trial, "task_003", "001-a").commit
    column = pq.ParquetFile(local.local_path(commit.file(layout.METRICS))).metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
    assert read_table(local, commit, layout.METRICS).schema.equals(layout.METRICS_SCHEMA)


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/b", "", "COMMIT.json", "..", "a b", "a\n"])
def test_file_names_cannot_leave_the_folder(storage: Storage, trial: TrialLayout, name: str) -> None:
    with pytest.raises((OutputError, ValueError)), commit_to(storage, trial) as commit:
        commit.write_bytes(name, b"")
    assert storage.list_files("") == {}


def test_a_file_is_written_once(local: Storage, trial: TrialLayout) -> None:
    with commit_to(local, trial) as commit:
        commit.write_bytes("state.msgpack", b"1")
        with pytest.raises(ValueError, match="was already"):
            commit.write_bytes("state.msgpack", b"2")
    assert commit.commit is not None
    assert read_file(local, commit.commit, "state.msgpack") == b"1"


def test_second_committer_is_told_and_dropped(storage: Storage, trial: TrialLayout, write: Callable, value_of: Callable) -> None:
    write(storage, trial, "task_003", "001-a", 1.0)
    with pytest.raises(AlreadyCommittedError):
        write(storage, trial, "task_003", "002-b", 2.0)
    assert value_of(storage, trial, "task_003") == 1.0
    assert not any("002-b" in name for name in storage.list_files(""))


def test_same_attempt_cannot_write_a_folder_twice_at_once(storage: Storage, trial: TrialLayout) -> None:
    with commit_to(storage, trial) as commit:
        commit.write_bytes("state.msgpack", b"first")
        with pytest.raises(OutputError, match="same name"), commit_to(storage, trial):
            pass
    assert verify(storage, trial, commit.commit) == []


def test_of_two_committers_one_wins(
    storage: Storage, trial: TrialLayout, write: Callable, value_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen that the folder is free before either makes it visible."""
    kind, step = (staging.LocalStaging, "_rename") if storage.is_local else (staging.ObjectStaging, "_create_commit")
    original = getattr(kind, step)
    barrier = threading.Barrier(2)

    def together(self: Any, *args: Any) -> None:
        barrier.wait(30)
        original(self, *args)

    monkeypatch.setattr(kind, step, together)

    def compete(folder: str, attempt: str, value: float) -> float:
        try:
            write(storage, trial, folder, attempt, value)
        except AlreadyCommittedError:
            return 0.0
        return value

    with ThreadPoolExecutor(2) as pool:
        for task in range(4):
            folder = layout.task_folder(task)
            results = list(pool.map(compete, [folder] * 2, ["001-a", "002-b"], [1.0, 2.0]))
            assert sorted(results) in ([0.0, 1.0], [0.0, 2.0])
            assert value_of(storage, trial, folder) == max(results)
            loser = "002-b" if max(results) == 1.0 else "001-a"
            assert not any(name.startswith(folder) and loser in name for name in storage.list_files(trial.base))


def test_folder_that_is_occupied_but_not_committed_is_an_error(local: Storage, trial: TrialLayout, write: Callable) -> None:
    local.replace_bytes(trial.file("task_003", "notes.txt"), b"mine")
    with pytest.raises(OutputError, match="exists but is not committed"):
        write(local, trial, "task_003", "001-a")
    assert local.list_names(trial.base) == ["task_003"]


def test_writer_whose_folder_was_cleaned_away_publishes_nothing(local: Storage, trial: TrialLayout) -> None:
    def cleaned_away(more: bool) -> None:
        with commit_to(local, trial) as commit:
            commit.write_bytes("state.msgpack", b"state")
            discard_uncommitted(local, trial)
            if more:
                commit.write_bytes("end.bin", b"more")

    for more in (True, False):
        with pytest.raises(OutputError, match="was removed while it was written"):
            cleaned_away(more)
        assert local.list_files("") == {}


def test_cleaning_does_no_harm_to_a_commit_under_way(s3: Storage, trial: TrialLayout, value_of: Callable, write: Callable) -> None:
    original = staging.ObjectStaging._create_commit

    def cleaned(self: Any, commit: bytes) -> None:
        discard_uncommitted(s3, trial)
        original(self, commit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging.ObjectStaging, "_create_commit", cleaned)
        write(s3, trial, "task_003", "001-a", 1.0)
    assert value_of(s3, trial, "task_003") == 1.0


@pytest.mark.parametrize("file", ["table", "array", "bytes", "commit"])
def test_full_disk_is_an_output_error_and_leaves_nothing(
    local: Storage, trial: TrialLayout, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    def full(path: Path, mode: str = "") -> Any:
        Path(path).touch()
        return open("/dev/full", "wb") if mode else os.open("/dev/full", os.O_WRONLY)

    def write_one() -> None:
        with commit_to(local, trial) as commit:
            if file == "table":
                commit.write_table("other.parquet", pa.table({"a": np.random.default_rng(0).random(500_000)}))
            elif file == "array":
                commit.write_array("weights.a.npy", (2**20,), np.float64, [np.zeros(2**20)])
            elif file == "bytes":
                commit.write_bytes("state.msgpack", b"small enough for a buffer")

    if file == "commit":
        monkeypatch.setattr(staging, "open", full, raising=False)
    else:
        monkeypatch.setattr(hashed_file, "_create", full)
    with pytest.raises(OutputError, match=r"t_0123456789.*no space left \(\d+ bytes free") as caught:
        write_one()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert local.list_files("") == {}


def test_full_temporary_folder_is_named(memory: Storage, trial: TrialLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed_file, "_create", lambda path: os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(OutputError, match=r"clray-.*state\.msgpack: no space left"), commit_to(memory, trial) as commit:
        commit.write_bytes("state.msgpack", b"state")
    assert memory.list_files("") == {}


def test_lost_reply_to_the_commit_is_still_ours(s3: Storage, trial: TrialLayout, write: Callable, value_of: Callable, faults: Any) -> None:
    faults.lost_replies += ["task_003/COMMIT.json"]
    assert write(s3, trial, "task_003", "001-a").commit == read_commit(s3, trial, "task_003")
    assert faults.lost_replies == []
    assert value_of(s3, trial, "task_003") == 1.0


def test_lost_replies_to_all_tries_are_still_ours(
    s3: Storage, trial: TrialLayout, write: Callable, value_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = type(s3).create_bytes

    def lost(self: Storage, path: str, data: bytes) -> None:
        original(self, path, data)
        raise OutputError("no reply")

    monkeypatch.setattr(type(s3), "create_bytes", lost)
    write(s3, trial, "task_003", "001-a")
    assert value_of(s3, trial, "task_003") == 1.0


def test_unknown_fate_of_the_commit_keeps_its_files(
    s3: Storage, trial: TrialLayout, write: Callable, value_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request may arrive after the writer gave up; then the folder must be whole."""
    late: list[tuple[str, bytes]] = []
    original = type(s3).create_bytes

    def delayed(self: Storage, path: str, data: bytes) -> None:
        late.append((path, data))
        raise OutputError("no reply")

    with monkeypatch.context() as patch:
        patch.setattr(type(s3), "create_bytes", delayed)
        with pytest.raises(OutputError, match="no reply"):
            write(s3, trial, "task_003", "001-a")
    discard_uncommitted(s3, trial)
    assert read_commit(s3, trial, "task_003") is None
    original(s3, *late[0])
    assert value_of(s3, trial, "task_003") == 1.0


@pytest.mark.parametrize("key", ["metrics.parquet", "COMMIT.json"])
def test_broken_object_store_is_an_output_error(s3: Storage, trial: TrialLayout, write: Callable, faults: Any, key: str) -> None:
    faults.refused += [f"/{key}"]
    with pytest.raises(OutputError, match=f"cannot write s3://.*{key}.*broken on purpose.*resumes"):
        write(s3, trial, "task_003", "001-a")
    assert committed_folders(s3, trial) == []
    faults.refused.clear()
    write(s3, trial, "task_003", "002-b")


def test_passing_error_of_an_upload_is_retried(s3: Storage, trial: TrialLayout, write: Callable, value_of: Callable, faults: Any) -> None:
    faults.lost_replies += ["metrics.parquet", "state.msgpack"]
    write(s3, trial, "task_003", "001-a")
    assert faults.lost_replies == []
    assert value_of(s3, trial, "task_003") == 1.0


def test_upload_that_did_not_arrive_whole_is_not_committed(
    s3: Storage, trial: TrialLayout, write: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(s3), "put_file", lambda self, local, path: self.replace_bytes(path, b"short"))
    with pytest.raises(OutputError, match=r"metrics\.parquet.* did not arrive whole"):
        write(s3, trial, "task_003", "001-a")
    assert s3.list_files("") == {}


def test_write_once_keeps_an_equal_file_and_refuses_another(storage: Storage, trial: TrialLayout) -> None:
    write_once(storage, trial.config, b"name: digits\n")
    write_once(storage, trial.config, b"name: digits\n")
    with pytest.raises(OutputError, match=r"config\.yaml is there but differs"):
        write_once(storage, trial.config, b"name: other\n")
    assert storage.read_bytes(trial.config) == b"name: digits\n"


def test_json_is_created_once(storage: Storage, trial: TrialLayout) -> None:
    write_json_create(storage, trial.result, {"acc": 0.5})
    with pytest.raises(FileExistsError):
        write_json_create(storage, trial.result, {"acc": 0.5})
    assert json.loads(storage.read_bytes(trial.result))["acc"] == 0.5


def test_json_with_a_lost_reply_is_still_ours(s3: Storage, trial: TrialLayout, faults: Any) -> None:
    faults.lost_replies += ["RESULT.json"]
    write_json_create(s3, trial.result, {"acc": 0.5})
    assert faults.lost_replies == []


@pytest.mark.parametrize("n_bytes", [0, 1, 4095, 65_536, 70_001, 4 * 2**20, 9 * 2**20 + 17])
def test_large_files_arrive_whole_and_with_their_hash(local: Storage, trial: TrialLayout, n_bytes: int) -> None:
    data = np.random.default_rng(0).bytes(n_bytes)
    with commit_to(local, trial) as commit:
        commit.write_bytes("state.msgpack", data)
    found = read_commit(local, trial, "task_003")
    assert found is not None
    assert read_file(local, found, "state.msgpack") == data
    assert found.files["state.msgpack"].sha256 == hashlib.sha256(data).hexdigest()


def test_a_file_system_without_direct_writes_gets_ordinary_ones(
    local: Storage, trial: TrialLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashed_file, "_set_direct", lambda fd, on: False)
    data = np.random.default_rng(0).bytes(5 * 2**20 + 3)
    with commit_to(local, trial) as commit:
        commit.write_bytes("state.msgpack", data)
    found = read_commit(local, trial, "task_003")
    assert found is not None
    assert read_file(local, found, "state.msgpack") == data
