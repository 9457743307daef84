"""Data sets prepared once per machine into memory-mapped files, and opened from there by everything else.

``<cache>/prepared/<key>/`` holds train_images.npy, train_labels.npy, test_images.npy, test_labels.npy and meta.json. The
cache is $CLRAY_CACHE_DIR, else $XDG_CACHE_HOME/clray, else ~/.cache/clray. The key is a hash of all that decides the pixels.
Whichever process comes first builds, under a file lock, into a folder of its own that is renamed when complete; the others
wait. So a folder under its final name is complete, and opening it needs neither torch nor the source files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from clray.config import digest
from clray.data.npy import open_array, write_array
from clray.data.pixels import channel_statistics, transformed_blocks
from clray.data.progress import Progress, terminal_progress
from clray.data.source import Arrays, DatasetInfo, Source, Split, checked, class_counts
from clray.errors import ConfigError, DataError, UserError
from clray.options import DatasetOptions
from clray.plugins import raised_at

FORMAT = 1  # part of the key: raise it when prepared files change their meaning
STALE_SECONDS = 24 * 3600.0
SPLITS = ("train", "test")
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared data set. Images are read-only memory maps in the source's dtype and order.

    Attributes:
        info: K, counts, shape and dtype.
        train_images: (n, height, width, channels) uint8 or float32.
        train_labels: (n,) int64.
        test_images, test_labels: likewise.
        mean, std: (channels,) float32 of the training split (validation part included), uint8 pixels scaled to [0, 1].
    """

    info: DatasetInfo
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def open_dataset(options: DatasetOptions, progress: Progress | None = None) -> Dataset:
    """Opens a data set, preparing it first where no process has yet.

    Args:
        options: a ``Source``.
        progress: see ``prepare``.

    Raises:
        DataError: files are missing or damaged, or the cache cannot be written.
        ConfigError: the options do not fit the data.
    """
    dataset = _read(prepare(options, progress))
    if dataset is None:
        raise DataError(f"{prepared_folder(_source(options))}: removed or damaged while it was being opened; run again")
    return dataset


def prepare(options: DatasetOptions, progress: Progress | None = None) -> Path:
    """Makes sure that a data set is prepared; returns its folder.

    Args:
        options: a ``Source``.
        progress: called with (stage, images done, images in all); by default a bar on terminals and nothing elsewhere.

    Raises:
        DataError, ConfigError: as ``open_dataset``.
    """
    source = _source(options)
    folder = prepared_folder(source)
    if _read(folder) is not None:
        return folder
    with _build_lock(folder, source.name):
        if _read(folder) is None:
            with nullcontext(progress) if progress else terminal_progress() as report:
                _build(source, folder, report)
    return folder


def describe(options: DatasetOptions) -> DatasetInfo | None:
    """Facts about a data set without preparing it: from its prepared files where there are any, else what the source knows."""
    source = _source(options)
    dataset = _read(prepared_folder(source))
    return dataset.info if dataset is not None else asked(source, "describe", (DatasetInfo, type(None)))


def check(options: DatasetOptions) -> None:
    """Cheap check before anything is started: nothing to do where the data set is prepared, else ``Source.check_files``."""
    source = _source(options)
    if _read(prepared_folder(source)) is None:
        asked(source, "check_files", type(None))


def cache_folder() -> Path:
    """The folder of everything that clray can make again."""
    if given := os.environ.get("CLRAY_CACHE_DIR"):
        return Path(given).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().resolve() / "clray"


def asked(source: Source, method: str, expected: type | tuple[type, ...]) -> Any:
    """What a method of a source returns, which people may have written themselves.

    Raises:
        DataError: it raised something, or returned something else than ``expected``; the message says where.
        UserError: it raised one.
    """
    try:
        found = getattr(source, method)()
    except UserError:
        raise
    except Exception as error:
        raise DataError(
            f"data set {source.name}: {method}() failed: {type(error).__name__}: {error}{raised_at(error, type(source).__module__)}"
        ) from error
    if not isinstance(found, expected):
        kinds = expected if isinstance(expected, tuple) else (expected,)
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise DataError(f"data set {source.name}: {method}() must return {names}, got {type(found).__name__}")
    return found


def prepared_folder(source: Source) -> Path:
    """Where the prepared files of a source are or will be."""
    return cache_folder() / "prepared" / digest(_key(source))[:20]


def _source(options: DatasetOptions) -> Source:
    if not isinstance(options, Source):
        raise ConfigError(
            f"dataset {options.name!r} is a {type(options).__name__}; it must derive from clray.data.source.Source and implement load"
        )
    return options


