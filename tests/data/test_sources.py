from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clray import data, plugins
from clray.data import cache
from clray.data.digits import Digits
from clray.data.source import Arrays, Source, Split, checked
from clray.errors import ConfigError, DataError
from clray.options import DatasetOptions
from clray.trials.plan import plan_sweep
from tests.core.tiny import tiny

HEAVY = ("torch", "torchvision", "sklearn", "jax", "ray", "PIL", "rich")


def test_every_name_of_the_table_leads_to_a_source():
    assert list(data.TABLE) == [
        "digits", "mnist", "fashion_mnist", "kmnist", "emnist", "cifar10", "cifar100", "svhn", "image_folder", "arrays"
    ]  # fmt: skip
    for name in plugins.names("datasets"):
        assert issubclass(plugins.options_class("datasets", name), Source)


def test_facts_of_named_sets_are_known_without_files_and_heavy_imports():
    code = f"""
import json, sys
from clray import data, plugins
from clray.data import cache, digits, loader, prefetch, sequence, sizes
facts = {{}}
for name in data.TABLE:
    if name not in ("image_folder", "arrays"):
        info = cache.describe(plugins.options_class("datasets", name)(name=name, pad=2))
        facts[name] = [info.n_classes, info.n_train, info.n_test, *info.shape, info.dtype]
print(json.dumps([facts, [module for module in {HEAVY} if module in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(data.__file__).parents[2])
    facts, heavy = json.loads(done.stdout)
    assert heavy == []
    assert facts == {
        "digits": [10, 1433, 364, 12, 12, 1, "float32"],
        "mnist": [10, 60000, 10000, 32, 32, 1, "uint8"],
        "fashion_mnist": [10, 60000, 10000, 32, 32, 1, "uint8"],
        "kmnist": [10, 60000, 10000, 32, 32, 1, "uint8"],
        "emnist": [47, 112800, 18800, 32, 32, 1, "uint8"],
        "cifar10": [10, 50000, 10000, 36, 36, 3, "uint8"],
        "cifar100": [100, 50000, 10000, 36, 36, 3, "uint8"],
        "svhn": [10, 73257, 26032, 36, 36, 3, "uint8"],
    }


def test_digits_trains_on_the_first_80_percent_of_each_class_in_source_order():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    wanted = {"train": [], "test": []}
    for label in range(10):
        members = [row for row in range(1797) if bunch.target[row] == label]
        n = int(0.8 * len(members))
        wanted["train"] += members[:n]
        wanted["test"] += members[n:]
    arrays = Digits(name="digits").load()
    for part, split in zip(("train", "test"), arrays, strict=True):
        rows = sorted(wanted[part])
        np.testing.assert_array_equal(split.images, (bunch.images[rows] / 16)[..., None].astype(np.float32))
        np.testing.assert_array_equal(split.labels, bunch.target[rows])


def test_digits_says_what_it_loads():
    dataset = cache.open_dataset(Digits(name="digits"))
    assert dataset.info == Digits(name="digits").describe()
    assert dataset.train_images.max() == 1.0
    np.testing.assert_allclose(dataset.mean, np.asarray(dataset.train_images, float).mean(), rtol=1e-6)


def test_options_that_are_no_source_are_refused():
    with pytest.raises(ConfigError, match=r"must derive from clray\.data\.source\.Source"):
        cache.open_dataset(DatasetOptions(name="synthetic"))


def split(labels=(0, 1, 1), shape=(4, 4, 1), dtype=np.uint8):
    return Split(np.zeros((len(labels), *shape), dtype), np.asarray(labels))


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        (split(), split((0, 0, 0)), "test split has no image of class 1"),
        (split((0, 2, 2)), split((0, 1, 2)), "train split has no image of class 1"),
        (split((0, 10**12, 1)), split(), "labels go up to 1000000000000"),
        (split((0, -1, 1)), split(), "-1 is negative"),
        (split(np.array([0.0, 1.0])), split(), "labels are float64"),
        (split(shape=(4, 4)), split(), r"needed: uint8 or float32 \(n, height, width, channels\)"),
        (split(dtype=np.int64), split(), "images are int64"),
        (split(shape=(5, 4, 1)), split(), "both splits need one dtype"),
        (split(dtype=np.float32), split(), "both splits need one dtype"),
        (split(()), split(), "no images"),
        (Split(np.zeros((3, 4, 4, 1), np.uint8), np.zeros(2, int)), split(), "for 3 images"),
    ],
)
def test_what_a_source_must_not_return_is_named(train, test, says):
    with pytest.raises(DataError, match=f"data set mine.*{says}"):
        checked(Arrays(train, test), "mine")


MISTAKES = """
import numpy as np
from clray.data.source import Arrays, DatasetInfo, Source, Split
from clray.options import DatasetOptions

def split():
    return Split(np.zeros((20, 4, 4, 1), np.uint8), np.arange(20) % 2)

class Good(Source):
    def load(self):
        return Arrays(split(), split())

class Four(Good):
    def load(self):
        return (*split(), *split())

class Nothing(Good):
    def load(self):
        pass

class Missing(Good):
    def load(self):
        return np.load("not-there.npz")

class Described(Good):
    def describe(self):
        return {"n_classes": 2}

class Fingered(Good):
    def fingerprint(self):
        return open("not-there.txt").read()

class Checking(Good):
    def check_files(self):
        raise ValueError("no good")
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Four", r"load\(\) must return Arrays, got tuple"),
        ("Nothing", r"load\(\) must return Arrays, got NoneType"),
        ("Missing", r"load\(\) failed: FileNotFoundError: .*not-there.npz.*\(.*mistaken_sources.py:23\)"),
        ("Described", r"describe\(\) must return DatasetInfo or None, got dict"),
        ("Fingered", r"fingerprint\(\) failed: FileNotFoundError: .*not-there.txt"),
        ("Checking", r"check_files\(\) failed: ValueError: no good"),
    ],
)
def test_a_mistake_in_a_source_is_one_message_that_says_where(tmp_path, monkeypatch, name, told):
    (tmp_path / "mistaken_sources.py").write_text(MISTAKES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = plugins.options_class("datasets", f"mistaken_sources:{name}")(name=f"mistaken_sources:{name}")

    def use():
        cache.describe(source)
        cache.check(source)
        cache.open_dataset(source)

    with pytest.raises(DataError, match=f"^data set mistaken_sources:{name}: {told}"):
        use()


def test_own_sources_of_two_folders_are_two_data_sets_unless_they_say_what_they_read(tmp_path, monkeypatch):
    """Without a fingerprint nothing else could tell them apart, and a grid over ``dataset.root`` would train the first one only."""
    (tmp_path / "mistaken_sources.py").write_text(MISTAKES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def trials(roots):
        data = {"name": "mistaken_sources:Good"}
        base = tiny(dataset=data, sequence={"n_tasks": 1}, training={"epochs": 1, "batch_size": 2}, logging__n_subsamples=2)
        return plan_sweep({"name": "roots", "experiment": base, "grid": {"dataset.root": roots}}).trials

    assert len({trial.trial_id for trial in trials([str(tmp_path / "a"), str(tmp_path / "b")])}) == 2
    with_default, without = trials([str(tmp_path / "a"), None])
    assert with_default.trial_id != without.trial_id
    digits = {"name": "roots", "experiment": tiny(), "grid": {"dataset.root": ["a", "b"]}}
    assert len(plan_sweep(digits).trials) == 1  # what comes with clray is the same data wherever it lies
