"""One interface over a disk, memory and S3, with errors that say how to go on."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clray.errors import OutputError
from clray.store.disk import LocalStorage
from clray.store.filesystem import Storage, hide_credentials, join_path


def test_files_come_and_go(storage: Storage) -> None:
    assert not storage.exists("a/b.txt")
    storage.replace_bytes("a/b.txt", b"one")
    storage.replace_bytes("a/b.txt", b"two")
    storage.replace_bytes("a/c/d.txt", b"")
    assert storage.exists("a/b.txt")
    assert storage.exists("a")
    assert storage.read_bytes("a/b.txt") == b"two"
    assert storage.size("a/b.txt") == 3
    assert storage.list_names("a") == ["b.txt", "c"]
    assert storage.list_names("") == ["a"]
    assert storage.list_files("a") == {"b.txt": 3, "c/d.txt": 0}
    storage.remove_file("a/b.txt")
    storage.remove_file("a/b.txt")
    assert storage.list_files("") == {"a/c/d.txt": 0}
    storage.remove_tree("a")
    storage.remove_tree("a")
    assert storage.list_files("") == {}
    assert storage.list_names("") == []


class SlowlyListed(dict[str, Any]):
    """Other threads have their turn between any two items."""

    def items(self) -> Any:
        for item in super().items():
            time.sleep(1e-4)
            yield item


def test_memory_is_listed_while_others_write_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "store", SlowlyListed())
    storage = Storage.of("memory://busy")
    for number in range(20):
        storage.replace_bytes(f"a/{number}", b"1")

    enough = threading.Event()

    def change() -> None:
        while not enough.is_set():
            storage.replace_bytes("b/1", b"1")
            storage.remove_file("b/1")

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        try:
            assert [len(storage.list_files("a")) for _ in range(20)] == [20] * 20
        finally:
            enough.set()
        changing.result()


def test_missing_files_are_missing(storage: Storage) -> None:
    for read in (storage.read_bytes, storage.size, lambda path: list(storage.read_blocks(path))):
        with pytest.raises(FileNotFoundError):
            read("a/b.txt")
    assert storage.list_names("a") == []
    assert storage.list_files("a") == {}


def test_blocks_join_to_the_file(storage: Storage) -> None:
    data = bytes(range(256)) * 10
    storage.replace_bytes("a", data)
    blocks = list(storage.read_blocks("a", 1000))
    assert [len(block) for block in blocks] == [1000, 1000, 560]
    assert b"".join(blocks) == data


def test_names_that_begin_alike_are_told_apart(storage: Storage) -> None:
    storage.replace_bytes("task_1/a", b"1")
    storage.replace_bytes("task_10/b", b"2")
    assert storage.list_files("task_1") == {"a": 1}
    assert storage.list_names("task_1") == ["a"]
    storage.remove_tree("task_1")
    assert storage.list_files("") == {"task_10/b": 1}


def test_create_keeps_what_is_there(storage: Storage) -> None:
    storage.create_bytes("a/b", b"first")
    with pytest.raises(FileExistsError):
        storage.create_bytes("a/b", b"second")
    assert storage.read_bytes("a/b") == b"first"
    assert storage.list_names("a") == ["b"]


def test_one_of_several_creators_wins(storage: Storage) -> None:
    n_threads = 4
    barrier = threading.Barrier(n_threads)

    def create(name: str, content: bytes) -> bytes | None:
        barrier.wait(30)
        try:
            storage.create_bytes(name, content)
        except FileExistsError:
            return None
        return content

    with ThreadPoolExecutor(n_threads) as pool:
        for round_ in range(5):
            contents = [f"{index}".encode() * 1000 for index in range(n_threads)]
            winners = [content for content in pool.map(create, [f"f{round_}"] * n_threads, contents) if content]
            assert len(winners) == 1
            assert storage.read_bytes(f"f{round_}") == winners[0]


def test_one_creator_wins_without_hard_links(local: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    test_create_keeps_what_is_there(local)
    test_one_of_several_creators_wins(local)


def test_created_file_appears_whole(local: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the last step there is no file under the final name, and after it the whole file."""
    seen: list[bool] = []
    original = os.link

    def watched(source: str, target: str) -> None:
        seen.append(os.path.exists(target))
        original(source, target)
        assert Path(target).read_bytes() == b"content"

    monkeypatch.setattr(os, "link", watched)
    local.create_bytes("a", b"content")
    assert seen == [False]


