"""scikit-learn's digits: 1,797 images of 8x8, small enough for every test and first try.

The set has no split of its own: the first 80% (rounded down) of each class in the source's order train, the rest test.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clray.data.source import Arrays, DatasetInfo, Source, Split

COUNTS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)


class Digits(Source):
    """Handwritten digits, float pixels in [0, 1] (the source counts 0 to 16)."""

    def load(self) -> Arrays:
        """Reads the set that comes inside scikit-learn."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = (bunch.images / 16.0).astype(np.float32)[..., None]
        labels = bunch.target.astype(np.int64)
        in_train = np.zeros(len(labels), bool)
        for label in range(len(COUNTS)):
            members = np.flatnonzero(labels == label)
            in_train[members[: train_count(len(members))]] = True
        return Arrays(Split(images[in_train], labels[in_train]), Split(images[~in_train], labels[~in_train]))

    def describe(self) -> DatasetInfo:
        """Constants of the set."""
        train = tuple(train_count(n) for n in COUNTS)
        test = tuple(n - train_count(n) for n in COUNTS)
        return self.prepared_info(train, test, (8, 8, 1), "float32")

    def folder(self) -> Path | None:
        """None: scikit-learn brings the data."""
        return None


def train_count(n: int) -> int:
    """Of n images of a class, how many train."""
    return n * 8 // 10
