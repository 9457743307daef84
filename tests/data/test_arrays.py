from __future__ import annotations

import numpy as np
import pytest

from clray.data import cache
from clray.data.arrays import NAMES, ArrayFiles
from clray.errors import ConfigError, DataError


def write(folder, row_shape=(4, 5), dtype=np.uint8, label_dtype=np.int64, n_train=30, n_test=12):
    rng = np.random.default_rng(0)
    for part, n in (("train", n_train), ("test", n_test)):
        np.save(folder / f"X_{part}.npy", (rng.random((n, *row_shape)) * 255).astype(dtype))
        np.save(folder / f"y_{part}.npy", np.arange(n).astype(label_dtype) % 3)
    return ArrayFiles(name="arrays", root=str(folder))


@pytest.mark.parametrize(
    ("row_shape", "shape"), [((6,), (1, 6, 1)), ((4, 5), (4, 5, 1)), ((4, 5, 2), (4, 5, 2))], ids=["vectors", "grey", "channels"]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, ">f4"])
def test_arrays_come_back_as_they_were_written(tmp_path, row_shape, shape, dtype):
    source = write(tmp_path, row_shape, dtype)
    dataset = cache.open_dataset(source)
    assert dataset.info == source.describe()
    assert dataset.info.shape == shape
    assert dataset.info.n_inputs == np.prod(row_shape)
    assert dataset.info.dtype == ("uint8" if dtype == np.uint8 else "float32")
    assert dataset.info.train_counts == (10, 10, 10)
    for part, images, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        ("test", dataset.test_images, dataset.test_labels),
    ):
        written = np.load(tmp_path / f"X_{part}.npy")
        np.testing.assert_array_equal(images.reshape(written.shape), written.astype(images.dtype))
        np.testing.assert_array_equal(labels, np.load(tmp_path / f"y_{part}.npy"))


def test_labels_may_be_whole_floats(tmp_path):
    assert cache.open_dataset(write(tmp_path, label_dtype=np.float32)).train_labels.dtype == np.int64


def test_resize_pad_and_grayscale_show_in_the_facts(tmp_path):
    write(tmp_path, (4, 5, 3))
    source = ArrayFiles(name="arrays", root=str(tmp_path), resize=(6, 8), pad=1, grayscale=True)
    assert source.describe().shape == (8, 10, 1)
    assert cache.open_dataset(source).info == source.describe()


def test_other_contents_are_other_data(tmp_path):
    source = write(tmp_path)
    before, folder = source.fingerprint(), cache.prepared_folder(source)
    assert source.fingerprint() == before
    x = np.load(tmp_path / "X_train.npy")
    x[-1, -1, -1] ^= 1
    np.save(tmp_path / "X_train.npy", x)
    assert source.fingerprint() != before
    assert cache.prepared_folder(source) != folder


def test_the_folder_must_be_given():
    for ask in (ArrayFiles.check_files, ArrayFiles.describe, ArrayFiles.load, ArrayFiles.fingerprint, cache.open_dataset):
        with pytest.raises(ConfigError, match=r"needs dataset\.root.*X_train\.npy"):
            ask(ArrayFiles(name="arrays"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [-1, 60, 0], ids=["one byte short", "half a header", "empty"])
def test_a_truncated_file_is_named(tmp_path, name, keep):
    source = write(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:keep])
    for ask in (source.check_files, source.load, source.describe):
        with pytest.raises(DataError, match=name):
            ask()


def test_a_file_longer_than_its_header_says_is_named(tmp_path):
    source = write(tmp_path)
    with (tmp_path / "y_test.npy").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match=r"y_test\.npy: the header announces 224 bytes, the file has 225"):
        source.check_files()


def test_a_missing_file_is_named(tmp_path):
    source = write(tmp_path)
    (tmp_path / "y_train.npy").unlink()
    with pytest.raises(DataError, match=r"y_train\.npy: no such file"):
        source.check_files()


def test_pickled_objects_are_never_read(tmp_path):
    source = write(tmp_path)
    np.save(tmp_path / "X_test.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"X_test\.npy: truncated or not a plain"):
        source.check_files()


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("X_train.npy", np.zeros((30, 4, 5), np.int64), "needed: uint8 or float"),
        ("X_train.npy", np.zeros(30, np.uint8), "needed: uint8 or float"),
        ("X_test.npy", np.zeros((12, 5, 4), np.uint8), "must be alike"),
        ("X_test.npy", np.zeros((12, 4, 5), np.float32), "use uint8 or float for both"),
        ("X_test.npy", np.zeros((13, 4, 5), np.uint8), r"whole numbers of shape \(13,\)"),
        ("y_test.npy", np.zeros((12, 1), np.int64), r"whole numbers of shape \(12,\)"),
        ("y_test.npy", np.full(12, "a"), r"whole numbers of shape \(12,\)"),
        ("y_train.npy", np.arange(30) % 3 + 0.5, r"y_train\.npy: row 0 is 0\.5"),
        ("y_train.npy", np.where(np.arange(30) == 4, np.nan, 0.0), r"y_train\.npy: row 4 is nan"),
        ("y_train.npy", np.arange(30) % 3 - 1, r"y_train\.npy: row 0 is -1"),
        ("y_train.npy", np.arange(30) % 3 + 10**12, "row 0 is 1000000000000"),
        ("y_test.npy", np.arange(12) % 2, "test split has no image of class 2"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, name, array, says):
    source = write(tmp_path)
    np.save(tmp_path / name, array)
    with pytest.raises(DataError, match=says):
        cache.prepare(source)


def test_empty_arrays_are_refused(tmp_path):
    with pytest.raises(DataError, match="no rows"):
        write(tmp_path, n_test=0).check_files()


@pytest.mark.parametrize("options", [{"resize": 8}, {"pad": 1}, {"grayscale": True}])
def test_vectors_are_not_treated_as_images(tmp_path, options):
    write(tmp_path, (6,))
    with pytest.raises(ConfigError, match="leave out resize, pad and grayscale"):
        ArrayFiles(name="arrays", root=str(tmp_path), **options).check_files()