def test_link_whose_reply_was_lost_is_ours(local: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.link

    def repeated(source: str, target: str) -> None:
        original(source, target)
        original(source, target)

    monkeypatch.setattr(os, "link", repeated)
    local.create_bytes("a", b"content")
    assert local.list_files("") == {"a": 7}


def test_replace_never_shows_half_a_file(local: Storage) -> None:
    contents = {b"a" * 100_000, b"b" * 50_000}
    local.replace_bytes("f", b"a" * 100_000)
    stop = threading.Event()

    def read() -> bool:
        seen = set()
        while not stop.is_set():
            seen.add(local.read_bytes("f"))
        return seen <= contents

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for _ in range(20):
            for content in contents:
                local.replace_bytes("f", content)
        stop.set()
        assert reading.result()


def test_failed_write_keeps_the_old_file(local: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    local.replace_bytes("a", b"old")

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    for write in (local.replace_bytes, local.create_bytes):
        with pytest.raises(OutputError, match=r"cannot write .*/[ab]: .*Input/output error"):
            write("a" if write == local.replace_bytes else "b", b"new")
    assert local.list_files("") == {"a": 3}
    assert local.read_bytes("a") == b"old"


def test_log_grows(storage: Storage) -> None:
    storage.append_bytes("attempts/log.txt", b"one\n")
    storage.append_bytes("attempts/log.txt", b"two\n")
    assert storage.read_bytes("attempts/log.txt") == b"one\ntwo\n"


def test_files_are_put(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content" * 1000)
    storage.put_file(tmp_path / "source", "a/b")
    assert storage.read_bytes("a/b") == b"content" * 1000
    assert storage.list_files("") == {"a/b": 7000}


def test_folder_moves_onto_a_free_name_only(storage: Storage) -> None:
    storage.replace_bytes("a/COMMIT.json", b"1")
    storage.replace_bytes("a/x/y", b"2")
    storage.replace_bytes("b/z", b"3")
    with pytest.raises(FileExistsError):
        storage.move_folder("a", "b", "COMMIT.json")
    with pytest.raises(FileNotFoundError):
        storage.move_folder("missing", "c", "COMMIT.json")
    storage.move_folder("a", "c", "COMMIT.json")
    assert storage.list_files("") == {"b/z": 1, "c/COMMIT.json": 1, "c/x/y": 1}


@pytest.mark.parametrize(
    "path", ["", ".", "..", "a/..", "../a", "a/../../b", "/a", "a//b", "a/", "a b", "a\0", "a\n", "-a", "ä", "a*", "~", "a\\b"]
)
def test_paths_cannot_leave_the_root(storage: Storage, path: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: storage.create_bytes(path, b""),
        lambda: storage.append_bytes(path, b""),
        lambda: storage.remove_tree(path),
        lambda: storage.child(path),
        lambda: join_path("base", path),
    ]
    storage.replace_bytes("kept", b"content")
    for call in calls:
        with pytest.raises(OutputError, match=r"not a valid name"):
            call()
    assert storage.list_files("") == {"kept": 7}


@given(st.lists(st.text(max_size=8), min_size=1, max_size=4))
def test_joined_paths_stay_below_the_root(parts: list[str]) -> None:
    try:
        path = join_path(*parts)
    except OutputError:
        return
    assert os.path.normpath(f"/root/{path}") == f"/root/{path}"


def test_storage_of_paths_and_urls(tmp_path: Path) -> None:
    assert Storage.of(tmp_path).root == str(tmp_path)
    assert Storage.of(f"file://{tmp_path}").root == str(tmp_path)
    assert Storage.of("~/out").root == os.path.expanduser("~/out")
    assert Storage.of("out").root == str(Path.cwd() / "out")
    assert Storage.of("memory://out/").root == "memory://out"
    assert Storage.of("memory://out").child("digits", "trials").root == "memory://out/digits/trials"
    assert Storage.of(tmp_path).child("digits").root == str(tmp_path / "digits")


def test_storage_can_be_sent_to_other_processes(storage: Storage) -> None:
    storage.replace_bytes("a", b"content")
    assert pickle.loads(pickle.dumps(storage)).read_bytes("a") == b"content"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is not a path"),
        ("s4://bucket/x", "valid: file, gs, memory, s3"),
        ("s3:/bucket/x", "neither a path nor a URL"),
        ("s3://", "give a bucket and a folder"),
        ("s3://bucket/a/../b", "give a bucket and a folder"),
        ("s3://bucket/a?versionId=1", "give a bucket and a folder"),
        ("s3://bucket/a*", "give a bucket and a folder"),
        ("simplecache::s3://bucket/a", "neither a path nor a URL"),
    ],
)
def test_bad_outputs_are_explained(url: str, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        Storage.of(url)


@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("gs", "gcs")])
def test_missing_client_library_is_named(monkeypatch: pytest.MonkeyPatch, protocol: str, extra: str) -> None:
    def missing(name: str) -> None:
        raise ImportError("Install it")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(OutputError, match=rf"pip install 'clray\[{extra}\]'"):
        Storage.of(f"{protocol}://bucket/folder")


