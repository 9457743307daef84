from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import clray.data
from clray.data import cache
from clray.data.arrays import ArrayFiles
from clray.data.digits import Digits
from clray.data.source import Arrays, DatasetInfo, Source, Split
from clray.errors import DataError

REPOSITORY = Path(clray.data.__file__).parents[2]


class Counted(Source):
    """A data set of a user's own with nothing but ``load``, which counts how often it is read."""

    level: int = 7
    loads: ClassVar[list[int]] = []

    def load(self) -> Arrays:
        self.loads.append(self.level)
        images = np.full((6, 4, 4, 3), self.level, np.uint8)
        return Arrays(Split(images, np.arange(6) % 2), Split(images[:2], np.arange(2)))


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """``Counted`` with a cache of its own."""
    monkeypatch.setenv("CLRAY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(Counted, "loads", [])
    return Counted(name="tests:Counted")


def test_a_source_with_only_load_is_complete(counted):
    assert cache.describe(counted) is None
    assert counted.fingerprint() is None
    cache.check(counted)
    dataset = cache.open_dataset(counted)
    assert dataset.info == DatasetInfo(2, (3, 3), (1, 1), (4, 4, 3), "uint8") == cache.describe(counted)
    np.testing.assert_allclose(dataset.mean, 7 / 255, rtol=1e-6)


def test_images_are_read_only_maps_of_files(counted):
    dataset = cache.open_dataset(counted)
    for images in (dataset.train_images, dataset.test_images):
        assert isinstance(images, np.memmap)
        assert not images.flags.writeable


def test_a_prepared_set_is_not_read_again(counted):
    for _ in range(3):
        cache.open_dataset(counted)
    assert counted.loads == [7]


def test_opening_a_prepared_set_imports_nothing_heavy():
    cache.prepare(Digits(name="digits", resize=10))
    code = """
import sys
from clray.data import cache, digits
dataset = cache.open_dataset(digits.Digits(name="digits", resize=10))
print(dataset.train_images.shape, [module for module in ("torch", "sklearn", "jax", "ray", "rich") if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "(1433, 10, 10, 1) []"


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"resize": 5}, False),
        ({"pad": 1}, False),
        ({"grayscale": True}, False),
        ({"level": 8}, False),
        ({"normalize": "standard"}, True),
        ({"train_per_class": 2}, True),
        ({"test_per_class": 1}, True),
        ({"validation_fraction": 0.5}, True),
        ({"level": 7}, True),
    ],
)
def test_only_what_changes_pixels_prepares_anew(counted, changed, same):
    assert (cache.prepared_folder(Counted(name="other", **changed)) == cache.prepared_folder(counted)) is same


def test_equal_sizes_written_differently_share_files():
    folders = {cache.prepared_folder(Digits(name="digits", resize=size)) for size in (12, (12, 12))}
    assert len(folders) == 1


def test_digits_is_shared_whatever_the_data_folder(monkeypatch, tmp_path):
    before = cache.prepared_folder(Digits(name="digits"))
    monkeypatch.setenv("CLRAY_DATA_DIR", str(tmp_path))
    assert cache.prepared_folder(Digits(name="digits", root="/elsewhere")) == before


def test_editing_the_code_of_a_users_source_prepares_anew(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "edited_source.py"
    module.write_text("from clray.data.source import Source\n\n\nclass Mine(Source):\n    pass\n")
    import edited_source

    source = edited_source.Mine(name="edited_source:Mine")
    before = cache.prepared_folder(source)
    module.write_text(module.read_text() + "# changed\n")
    assert cache.prepared_folder(source) != before


@pytest.mark.parametrize("file", ["train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy", "meta.json"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "empty"])
def test_a_damaged_cache_is_rebuilt(counted, file, harm):
    path = cache.prepare(counted) / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if harm == "truncated" else b"")
    if harm == "missing":
        path.unlink()
    dataset = cache.open_dataset(counted)
    assert counted.loads == [7, 7]
    assert (dataset.train_images == 7).all()
    assert path.read_bytes() == whole
    assert [entry.name for entry in path.parent.parent.iterdir() if entry.is_dir()] == [path.parent.name]


def test_a_map_that_is_open_survives_a_rebuild(counted):
    dataset = cache.open_dataset(counted)
    (cache.prepare(counted) / "meta.json").unlink()
    cache.prepare(counted)
    assert (dataset.train_images == 7).all()


def test_a_failed_build_leaves_nothing_behind(counted, monkeypatch):
    def load(self):
        images = np.ones((4, 4, 4, 1), np.float32)
        return Arrays(Split(images, np.arange(4) % 2), Split(np.full_like(images, np.inf), np.arange(4) % 2))

    monkeypatch.setattr(Counted, "load", load)
    with pytest.raises(DataError, match="test split: image 0 has values that are NaN or infinite"):
        cache.prepare(counted)
    assert [entry.name for entry in cache.prepared_folder(counted).parent.iterdir() if entry.is_dir()] == []


def test_drafts_of_killed_builds_are_removed_once_they_are_old(counted):
    folder = cache.prepared_folder(counted)
    old, new = (folder.parent / f".{folder.name}.{name}" for name in ("old", "new"))
    for draft in (old, new):
        draft.mkdir(parents=True)
    os.utime(old, (0, 0))
    cache.prepare(counted)
    assert not old.exists()
    assert new.exists()


def test_a_cache_that_cannot_be_written_is_the_users_to_solve(counted, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLRAY_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set CLRAY_CACHE_DIR to a folder that can be written"):
        cache.prepare(counted)


def test_the_cache_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CLRAY_CACHE_DIR", str(tmp_path / "mine"))
    assert cache.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("CLRAY_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "clray"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "clray"


def test_meta_says_what_the_files_were_made_from(counted):
    meta = json.loads((cache.prepare(counted) / "meta.json").read_text())
    assert meta["made_from"]["class"].endswith(":Counted")
    assert meta["info"]["shape"] == [4, 4, 3]


def test_check_looks_at_files_only_where_nothing_is_prepared(tmp_path):
    for part in ("train", "test"):
        np.save(tmp_path / f"X_{part}.npy", np.zeros((4, 3), np.uint8))
        np.save(tmp_path / f"y_{part}.npy", np.arange(4) % 2)
    source = ArrayFiles(name="arrays", root=str(tmp_path))
    cache.check(source)
    np.save(tmp_path / "y_test.npy", np.arange(3))
    with pytest.raises(DataError, match=r"y_test\.npy"):
        cache.check(source)


def test_progress_counts_every_image(counted, capfd):
    calls = []
    cache.prepare(counted, lambda stage, done, total: calls.append((stage, done, total)))
    assert calls == [("reading tests:Counted", 0, 0), ("preparing tests:Counted, train", 6, 6), ("preparing tests:Counted, test", 2, 2)]
    shutil.rmtree(cache.prepared_folder(counted))
    cache.prepare(counted)
    assert capfd.readouterr() == ("", "")


SLOW_SOURCE = """
import time
from pathlib import Path

import numpy as np

from clray.data import cache
from clray.data.source import Arrays, Source, Split


class Slow(Source):
    def load(self):
        with (Path(__file__).parent / "loads").open("a") as file:
            file.write("x")
        time.sleep(0.5)
        images = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4, 1)
        return Arrays(Split(images, np.arange(6) % 2), Split(images[:2], np.arange(2)))
