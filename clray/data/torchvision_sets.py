"""Named sets that torchvision reads and downloads: the MNIST family, CIFAR-10 and -100, SVHN.

Files that are in the data folder are used as they are, without network; missing ones are downloaded by torchvision.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from clray.data.source import Arrays, DatasetInfo, Source, Split, class_counts
from clray.errors import DataError

DOWNLOAD_STALL_SECONDS = 60.0
DOWNLOAD_ERRORS = (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError, zipfile.BadZipFile, zlib.error)
log = logging.getLogger(__name__)


class TorchvisionSource(Source):
    """What the named sets share: use local files, else download, else say which files to put where."""

    origin: ClassVar[str]
    raw_shape: ClassVar[tuple[int, int, int]]
    train_counts: ClassVar[tuple[int, ...]]
    test_counts: ClassVar[tuple[int, ...]]

    def files(self) -> tuple[str, ...]:
        """Names of the files torchvision reads, relative to the data folder."""
        raise NotImplementedError

    def read(self, folder: Path, download: bool) -> Arrays:
        """The set by torchvision; a ``RuntimeError`` where files are missing and ``download`` is false."""
        raise NotImplementedError

    def flaw(self, path: Path) -> str | None:
        """What is wrong with an existing file as far as its header and size tell, or None."""
        raise NotImplementedError

    def data_folder(self) -> Path:
        """``folder()``, which these sets always have."""
        folder = self.folder()
        assert folder is not None
        return folder

    def describe(self) -> DatasetInfo | None:
        """Constants of the set."""
        return self.constants()

    def constants(self) -> DatasetInfo | None:
        """Facts about the complete set, which need no file."""
        return self.prepared_info(self.train_counts, self.test_counts, self.raw_shape)

    def check_files(self) -> None:
        """Raises ``DataError`` where a file is there but truncated; absent files are downloaded later."""
        folder = self.data_folder()
        for name in self.files():
            path = folder / name
            flaw = self.flaw(path) if path.is_file() else None
            if flaw:
                raise DataError(f"{path}: {flaw}; delete it to have it downloaded again, or put a complete copy there (from {self.origin})")

    def load(self) -> Arrays:
        """Reads local files, downloading what is missing.

        Raises:
            DataError: a file is truncated, or missing and cannot be downloaded.
        """
        self.check_files()
        folder = self.data_folder()
        try:
            return self.read(folder, download=False)
        except RuntimeError as error:
            log.info("%s: not complete in %s (%s), downloading", self.name, folder, error)
        try:
            with _exclusive_download(folder):
                return self.read(folder, download=True)
        except DOWNLOAD_ERRORS as error:
            wanted = "\n".join(f"  {folder / name}" for name in self.files())
            raise DataError(
                f"data set {self.name} is not complete in {folder} and could not be downloaded ({error}). With network access run "
                f"`clray data prepare {self.name}`; without, put these files there (from {self.origin}), or point dataset.root or "
                f"$CLRAY_DATA_DIR at a folder that has them:\n{wanted}"
            ) from error


class Mnist(TorchvisionSource):
    """MNIST: handwritten digits."""

    origin: ClassVar[str] = "https://ossci-datasets.s3.amazonaws.com/mnist/, unpacked with gunzip"
    raw_shape: ClassVar[tuple[int, int, int]] = (28, 28, 1)
    train_counts: ClassVar[tuple[int, ...]] = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    test_counts: ClassVar[tuple[int, ...]] = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    torchvision_name: ClassVar[str] = "MNIST"

    def prefixes(self) -> tuple[str, str]:
        """How names of train and of test files begin."""
        return "train", "t10k"

    def files(self) -> tuple[str, ...]:
        """IDX files, uncompressed: images and labels of train, then of test."""
        kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
        return tuple(f"{self.torchvision_name}/raw/{prefix}-{kind}" for prefix in self.prefixes() for kind in kinds)

    def flaw(self, path: Path) -> str | None:
        """The IDX header against the file's size."""
        return idx_flaw(path)

    def read(self, folder: Path, download: bool) -> Arrays:
        """Images (n, 28, 28, 1) uint8."""
        from torchvision import datasets

        kind = getattr(datasets, self.torchvision_name)
        return Arrays(*(self._split(kind(folder, train=train, download=download, **self.arguments())) for train in (True, False)))

    def arguments(self) -> dict[str, Any]:
        """What torchvision's class takes besides folder, train and download."""
        return {}

    def upright(self, images: np.ndarray) -> np.ndarray:
        """(n, height, width) as people would look at them."""
        return images

    @property
    def first_label(self) -> int:
        """What the files call class 0."""
        return 0

    def _split(self, read: Any) -> Split:
        return Split(self.upright(read.data.numpy())[..., None], read.targets.numpy().astype(np.int64) - self.first_label)

    def describe(self) -> DatasetInfo | None:
        """From the label files where they are there (they may hold a part of the set), else constants."""
        _, train_labels, _, test_labels = (self.data_folder() / name for name in self.files())
        counts = [self._counts(path) for path in (train_labels, test_labels)]
        if counts[0] is not None and counts[1] is not None and len(counts[0]) == len(counts[1]):
            return self.prepared_info(counts[0], counts[1], self.raw_shape)
        return self.constants()

    def _counts(self, path: Path) -> tuple[int, ...] | None:
        if not path.is_file() or idx_flaw(path):
            return None
        labels = np.fromfile(path, np.uint8, offset=8).astype(np.int64) - self.first_label
        return class_counts(labels, 1) if len(labels) and labels.min() >= 0 else None