def test_credentials_are_not_shown() -> None:
    assert hide_credentials("sftp://me:secret@host/out") == "sftp://host/out"
    assert hide_credentials("s3://bucket/out@home") == "s3://bucket/out@home"
    with pytest.raises(OutputError) as caught:
        Storage.of("s4://me:secret@host/out*")
    assert "secret" not in str(caught.value)


def test_writable_output_stays_empty(storage: Storage) -> None:
    storage.check_writable()
    assert storage.list_files("") == {}


def test_output_below_a_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write to .*file/out: .*file is a file, not a folder"):
        Storage.of(tmp_path / "file" / "out").check_writable()


def test_read_only_output_is_not_writable(local: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "makedirs", read_only)
    with pytest.raises(OutputError, match=r"not allowed .*Check permissions .*--output"):
        local.check_writable()


def test_missing_bucket_is_named(s3_server: object) -> None:
    with pytest.raises(OutputError, match=r"cannot write s3://no-such-bucket/out/.*Create the bucket"):
        Storage.of("s3://no-such-bucket/out").check_writable()


def test_store_that_ignores_create_only_is_refused(memory: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    original = memory._fs.pipe_file  # type: ignore[attr-defined]
    monkeypatch.setattr(memory._fs, "pipe_file", lambda path, data, mode="overwrite": original(path, data))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match="ignores If-None-Match"):
        memory.check_writable()
    assert memory.list_files("") == {}


def test_new_objects_of_others_are_listed_at_once(s3: Storage, boto3_client: Any) -> None:
    assert s3.list_names("a") == []
    assert not s3.exists("a/b")
    bucket, _, prefix = s3.root.removeprefix("s3://").partition("/")
    boto3_client.put_object(Bucket=bucket, Key=f"{prefix}/a/b", Body=b"1")
    assert s3.list_names("a") == ["b"]
    assert s3.list_files("") == {"a/b": 1}
    assert s3.exists("a/b")
    boto3_client.put_object(Bucket=bucket, Key=f"{prefix}/a/b", Body=b"22")
    boto3_client.put_object(Bucket=bucket, Key=f"{prefix}/a/c", Body=b"1")
    assert s3.list_files("a") == {"b": 2, "c": 1}
    assert s3.size("a/b") == 2
    boto3_client.delete_object(Bucket=bucket, Key=f"{prefix}/a/b")
    assert not s3.exists("a/b")


def test_conflict_of_two_creations_is_tried_again(s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    answers = [ClientError({"Error": {"Code": "ConditionalRequestConflict"}}, "PutObject")]
    original = s3._fs.pipe_file  # type: ignore[attr-defined]

    def conflict(*args: Any, **kwargs: Any) -> None:
        if answers:
            raise OSError("conflict") from answers.pop()
        original(*args, **kwargs)

    monkeypatch.setattr(s3._fs, "pipe_file", conflict, raising=False)  # type: ignore[attr-defined]
    s3.create_bytes("a", b"1")
    assert s3.read_bytes("a") == b"1"


def test_precondition_without_a_condition_is_understood(s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some servers leave out the field that s3fs looks at."""
    from botocore.exceptions import ClientError

    def failed(*args: Any, **kwargs: Any) -> None:
        raise OSError(22, "no") from ClientError({"Error": {"Code": "PreconditionFailed"}}, "PutObject")

    monkeypatch.setattr(s3._fs, "pipe_file", failed, raising=False)  # type: ignore[attr-defined]
    with pytest.raises(FileExistsError):
        s3.create_bytes("a", b"1")


def test_local_paths_are_for_local_storage(local: Storage, memory: Storage) -> None:
    assert isinstance(local, LocalStorage)
    assert local.local_path("a/b") == Path(local.root, "a", "b")
    with pytest.raises(ValueError, match="not a local file"):
        memory.local_path("a")


def test_a_late_write_makes_no_folder_where_it_is_told_so(local: Storage) -> None:
    for write in (local.replace_bytes, local.append_bytes):
        with pytest.raises(OutputError, match="cannot write"):
            write("trials/log.txt", b"late", new_folder=False)
    assert local.list_names("") == []
    local.replace_bytes("trials/other", b"")
    local.append_bytes("trials/log.txt", b"one", new_folder=False)
    local.replace_bytes("trials/other", b"two", new_folder=False)
    assert (local.read_bytes("trials/log.txt"), local.read_bytes("trials/other")) == (b"one", b"two")