"""


def test_processes_that_start_together_build_once(tmp_path):
    (tmp_path / "slow_source.py").write_text(SLOW_SOURCE)
    code = f"""
import os, sys
sys.path[:0] = [{str(REPOSITORY)!r}, {str(tmp_path)!r}]
os.environ["CLRAY_CACHE_DIR"] = {str(tmp_path / "cache")!r}
import slow_source
print("ready", flush=True)
sys.stdin.readline()
print(int(slow_source.cache.open_dataset(slow_source.Slow(name="slow_source:Slow")).train_images.sum()))
"""
    pipe = subprocess.PIPE
    processes = [subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=30)[0] for process in processes]
    assert answers == [f"{sum(range(96))}\n"] * 3
    assert (tmp_path / "loads").read_text() == "x"


def test_waiting_for_another_build_is_logged(counted, monkeypatch, caplog):
    building, go_on = threading.Event(), threading.Event()
    read = Counted.load

    def slow(self):
        building.set()
        assert go_on.wait(10)
        return read(self)

    monkeypatch.setattr(Counted, "load", slow)
    caplog.set_level(logging.INFO, logger="clray")
    first = threading.Thread(target=cache.prepare, args=(counted,))
    first.start()
    assert building.wait(10)
    second = threading.Thread(target=cache.prepare, args=(counted,))
    second.start()
    for _ in range(200):
        if "another process is preparing it, waiting" in caplog.text:
            break
        second.join(0.05)
    go_on.set()
    first.join()
    second.join()
    assert "another process is preparing it, waiting" in caplog.text
    assert counted.loads == [7]


KILLED_BUILD = """
import os
import signal
import sys
sys.path.insert(0, sys.argv[1])
from clray.data import cache, digits
write_meta = cache._write_meta
cache._write_meta = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
cache.prepare(digits.Digits(name="digits"))
"""


def test_a_killed_build_neither_blocks_nor_poisons_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("CLRAY_CACHE_DIR", str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", KILLED_BUILD, str(REPOSITORY)], capture_output=True)
    assert killed.returncode == -9
    assert cache.open_dataset(Digits(name="digits")).info == Digits(name="digits").describe()
