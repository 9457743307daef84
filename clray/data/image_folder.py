"""The user's own images: root/train/CLASS/* and root/test/CLASS/*, classes numbered in the order of their names."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clray.data.listing import listing_hash, walk_files
from clray.data.pixels import transform
from clray.data.source import Arrays, DatasetInfo, Source, Split, class_counts
from clray.errors import ConfigError, DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif")
DEEP_MODES = ("I", "F")  # what PIL calls more than 8 bits a channel; converting those to RGB would clip them
DECODED_AT_ONCE = 256  # images: bounds the memory of files before resize


class Listing(NamedTuple):
    """The image files of one split, class by class, each class in the order of its file names."""

    paths: list[str]
    sizes: list[int]  # bytes
    labels: np.ndarray  # (n,) int64


class ImageFolder(Source):
    """Image files, read as RGB of 8 bits. All must have one size unless ``resize`` is given."""

    def folder(self) -> Path:
        """``root``, which this source needs."""
        if self.root is None:
            raise ConfigError(f"dataset {self.name} needs dataset.root, the folder that holds train/CLASS/* and test/CLASS/*")
        return Path(self.root).expanduser().resolve()

    def check_files(self) -> None:
        """Raises ``DataError`` where folders are missing or differ between the splits, or an image file is empty."""
        for listing in self._listings():
            empty = next((path for path, size in zip(listing.paths, listing.sizes, strict=True) if size == 0), None)
            if empty:
                raise DataError(f"{empty}: an empty file; replace or remove it")

    def describe(self) -> DatasetInfo:
        """From the listing and, without ``resize``, the header of the first image."""
        train, test = self._listings()
        n_classes = int(train.labels.max()) + 1
        height, width = self.size() or _image_size(train.paths[0])
        return self.prepared_info(class_counts(train.labels, n_classes), class_counts(test.labels, n_classes), (height, width, 3))

    def fingerprint(self) -> str:
        """Over names and sizes of all image files."""
        folder = self.folder()
        return listing_hash([(f"{part}/{name}", size) for part in ("train", "test") for name, size in _image_files(folder / part)])

    def load(self) -> Arrays:
        """Decodes all images; where ``resize`` is given they are resized here, since their sizes may differ.

        Raises:
            DataError: a file is truncated or no image, or its size differs from the first one's; the message names it.
        """
        self.check_files()
        train, test = self._listings()
        shape = (*(self.size() or _image_size(train.paths[0])), 3)
        return Arrays(*(Split(self._decode_all(part.paths, shape), part.labels) for part in (train, test)))

    def _listings(self) -> tuple[Listing, Listing]:
        folder = self.folder()
        names = {part: _class_names(folder / part) for part in ("train", "test")}
        if names["train"] != names["test"]:
            only = sorted(set(names["train"]) ^ set(names["test"]))
            raise DataError(f"{folder}: train and test need the same class folders; only in one of them: {', '.join(only[:10])}")
        train, test = (_listing(folder / part, names[part]) for part in ("train", "test"))
        return train, test

    def _decode_all(self, paths: list[str], shape: tuple[int, int, int]) -> np.ndarray:
        images = np.empty((len(paths), *shape), np.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(paths), DECODED_AT_ONCE):
                names = paths[start : start + DECODED_AT_ONCE]
                decoded = list(pool.map(_decode, names))
                if self.resize is not None:
                    decoded = _resized(decoded, self)
                for offset, (name, image) in enumerate(zip(names, decoded, strict=True)):
                    if image.shape != shape:
                        raise DataError(
                            f"{name}: {image.shape[1]}x{image.shape[0]} pixels, but the first image has {shape[1]}x{shape[0]}; "
                            "give dataset.resize: [height, width], or make all images one size"
                        )
                    images[start + offset] = image
        return images


def _resized(images: list[np.ndarray], options: ImageFolder) -> list[np.ndarray]:
    """Each image at the size of ``resize``. Those of one size go through torch together: a call each costs more than the work."""
    only_resize = options.model_copy(update={"pad": 0, "grayscale": False})
    resized: dict[int, np.ndarray] = {}
    for shape in {image.shape for image in images}:
        members = [index for index, image in enumerate(images) if image.shape == shape]
        resized |= zip(members, transform(np.stack([images[index] for index in members]), only_resize), strict=True)
    return [resized[index] for index in range(len(images))]


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; an image folder holds train/CLASS/* and test/CLASS/*")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: no class folders; put the images of each class into a folder named like the class")
    return names


def _image_files(folder: Path) -> list[tuple[str, int]]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; an image folder holds train/CLASS/* and test/CLASS/*")
    return [(name, size) for name, size in walk_files(folder) if name.lower().endswith(SUFFIXES)]


def _listing(folder: Path, names: list[str]) -> Listing:
    paths: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(_image_files(folder / name))
        if not files:
            raise DataError(f"{folder / name}: no image files ({', '.join(SUFFIXES)}); add some or remove the folder")
        paths += [f"{folder}/{name}/{file}" for file, _ in files]
        sizes += [size for _, size in files]
        labels += [label] * len(files)
    return Listing(paths, sizes, np.asarray(labels, np.int64))


def _image_size(path: str) -> tuple[int, int]:
    """(height, width) in pixels, from the header."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not a readable image ({error}); replace or remove it") from None


def _decode(path: str) -> np.ndarray:
    """(height, width, 3) uint8."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(DEEP_MODES):
                raise DataError(f"{path}: more than 8 bits a channel (mode {image.mode}); convert it to 8 bits or use dataset arrays")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{path}: truncated or not an image ({error}); replace or remove it") from None