def _key(source: Source) -> dict[str, Any]:
    """All that decides the prepared pixels, as plain data. How many images are used, and how they are scaled, does not."""
    kind = type(source)
    elsewhere = set(DatasetOptions.model_fields) - {"resize", "pad", "grayscale"}
    folder = source.folder()
    return {
        "format": FORMAT,
        "class": f"{kind.__module__}:{kind.__qualname__}",
        "code": _code_hash(kind),
        "options": {key: value for key, value in source.canonical().items() if key not in elsewhere} | {"resize": source.size()},
        "folder": None if folder is None else str(folder),
        "fingerprint": asked(source, "fingerprint", (str, type(None))),
    }


def _code_hash(kind: type[Source]) -> str | None:
    """SHA-256 of the file of a class that people wrote themselves: they edit ``load`` and expect its new result."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if kind.__module__.startswith("clray.") or file is None:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _read(folder: Path) -> Dataset | None:
    """The prepared data set in ``folder``; None where it is not there or not whole (headers and sizes are looked at)."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        facts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in meta["info"].items()}
        info = DatasetInfo(**facts)
        images = {part: open_array(folder / f"{part}_images.npy") for part in SPLITS}
        labels = {part: np.array(open_array(folder / f"{part}_labels.npy")) for part in SPLITS}
        mean, std = np.asarray(meta["mean"], np.float32), np.asarray(meta["std"], np.float32)
    except (OSError, DataError, ValueError, KeyError, TypeError):
        return None
    for part, n_images in (("train", info.n_train), ("test", info.n_test)):
        if images[part].shape != (n_images, *info.shape) or images[part].dtype != info.dtype or labels[part].shape != (n_images,):
            return None
    return Dataset(info, images["train"], labels["train"], images["test"], labels["test"], mean, std)


@contextmanager
def _build_lock(folder: Path, name: str) -> Iterator[None]:
    """One process at a time builds ``folder``. The operating system frees the lock of a process that died."""
    with _writing():
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("data set %s: another process is preparing it, waiting", name)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(source: Source, folder: Path, report: Progress) -> None:
    log.info("data set %s: preparing into %s", source.name, folder)
    asked(source, "check_files", type(None))
    report(f"reading {source.name}", 0, 0)
    arrays = checked(asked(source, "load", Arrays), source.name)
    n_classes = 1 + int(arrays.train.labels.max())
    draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        with _writing():
            _remove_stale_drafts(folder)
            draft.mkdir()
            for part, split in zip(SPLITS, arrays, strict=True):
                _write_split(draft, part, split, source, report)
            _write_meta(draft, source, *(class_counts(split.labels, n_classes) for split in arrays))
            _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_split(draft: Path, part: str, split: Split, source: Source, report: Progress) -> None:
    blocks = transformed_blocks(split.images, source, f"data set {source.name}, {part} split")
    first = next(blocks)  # its shape is that of all
    stage = f"preparing {source.name}, {part}"

    def counted() -> Iterator[np.ndarray]:
        done = 0
        block: np.ndarray | None = first
        while block is not None:
            yield block
            done += len(block)
            report(stage, done, len(split.labels))
            block = next(blocks, None)

    write_array(draft / f"{part}_images.npy", (len(split.labels), *first.shape[1:]), first.dtype, counted())
    write_array(draft / f"{part}_labels.npy", split.labels.shape, split.labels.dtype, [split.labels])


def _write_meta(draft: Path, source: Source, train_counts: tuple[int, ...], test_counts: tuple[int, ...]) -> None:
    """Written last: without it a folder counts as absent."""
    images = open_array(draft / "train_images.npy")
    height, width, channels = images.shape[1:]
    info = DatasetInfo(len(train_counts), train_counts, test_counts, (height, width, channels), str(images.dtype))
    mean, std = channel_statistics(images)
    meta = {"info": asdict(info), "mean": mean.tolist(), "std": std.tolist(), "made_from": _key(source)}
    (draft / "meta.json").write_text(json.dumps(meta, indent=1))


def _publish(draft: Path, folder: Path) -> None:
    if folder.exists():  # damaged: a whole one would not have been built again
        broken = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
        folder.rename(broken)
        shutil.rmtree(broken, ignore_errors=True)
    draft.rename(folder)


def _remove_stale_drafts(folder: Path) -> None:
    """Drafts of killed processes. Only old ones: locks do not hold on every network file system."""
    for draft in folder.parent.glob(f".{folder.name}.*"):
        if draft.is_dir() and time.time() - draft.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _writing() -> Iterator[None]:
    """Turns what the operating system says about the cache folder into an error of the user's."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot prepare data in the cache folder {cache_folder()}: {error.strerror or error}; make room there, or set "
            "CLRAY_CACHE_DIR to a folder that can be written"
        ) from error