class FashionMnist(Mnist):
    """Fashion-MNIST: articles of clothing (Xiao et al. 2017)."""

    origin: ClassVar[str] = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/, unpacked with gunzip"
    train_counts: ClassVar[tuple[int, ...]] = (6000,) * 10
    test_counts: ClassVar[tuple[int, ...]] = (1000,) * 10
    torchvision_name: ClassVar[str] = "FashionMNIST"


class Kmnist(Mnist):
    """Kuzushiji-MNIST: cursive Japanese characters (Clanuwat et al. 2018)."""

    origin: ClassVar[str] = "http://codh.rois.ac.jp/kmnist/dataset/kmnist/, unpacked with gunzip"
    train_counts: ClassVar[tuple[int, ...]] = (6000,) * 10
    test_counts: ClassVar[tuple[int, ...]] = (1000,) * 10
    torchvision_name: ClassVar[str] = "KMNIST"


EMNIST_BALANCED = {"balanced": (47, 2400, 400), "letters": (26, 4800, 800), "digits": (10, 24000, 4000), "mnist": (10, 6000, 1000)}
"""Split to (K, train images a class, test images a class), for the splits whose classes are of one size."""


class Emnist(Mnist):
    """EMNIST: letters and digits (Cohen et al. 2017). The files hold each image transposed; here they are upright."""

    split: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"] = "balanced"
    origin: ClassVar[str] = "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip, unpacked with unzip and gunzip"
    torchvision_name: ClassVar[str] = "EMNIST"

    def prefixes(self) -> tuple[str, str]:
        """How names of train and of test files begin, for this split."""
        return f"emnist-{self.split}-train", f"emnist-{self.split}-test"

    def arguments(self) -> dict[str, Any]:
        """The split."""
        return {"split": self.split}

    def upright(self, images: np.ndarray) -> np.ndarray:
        """Transposed back."""
        return np.ascontiguousarray(images.transpose(0, 2, 1))

    @property
    def first_label(self) -> int:
        """The split letters counts from 1."""
        return 1 if self.split == "letters" else 0

    def constants(self) -> DatasetInfo | None:
        """Known where all classes of the split are of one size, else None."""
        if self.split not in EMNIST_BALANCED:
            return None
        n_classes, train, test = EMNIST_BALANCED[self.split]
        return self.prepared_info((train,) * n_classes, (test,) * n_classes, self.raw_shape)


