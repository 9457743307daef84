"""Tiny data sets written in the official file formats; nothing is ever downloaded here."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from urllib.error import URLError

import numpy as np
import pytest

from clray.data import cache, torchvision_sets
from clray.data.torchvision_sets import Cifar10, Cifar100, Emnist, FashionMnist, Kmnist, Mnist, Svhn, idx_flaw, mat_flaw
from clray.errors import DataError

MNISTS = {"mnist": Mnist, "fashion_mnist": FashionMnist, "kmnist": Kmnist}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Every way out of torchvision fails as it does without network; what was tried is returned."""
    import torchvision.datasets as sets

    tried = []

    def fail(url, *_, **__):
        tried.append(url)
        raise URLError("no network")

    monkeypatch.setattr(sets.mnist, "download_and_extract_archive", fail)
    monkeypatch.setattr(sets.cifar, "download_and_extract_archive", fail)
    monkeypatch.setattr(sets.svhn, "download_url", fail)
    return tried


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def write_mnist(root, source, first_label=0, n_classes=3):
    """Writes 4 images a class to train and 2 to test; returns their pixels and labels from 0 as (train, test)."""
    rng = np.random.default_rng(0)
    written = []
    for part, n in enumerate((4 * n_classes, 2 * n_classes)):
        images = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        labels = np.arange(n) % n_classes
        write_idx(root / source.files()[2 * part], images)
        write_idx(root / source.files()[2 * part + 1], (labels + first_label).astype(np.uint8))
        written.append((images, labels))
    return written


@pytest.mark.parametrize("name", MNISTS)
def test_idx_files_are_read_without_network(name, tmp_path, offline):
    source = MNISTS[name](name=name, root=str(tmp_path))
    (train, train_labels), (test, test_labels) = write_mnist(tmp_path, source)
    assert source.describe().train_counts == (4, 4, 4)  # of the files, not of the full set
    dataset = cache.open_dataset(source)
    assert dataset.info == source.describe()
    np.testing.assert_array_equal(dataset.train_images, train[..., None])
    np.testing.assert_array_equal(dataset.train_labels, train_labels)
    np.testing.assert_array_equal(dataset.test_images, test[..., None])
    np.testing.assert_array_equal(dataset.test_labels, test_labels)
    assert offline == []


@pytest.mark.parametrize(("split", "first_label"), [("letters", 1), ("balanced", 0), ("byclass", 0)])
def test_emnist_is_upright_and_counts_from_zero(tmp_path, split, first_label):
    source = Emnist(name="emnist", root=str(tmp_path), split=split)
    (train, labels), _ = write_mnist(tmp_path, source, first_label)
    dataset = cache.open_dataset(source)
    assert dataset.info == source.describe()
    np.testing.assert_array_equal(dataset.train_images, np.stack([image.T for image in train])[..., None])
    np.testing.assert_array_equal(dataset.train_labels, labels)


def test_emnist_facts_without_files_are_those_of_the_paper(tmp_path):
    facts = {}
    for split in ("byclass", "bymerge", "balanced", "letters", "digits", "mnist"):
        info = Emnist(name="emnist", root=str(tmp_path), split=split).describe()
        facts[split] = None if info is None else (info.n_classes, info.n_train, info.n_test)
    assert facts == {
        "byclass": None,
        "bymerge": None,
        "balanced": (47, 112_800, 18_800),
        "letters": (26, 124_800, 20_800),
        "digits": (10, 240_000, 40_000),
        "mnist": (10, 60_000, 10_000),
    }


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("keep", [-1, 6, 0], ids=["one byte short", "half a header", "empty"])
def test_a_truncated_idx_file_is_named_and_not_fetched(tmp_path, offline, index, keep):
    source = Mnist(name="mnist", root=str(tmp_path))
    write_mnist(tmp_path, source)
    path = tmp_path / source.files()[index]
    path.write_bytes(path.read_bytes()[:keep])
    for ask in (source.check_files, source.load):
        with pytest.raises(DataError, match=f"{path.name}: .*delete it to have it downloaded again"):
            ask()
    assert offline == []


def test_idx_flaws(tmp_path):
    path = tmp_path / "file"
    write_idx(path, np.zeros((3, 2), np.uint8))
    assert idx_flaw(path) is None
    path.write_bytes(path.read_bytes() + b"\0")
    assert "announces 18 bytes, it has 19" in idx_flaw(path)
    path.write_bytes(gzip.compress(b"anything"))
    assert "not an uncompressed IDX file" in idx_flaw(path)


@pytest.mark.parametrize("kind", [Mnist, FashionMnist, Kmnist, Emnist, Cifar10, Cifar100, Svhn])
def test_without_files_and_network_the_message_lists_what_to_put_where(tmp_path, offline, kind):
    source = kind(name="named", root=str(tmp_path))
    source.check_files()  # absence is no error yet
    with pytest.raises(DataError) as caught:
        cache.prepare(source)
    assert offline
    assert "no network" in str(caught.value)
    assert source.origin in str(caught.value)
    for file in source.files():
        assert f"\n  {tmp_path / file}" in str(caught.value)


