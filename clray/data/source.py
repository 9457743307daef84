"""What a data set is: images and labels of two splits, facts about them, and the base class of all sources.

People bring their own data set as a subclass of ``Source``; only ``load`` is required of it::

    class Blobs(Source):
        n_images: int = 100                     # options are fields, validated like all others

        def load(self) -> Arrays:
            ...
            return Arrays(train=Split(images, labels), test=Split(test_images, test_labels))

and name it in an experiment file as ``dataset: {name: "my_package.blobs:Blobs", n_images: 500}``.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clray.errors import DataError
from clray.options import DatasetOptions


class Split(NamedTuple):
    """Images and labels of one split, in the source's order (n is the number of images)."""

    images: np.ndarray  # (n, height, width, channels) uint8 or float32
    labels: np.ndarray  # (n,) int64, 0 to K-1


class Arrays(NamedTuple):
    """A whole data set as its source gives it: before resize, pad and grayscale."""

    train: Split
    test: Split


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a data set without its pixels.

    Attributes:
        n_classes: K.
        train_counts: (K,) images of each class in the training split, validation part included.
        test_counts: (K,) images of each class in the test split.
        shape: (height, width, channels) after resize, pad and grayscale.
        dtype: of the pixels: uint8 or float32.
    """

    n_classes: int
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    shape: tuple[int, int, int]
    dtype: str

    @property
    def n_train(self) -> int:
        """Images of the training split, validation part included."""
        return sum(self.train_counts)

    @property
    def n_test(self) -> int:
        """Images of the test split."""
        return sum(self.test_counts)

    @property
    def n_inputs(self) -> int:
        """D, the input dimension after flattening."""
        return int(np.prod(self.shape))

    @property
    def sample_bytes(self) -> int:
        """Bytes of one image in the source's dtype."""
        return self.n_inputs * np.dtype(self.dtype).itemsize


class Source(DatasetOptions):
    """Options of one data set plus how to read it. Subclasses must implement ``load``; the rest has defaults."""

    def load(self) -> Arrays:
        """Reads the raw source: slow, called once per machine, then served from the cache.

        Returns:
            Images before resize, pad and grayscale, labels 0 to K-1, every class in both splits.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement load() -> Arrays")

    def describe(self) -> DatasetInfo | None:
        """Facts that are cheap to know (no torch, a fraction of a second), or None before the first preparation."""
        return None

    def fingerprint(self) -> str | None:
        """A hash over the listing of files that the user owns and may change; None where there are none.

        It enters the identity of trials and of prepared data. A source of your own that reads files should implement it; by
        default two of them are different data where ``root`` is.
        """
        if self.root is None or ":" not in self.name:
            return None
        return hashlib.sha256(f"root\0{self.folder()}".encode()).hexdigest()

    def check_files(self) -> None:
        """Cheap look at local files, from headers and sizes. Files that can be downloaded may be absent.

        Raises:
            DataError: a file is truncated, or missing where nothing could download it.
        """

    def folder(self) -> Path | None:
        """The folder the source reads: ``root``, else $CLRAY_DATA_DIR, else ~/.cache/clray/data; None if it reads none."""
        given = self.root or os.environ.get("CLRAY_DATA_DIR") or "~/.cache/clray/data"
        return Path(given).expanduser().resolve()

    def prepared_info(
        self, train_counts: tuple[int, ...], test_counts: tuple[int, ...], shape: tuple[int, int, int], dtype: str = "uint8"
    ) -> DatasetInfo:
        """Facts for images of raw ``shape`` (height, width, channels), with resize, pad and grayscale accounted for."""
        height, width = self.size() or shape[:2]
        channels = 1 if self.grayscale else shape[2]
        prepared = (height + 2 * self.pad, width + 2 * self.pad, channels)
        return DatasetInfo(len(train_counts), train_counts, test_counts, prepared, dtype)


def class_counts(labels: np.ndarray, n_classes: int) -> tuple[int, ...]:
    """(K,) images of each class, from (n,) labels."""
    return tuple(int(count) for count in np.bincount(labels, minlength=n_classes))


def checked(arrays: Arrays, name: str) -> Arrays:
    """What a source returned, with labels as int64, once it is known to keep the promises of ``Arrays``.

    Raises:
        DataError: shapes, dtypes or labels are not as promised; the message names the source and the split.
    """
    splits = {part: Split(*map(np.asarray, split)) for part, split in zip(("train", "test"), arrays, strict=True)}
    for part, split in splits.items():
        _check_split(split, f"data set {name}, {part} split")
    train, test = splits["train"], splits["test"]
    if (train.images.shape[1:], train.images.dtype) != (test.images.shape[1:], test.images.dtype):
        raise DataError(
            f"data set {name}: train images are {train.images.dtype} {train.images.shape[1:]}, test images {test.images.dtype} "
            f"{test.images.shape[1:]}; both splits need one dtype and one (height, width, channels)"
        )
    n_classes = 1 + max(int(split.labels.max()) for split in splits.values())
    for part, split in splits.items():
        # Without the first condition, labels that are large identifiers would ask for as many counters.
        if n_classes > len(split.labels) or 0 in class_counts(split.labels, n_classes):
            missing = next(label for label in range(n_classes) if label not in split.labels)
            raise DataError(
                f"data set {name}: labels go up to {n_classes - 1}, but the {part} split has no image of class {missing}; number the "
                "classes 0 to K-1, each with images in both splits"
            )
    return Arrays(*(Split(split.images, split.labels.astype(np.int64)) for split in splits.values()))


def _check_split(split: Split, where: str) -> None:
    images, labels = split
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        raise DataError(f"{where}: images are {images.dtype} {images.shape}; needed: uint8 or float32 (n, height, width, channels)")
    if images.size == 0:
        raise DataError(f"{where}: no images, shape {images.shape}")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(f"{where}: labels are {labels.dtype} {labels.shape} for {len(images)} images; needed: one integer an image")
    if labels.min() < 0:
        raise DataError(f"{where}: the label {labels.min()} is negative; number the classes 0 to K-1")
