"""The user's own arrays: X_train.npy, y_train.npy, X_test.npy and y_test.npy in one folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clray.data.listing import content_hash
from clray.data.npy import open_array
from clray.data.source import Arrays, DatasetInfo, Source, Split, class_counts
from clray.errors import ConfigError, DataError

NAMES = ("X_train.npy", "y_train.npy", "X_test.npy", "y_test.npy")


class ArrayFiles(Source):
    """Arrays of uint8 (scaled to [0, 1] in training) or floats (taken as they are).

    X is (n, D), (n, height, width) or (n, height, width, channels); y is (n,), whole numbers 0 to K-1. Rows (n, D) count
    as images of height 1, width D and 1 channel, so that flattening gives D.
    """

    def folder(self) -> Path:
        """``root``, which this source needs."""
        if self.root is None:
            raise ConfigError(f"dataset {self.name} needs dataset.root, the folder that holds {', '.join(NAMES)}")
        return Path(self.root).expanduser().resolve()

    def check_files(self) -> None:
        """Raises ``DataError`` where a file is missing, truncated, or its header does not fit the others."""
        x_train, y_train, x_test, y_test = self._open()
        for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
            if x.ndim not in (2, 3, 4) or not (x.dtype == np.uint8 or x.dtype.kind == "f"):
                raise DataError(
                    f"{self.folder() / f'X_{part}.npy'}: {x.dtype} {x.shape}; needed: uint8 or float of shape (n, D), "
                    "(n, height, width) or (n, height, width, channels)"
                )
            if y.ndim != 1 or y.dtype.kind not in "iuf" or len(y) != len(x):
                raise DataError(
                    f"{self.folder() / f'y_{part}.npy'}: {y.dtype} {y.shape}; needed: whole numbers of shape ({len(x)},), one a row of X"
                )
            if len(y) == 0:
                raise DataError(f"{self.folder() / f'X_{part}.npy'}: no rows; needed: at least one of each class")
        if x_train.shape[1:] != x_test.shape[1:]:
            raise DataError(
                f"{self.folder()}: rows of X_train.npy are {x_train.shape[1:]}, of X_test.npy {x_test.shape[1:]}; they must be alike"
            )
        if (x_train.dtype == np.uint8) != (x_test.dtype == np.uint8):
            raise DataError(f"{self.folder()}: X_train.npy is {x_train.dtype}, X_test.npy {x_test.dtype}; use uint8 or float for both")
        if x_train.ndim == 2 and (self.resize is not None or self.pad or self.grayscale):
            raise ConfigError(
                f"dataset {self.name}: X_train.npy holds rows of {x_train.shape[1]} numbers, no images; leave out resize, pad and grayscale"
            )

    def load(self) -> Arrays:
        """Images stay memory-mapped where they are uint8 or float32; other floats become float32."""
        self.check_files()
        x_train, y_train, x_test, y_test = self._open()
        return Arrays(
            Split(_as_images(x_train), self._labels(y_train, "y_train.npy")), Split(_as_images(x_test), self._labels(y_test, "y_test.npy"))
        )

    def describe(self) -> DatasetInfo:
        """From the labels and the headers of the images."""
        self.check_files()
        x_train, y_train, _, y_test = self._open()
        labels = self._labels(y_train, "y_train.npy"), self._labels(y_test, "y_test.npy")
        n_classes = 1 + int(max(part.max() for part in labels))
        train, test = (class_counts(part, n_classes) for part in labels)
        return self.prepared_info(train, test, _image_shape(x_train.shape[1:]), "uint8" if x_train.dtype == np.uint8 else "float32")

    def fingerprint(self) -> str:
        """Over names and content of the four files."""
        from clray.data.cache import cache_folder

        self._open()
        return content_hash([self.folder() / name for name in NAMES], cache_folder() / "fingerprints")

    def _open(self) -> list[np.ndarray]:
        return [open_array(self.folder() / name) for name in NAMES]

    def _labels(self, y: np.ndarray, name: str) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # NaN: caught by the comparison below
            labels = np.asarray(y).astype(np.int64)
        bad = (labels != y) | (labels < 0) | (labels >= len(labels))
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(f"{self.folder() / name}: row {row} is {y[row]}; labels are whole numbers 0 to K-1, each of them present")
        return labels


def _image_shape(row: tuple[int, ...]) -> tuple[int, int, int]:
    height, width, channels = {1: (1, *row, 1), 2: (*row, 1), 3: row}[len(row)]
    return height, width, channels


def _as_images(x: np.ndarray) -> np.ndarray:
    images = x.reshape(len(x), *_image_shape(x.shape[1:]))
    return images if images.dtype in (np.uint8, np.float32) else images.astype(np.float32)