def test_one_missing_file_of_several_is_fetched(tmp_path, monkeypatch):
    import torchvision.datasets as sets

    source = Mnist(name="mnist", root=str(tmp_path))
    write_mnist(tmp_path, source)
    missing = tmp_path / source.files()[3]
    kept = missing.read_bytes()
    missing.unlink()
    asked = []

    def fetch(url, download_root, filename, md5):
        asked.append(filename)
        (tmp_path / "MNIST" / "raw" / filename.removesuffix(".gz")).write_bytes(kept) if "t10k-labels" in filename else None

    monkeypatch.setattr(sets.mnist, "download_and_extract_archive", fetch)
    assert cache.open_dataset(source).info.test_counts == (2, 2, 2)
    assert "t10k-labels-idx1-ubyte.gz" in asked


def write_cifar(root, monkeypatch, kind, torchvision_kind, label_key):
    """Writes 6 images a batch in the official format and makes clray and torchvision expect these files."""
    rng = np.random.default_rng(0)
    written, sums = {}, {}
    for file in kind.batches:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        data = rng.integers(0, 256, (6, 3, 32, 32)).astype(np.uint8)
        entry = {"data": data.reshape(6, -1), label_key: [0, 1, 2, 0, 1, 2]}
        if "meta" in file:
            entry = {torchvision_kind.meta["key"]: ["a", "b", "c"]}
        written[file] = data
        (root / file).write_bytes(pickle.dumps(entry))
        sums[file.split("/")[1]] = hashlib.md5((root / file).read_bytes()).hexdigest()
    for listing in ("train_list", "test_list"):
        monkeypatch.setattr(torchvision_kind, listing, [[name, sums[name]] for name, _ in getattr(torchvision_kind, listing)])
    monkeypatch.setattr(torchvision_kind, "meta", torchvision_kind.meta | {"md5": sums[torchvision_kind.meta["filename"]]})
    monkeypatch.setattr(kind, "batches", {file: 0 if "meta" in file else 6 for file in kind.batches})
    return written


@pytest.mark.parametrize(("kind", "name", "label_key"), [(Cifar10, "cifar10", "labels"), (Cifar100, "cifar100", "fine_labels")])
def test_cifar_batches_are_read_in_order(tmp_path, monkeypatch, kind, name, label_key):
    import torchvision.datasets as sets

    written = write_cifar(tmp_path, monkeypatch, kind, getattr(sets, kind.torchvision_name), label_key)
    dataset = cache.open_dataset(kind(name=name, root=str(tmp_path)))
    train = [data for file, data in written.items() if "test" not in file and "meta" not in file]
    np.testing.assert_array_equal(dataset.train_images, np.concatenate(train).transpose(0, 2, 3, 1))
    assert dataset.train_labels.tolist() == [0, 1, 2] * (2 * len(train))
    test = next(data for file, data in written.items() if file.endswith(("/test_batch", "/test")))
    np.testing.assert_array_equal(dataset.test_images, test.transpose(0, 2, 3, 1))


def test_a_truncated_cifar_batch_is_named(tmp_path):
    source = Cifar10(name="cifar10", root=str(tmp_path))
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.parent.mkdir()
    path.write_bytes(b"\x80" * 1000)
    with pytest.raises(DataError, match=r"data_batch_3: truncated \(1000 bytes, 10000 images take at least 30720000\)"):
        source.check_files()


@pytest.fixture
def svhn_root(tmp_path, monkeypatch):
    import torchvision.datasets as sets
    from scipy.io import savemat

    listing = {}
    for part in ("train", "test"):
        path = tmp_path / f"{part}_32x32.mat"
        images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 6)).astype(np.uint8)
        savemat(path, {"X": images, "y": np.array([[1], [2], [10], [10], [1], [2]], np.uint8)}, do_compression=True)
        listing[part] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(sets.SVHN, "split_list", listing)
    return tmp_path, images


def test_svhn_calls_the_digit_zero_class_zero(svhn_root):
    root, images = svhn_root
    source = Svhn(name="svhn", root=str(root))
    source.check_files()
    dataset = cache.open_dataset(source)
    np.testing.assert_array_equal(dataset.train_images, images.transpose(3, 0, 1, 2))
    assert dataset.train_labels.tolist() == [1, 2, 0, 0, 1, 2]


@pytest.mark.parametrize("keep", [-1, 132, 128, 0])
def test_a_truncated_mat_file_is_named(svhn_root, keep):
    root, _ = svhn_root
    path = root / "test_32x32.mat"
    assert mat_flaw(path) is None
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"test_32x32\.mat: truncated or damaged"):
        Svhn(name="svhn", root=str(root)).check_files()


def test_the_data_folder_comes_from_root_then_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CLRAY_DATA_DIR", str(tmp_path / "shared"))
    assert Mnist(name="mnist").folder() == tmp_path / "shared"
    assert Mnist(name="mnist", root=str(tmp_path / "mine")).folder() == tmp_path / "mine"
    monkeypatch.delenv("CLRAY_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Mnist(name="mnist").folder() == tmp_path / ".cache" / "clray" / "data"


def test_a_download_has_a_time_limit_and_leaves_the_process_as_it_was(tmp_path):
    import socket

    before = socket.getdefaulttimeout()
    with torchvision_sets._exclusive_download(tmp_path / "new"):
        assert socket.getdefaulttimeout() == torchvision_sets.DOWNLOAD_STALL_SECONDS
    assert socket.getdefaulttimeout() == before
