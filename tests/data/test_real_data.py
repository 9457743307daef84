"""The official MNIST files and CIFAR-10 as an image folder, where they are at hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from clray.data import cache
from clray.data.image_folder import ImageFolder
from clray.data.loader import TaskLoader
from clray.data.sequence import draw_classes
from clray.data.torchvision_sets import Mnist

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def mnist(real_data):
    return Mnist(name="mnist", root=str(real_data))


def test_mnist_equals_torchvisions_and_our_constants(mnist, real_data):
    from torchvision.datasets import MNIST

    dataset = cache.open_dataset(mnist)
    assert dataset.info == mnist.constants() == mnist.describe()
    for train, images, labels in ((True, dataset.train_images, dataset.train_labels), (False, dataset.test_images, dataset.test_labels)):
        official = MNIST(real_data, train=train)
        np.testing.assert_array_equal(images[..., 0], official.data.numpy())
        np.testing.assert_array_equal(labels, official.targets.numpy())
    np.testing.assert_allclose([*dataset.mean, *dataset.std], [0.1307, 0.3081], atol=5e-5)  # the numbers in torch's MNIST example


def test_mnist_tasks_hold_the_classes_they_should(mnist, experiment):
    dataset = cache.open_dataset(mnist)
    made = experiment(dataset=mnist, n_repeats=2, sequence={"n_tasks": 5})
    classes = draw_classes(made.sequence, 10, made.seed, made.repeat_numbers)
    tasks = TaskLoader(dataset, made, classes)
    assert tasks.n_train == 2 * 5421
    rows, got = tasks.task_rows(4), tasks.task(4)
    for repeat in range(2):
        np.testing.assert_array_equal(dataset.train_labels[rows.indices[:, repeat]], classes[4, repeat][got.labels[:, repeat]])
    np.testing.assert_array_equal(got.images[::97], dataset.train_images[rows.indices[::97]].reshape(-1, 2, 784))


def test_cifar_folder_is_described_whole_and_read_in_part(real_data, tmp_path):
    whole = ImageFolder(name="image_folder", root=str(real_data / "cifar10"))
    whole.check_files()
    info = whole.describe()
    assert (info.train_counts, info.test_counts, info.shape) == ((5000,) * 10, (1000,) * 10, (32, 32, 3))
    for folder in itertools.chain.from_iterable((real_data / "cifar10" / part).iterdir() for part in ("train", "test")):
        here = tmp_path / folder.parent.name / folder.name
        here.mkdir(parents=True)
        for path in sorted(folder.iterdir())[:60]:
            (here / path.name).symlink_to(path)
    part = ImageFolder(name="image_folder", root=str(tmp_path))
    dataset = cache.open_dataset(part)
    assert dataset.info == part.describe()

    from torchvision.datasets import ImageFolder as Official

    official = Official(tmp_path / "train")
    np.testing.assert_array_equal(dataset.train_images, np.stack([np.asarray(image) for image, _ in official]))
    np.testing.assert_array_equal(dataset.train_labels, official.targets)