class Cifar10(TorchvisionSource):
    """CIFAR-10: small colour photographs (Krizhevsky 2009)."""

    origin: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz, unpacked with tar"
    raw_shape: ClassVar[tuple[int, int, int]] = (32, 32, 3)
    train_counts: ClassVar[tuple[int, ...]] = (5000,) * 10
    test_counts: ClassVar[tuple[int, ...]] = (1000,) * 10
    torchvision_name: ClassVar[str] = "CIFAR10"
    batches: ClassVar[dict[str, int]] = {f"cifar-10-batches-py/data_batch_{n}": 10_000 for n in range(1, 6)} | {
        "cifar-10-batches-py/test_batch": 10_000,
        "cifar-10-batches-py/batches.meta": 0,
    }

    def files(self) -> tuple[str, ...]:
        """The batches and the file of class names."""
        return tuple(self.batches)

    def flaw(self, path: Path) -> str | None:
        """A batch holds its pixels uncompressed, so it cannot be smaller than they are; torchvision checks the rest by md5."""
        n_images = self.batches[path.relative_to(self.data_folder()).as_posix()]
        least, found = n_images * 32 * 32 * 3, path.stat().st_size
        return f"truncated ({found} bytes, {n_images} images take at least {least})" if found < max(least, 1) else None

    def read(self, folder: Path, download: bool) -> Arrays:
        """Images (n, 32, 32, 3) uint8."""
        from torchvision import datasets

        kind = getattr(datasets, self.torchvision_name)
        train, test = (kind(folder, train=train, download=download) for train in (True, False))
        return Arrays(*(Split(read.data, np.asarray(read.targets, np.int64)) for read in (train, test)))


class Cifar100(Cifar10):
    """CIFAR-100 with its 100 fine classes (Krizhevsky 2009)."""

    origin: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz, unpacked with tar"
    train_counts: ClassVar[tuple[int, ...]] = (500,) * 100
    test_counts: ClassVar[tuple[int, ...]] = (100,) * 100
    torchvision_name: ClassVar[str] = "CIFAR100"
    batches: ClassVar[dict[str, int]] = {"cifar-100-python/train": 50_000, "cifar-100-python/test": 10_000, "cifar-100-python/meta": 0}


class Svhn(TorchvisionSource):
    """Street View House Numbers, cropped digits (Netzer et al. 2011). Class 0 is the digit 0."""

    origin: ClassVar[str] = "http://ufldl.stanford.edu/housenumbers/"
    raw_shape: ClassVar[tuple[int, int, int]] = (32, 32, 3)
    train_counts: ClassVar[tuple[int, ...]] = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)
    test_counts: ClassVar[tuple[int, ...]] = (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595)

    def files(self) -> tuple[str, ...]:
        """MATLAB files of the two splits."""
        return "train_32x32.mat", "test_32x32.mat"

    def flaw(self, path: Path) -> str | None:
        """The announced lengths of the file's elements against its size."""
        return mat_flaw(path)

    def read(self, folder: Path, download: bool) -> Arrays:
        """Images (n, 32, 32, 3) uint8."""
        from torchvision.datasets import SVHN

        train, test = (SVHN(folder, split=split, download=download) for split in ("train", "test"))
        return Arrays(*(Split(np.ascontiguousarray(read.data.transpose(0, 2, 3, 1)), read.labels) for read in (train, test)))


def idx_flaw(path: Path) -> str | None:
    """What is wrong with an uncompressed IDX file as far as its header and size tell, or None."""
    with path.open("rb") as file:
        head = file.read(4)
        if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 3:
            return "not an uncompressed IDX file of bytes (wrong or missing header)"
        dimensions = file.read(4 * head[3])
    if len(dimensions) < 4 * head[3]:
        return "truncated within its header"
    sizes = struct.unpack(f">{head[3]}I", dimensions)
    announced = 4 + len(dimensions) + int(np.prod(sizes, dtype=np.int64))
    found = path.stat().st_size
    return None if found == announced else f"truncated or damaged (its header announces {announced} bytes, it has {found})"


def mat_flaw(path: Path) -> str | None:
    """What is wrong with a MATLAB 5 file as far as the lengths of its elements tell, or None."""
    found = path.stat().st_size
    end = 128
    with path.open("rb") as file:
        while end < found:
            file.seek(end)
            tag = file.read(8)
            if len(tag) < 8:
                break
            end += 8 + struct.unpack("<II", tag)[1]
    return None if end == found > 128 else f"truncated or damaged (its elements end at byte {end}, it has {found})"


@contextlib.contextmanager
def _exclusive_download(folder: Path) -> Iterator[None]:
    """One process downloads into a folder at a time; a dead connection fails; torchvision's bar is drawn on terminals only."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_STALL_SECONDS)
    try:
        with FileLock(folder / ".clray-download.lock"), open(os.devnull, "w") as nowhere:
            with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(nowhere):
                yield
    finally:
        socket.setdefaulttimeout(timeout)
