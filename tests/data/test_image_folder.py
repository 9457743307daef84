from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from clray.data import cache, image_folder
from clray.data.image_folder import ImageFolder
from clray.data.pixels import transform
from clray.errors import ConfigError, DataError
from clray.options import DatasetOptions

CLASSES = ("ape", "bee", "cow")


def pixels(seed, height=6, width=9):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    """train: 4 images a class, test: 2; image n of class k of the split that is number s has seed 100 s + 10 k + n."""
    for s, (part, n_images) in enumerate((("train", 4), ("test", 2))):
        for k, name in enumerate(CLASSES):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for n in range(n_images):
                Image.fromarray(pixels(100 * s + 10 * k + n)).save(folder / f"{n:02}.png")
    return tmp_path


def folder_source(root, **options):
    return ImageFolder(name="image_folder", root=str(root), **options)


@pytest.mark.parametrize("at_once", [1, 5, 256])
def test_images_come_in_order_of_class_and_file_name(root, at_once, monkeypatch):
    monkeypatch.setattr(image_folder, "DECODED_AT_ONCE", at_once)
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "ape" / "notes.txt").write_text("not an image")
    dataset = cache.open_dataset(folder_source(root))
    assert dataset.info == folder_source(root).describe()
    assert dataset.info.train_counts == (4, 4, 4)
    assert dataset.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert dataset.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(dataset.train_images, [pixels(10 * k + n) for k in range(3) for n in range(4)])
    np.testing.assert_array_equal(dataset.test_images, [pixels(100 + 10 * k + n) for k in range(3) for n in range(2)])


def test_images_below_subfolders_of_a_class_belong_to_it(root):
    (root / "train" / "bee" / "more").mkdir()
    Image.fromarray(pixels(999)).save(root / "train" / "bee" / "more" / "x.png")
    dataset = cache.open_dataset(folder_source(root))
    assert dataset.info.train_counts == (4, 5, 4)
    np.testing.assert_array_equal(dataset.train_images[8], pixels(999))


def test_grey_and_palette_images_become_rgb(root):
    grey = pixels(7)[..., 0]
    Image.fromarray(grey).save(root / "train" / "ape" / "00.png")
    Image.fromarray(pixels(8)).convert("P").save(root / "train" / "ape" / "01.png")
    images = cache.open_dataset(folder_source(root)).train_images
    np.testing.assert_array_equal(images[0], np.repeat(grey[..., None], 3, axis=2))
    assert images.shape[3] == 3


def test_images_of_different_sizes_need_resize(root):
    odd = pixels(50, 12, 5)
    Image.fromarray(odd).save(root / "train" / "cow" / "02.png")
    with pytest.raises(DataError, match=r"cow/02\.png: 5x12 pixels, but the first image has 9x6; give dataset\.resize"):
        cache.prepare(folder_source(root))
    source = folder_source(root, resize=(8, 10), pad=1, grayscale=True)
    dataset = cache.open_dataset(source)
    assert dataset.info == source.describe()
    assert dataset.info.shape == (10, 12, 1)
    alone = DatasetOptions(name="one", resize=(8, 10), pad=1, grayscale=True)
    np.testing.assert_array_equal(dataset.train_images[10], transform(odd[None], alone)[0])
    np.testing.assert_array_equal(dataset.train_images[1], transform(pixels(1)[None], alone)[0])


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_truncated_image_is_named(root, kind):
    (root / "test" / "bee" / "00.png").unlink()
    path = root / "test" / "bee" / f"00.{kind}"
    Image.fromarray(pixels(3, 6, 9)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.9)])
    with pytest.raises(DataError, match=rf"bee/00\.{kind}: truncated or not an image"):
        cache.prepare(folder_source(root))


def test_an_empty_image_file_is_named_before_anything_is_decoded(root):
    (root / "test" / "bee" / "01.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"bee/01\.png: an empty file"):
        folder_source(root).check_files()


def test_images_of_16_bits_are_refused_rather_than_clipped(root):
    Image.fromarray(np.full((6, 9), 40_000, np.uint16)).save(root / "train" / "ape" / "00.png")
    with pytest.raises(DataError, match=r"ape/00\.png: more than 8 bits"):
        cache.prepare(folder_source(root))


def test_missing_folders_are_named(root):
    with pytest.raises(ConfigError, match=r"needs dataset\.root"):
        ImageFolder(name="image_folder").check_files()
    shutil.rmtree(root / "test" / "cow")
    with pytest.raises(DataError, match="same class folders; only in one of them: cow"):
        folder_source(root).check_files()
    (root / "test" / "cow").mkdir()
    with pytest.raises(DataError, match="cow: no image files"):
        folder_source(root).check_files()
    shutil.rmtree(root / "test")
    for ask in (folder_source(root).check_files, folder_source(root).describe, folder_source(root).fingerprint):
        with pytest.raises(DataError, match="test: no such folder"):
            ask()


def test_the_fingerprint_follows_names_and_sizes(root):
    seen = {folder_source(root).fingerprint()}
    (root / "train" / "ape" / "00.png").rename(root / "train" / "ape" / "renamed.png")
    seen.add(folder_source(root).fingerprint())
    Image.fromarray(pixels(1, 6, 10)).save(root / "test" / "cow" / "00.png")
    seen.add(folder_source(root).fingerprint())
    (root / "train" / "ape" / "notes.txt").write_text("not an image")
    assert folder_source(root).fingerprint() in seen
    assert len(seen) == 3
