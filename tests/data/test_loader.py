from __future__ import annotations

import collections

import numpy as np
import pytest

from clray.data.loader import TaskLoader
from clray.data.sequence import draw_classes
from clray.data.sizes import class_sizes
from clray.errors import ConfigError
from clray.transform import Transform, transformed

TRAIN, TEST = (31, 12, 25, 18, 22, 14), (7, 5, 9, 6, 8, 5)


@pytest.fixture
def loader(experiment, synthetic):
    def build(**wanted):
        dtype = wanted.pop("dtype", "float32")
        made = experiment(**wanted)
        dataset = synthetic(TRAIN, TEST, dtype)
        return TaskLoader(dataset, made, draw_classes(made.sequence, len(TRAIN), made.seed, made.repeat_numbers)), made, dataset

    return build


def first_of_class(labels, label, n, skip=0):
    """Slow loop from the definition: positions of images skip to skip + n of a class, in the source's order."""
    return [position for position, found in enumerate(labels) if found == label][skip : skip + n]


def pairs(images, labels):
    """Multiset of (image, label) rows."""
    return collections.Counter((tuple(image.ravel().tolist()), int(label)) for image, label in zip(images, labels, strict=True))


@pytest.mark.parametrize("dataset", [{}, {"train_per_class": 5}, {"validation_fraction": 0.3}], ids=["default", "five", "validation"])
@pytest.mark.parametrize("images", [False, True], ids=["flat", "images"])
def test_task_equals_a_slow_loop(loader, dataset, images):
    tasks, made, source = loader(n_repeats=3, images=images, dataset=dataset, sequence={"n_tasks": 2, "classes_per_task": 3})
    classes = draw_classes(made.sequence, 6, made.seed, range(3))
    n = {"train_per_class": 5, "validation_fraction": 9}.get(next(iter(dataset), ""), 12)  # 9 = 12 - floor(0.3 * 12)
    assert tasks.n_train == 3 * n
    for task in range(2):
        got = tasks.task(task)
        for repeat in range(3):
            rows = [(position, y) for y in range(3) for position in first_of_class(source.train_labels, classes[task, repeat, y], n)]
            wanted = np.stack([source.train_images[position] for position, _ in rows])
            np.testing.assert_array_equal(got.images[:, repeat], wanted if images else wanted.reshape(len(rows), -1))
            np.testing.assert_array_equal(got.labels[:, repeat], [y for _, y in rows])


@pytest.mark.parametrize(("images", "dtype"), [(False, "uint8"), (True, "float32")])
def test_tensors_have_the_promised_layout(loader, images, dtype):
    tasks, _, _ = loader(n_repeats=3, images=images, dtype=dtype)
    shape = (2, 3, 1) if images else (6,)
    for got in (tasks.task(1), tasks.joint_segment(0, tasks.n_train)):
        assert got.images.shape == (tasks.n_train, 3, *shape)
        assert got.images.dtype == dtype
        assert got.images.flags["C_CONTIGUOUS"]
        assert not isinstance(got.images, np.memmap)
        assert (got.labels.shape, got.labels.dtype) == ((tasks.n_train, 3), np.int32)
    assert tasks.eval_pools().images.shape == (6, 5, *shape)


def test_all_uses_every_image_and_fills_smaller_tasks_with_their_own(loader):
    tasks, made, source = loader(n_repeats=4, dataset={"train_per_class": "all"}, sequence={"n_tasks": 3})
    classes = draw_classes(made.sequence, 6, made.seed, range(4))
    own = np.asarray(TRAIN)[classes].sum(axis=2)
    assert tasks.n_train == own.max()
    for task in range(3):
        rows, got = tasks.task_rows(task), tasks.task(task)
        np.testing.assert_array_equal(source.train_images[rows.indices].reshape(got.images.shape), got.images)
        for repeat in range(4):
            indices = rows.indices[:, repeat].tolist()
            wanted = [position for label in classes[task, repeat] for position in first_of_class(source.train_labels, label, 99)]
            assert indices[: own[task, repeat]] == wanted
            assert set(indices) == set(wanted)
            times = collections.Counter(indices).values()
            assert max(times) - min(times) <= 1
            np.testing.assert_array_equal(classes[task, repeat][rows.labels[:, repeat]], source.train_labels[indices])


@pytest.mark.parametrize("dataset", [{}, {"train_per_class": "all"}], ids=["equal", "all"])
def test_repeat_alone_equals_its_slice(loader, dataset):
    together, _, _ = loader(n_repeats=5, dataset=dataset, sequence={"n_tasks": 3}, seed=11)
    alone, _, _ = loader(n_repeats=5, repeats=(3,), dataset=dataset, sequence={"n_tasks": 3}, seed=11)
    for ask in (lambda tasks: tasks.task(2), lambda tasks: tasks.joint_segment(4, 29)):
        np.testing.assert_array_equal(ask(alone).images[:, 0], ask(together).images[:, 3])
        np.testing.assert_array_equal(ask(alone).labels[:, 0], ask(together).labels[:, 3])


def test_evaluation_pools_hold_the_first_test_images_of_each_class(loader):
    tasks, _, source = loader(dataset={"test_per_class": 4})
    pools = tasks.eval_pools()
    assert pools.indices.dtype == np.int64
    np.testing.assert_array_equal(pools.indices, [first_of_class(source.test_labels, label, 4) for label in range(6)])
    np.testing.assert_array_equal(pools.images, source.test_images[pools.indices].reshape(6, 4, 6))


def test_validation_pools_hold_images_that_no_task_trains_on(loader):
    dataset = {"validation_fraction": 0.25, "train_per_class": "all"}
    tasks, made, source = loader(split="validation", dataset=dataset, sequence={"n_tasks": 3})
    pools, sizes = tasks.eval_pools(), class_sizes(source.info, made.dataset)
    assert sizes.validation == (7, 3, 6, 4, 5, 3)
    wanted = [first_of_class(source.train_labels, label, 3, skip=sizes.train[label]) for label in range(6)]
    np.testing.assert_array_equal(pools.indices, wanted)
    np.testing.assert_array_equal(pools.images, source.train_images[pools.indices].reshape(6, 3, 6))
    trained = {index for task in range(3) for index in tasks.task_rows(task).indices.ravel().tolist()}
    assert trained.isdisjoint(pools.indices.ravel().tolist())


@pytest.mark.parametrize("dataset", [{}, {"train_per_class": "all"}], ids=["equal", "all"])
def test_an_epoch_of_the_joint_mixture_is_every_sample_of_every_task_once(loader, dataset):
    tasks, _, _ = loader(n_repeats=2, dataset=dataset, sequence={"n_tasks": 3})
    everything = [tasks.task(task) for task in range(3)]
    for epoch in (0, 1):
        pieces = [tasks.joint_segment(3 * epoch + piece, tasks.n_train) for piece in range(3)]
        for repeat in range(2):
            mixed = sum((pairs(piece.images[:, repeat], piece.labels[:, repeat]) for piece in pieces), collections.Counter())
            assert mixed == sum((pairs(task.images[:, repeat], task.labels[:, repeat]) for task in everything), collections.Counter())


@pytest.mark.parametrize("rows", [1, 7, 50, 200])
def test_joint_segments_cut_one_stream_whatever_their_length_and_order(loader, rows):
    tasks, _, _ = loader(n_repeats=2, sequence={"n_tasks": 3})  # an epoch has 72 rows
    n_pieces = -(-400 // rows)
    whole = tasks.joint_rows(0, n_pieces * rows)
    backwards = [tasks.joint_rows(piece, rows) for piece in reversed(range(n_pieces))][::-1]
    np.testing.assert_array_equal(np.concatenate([piece.indices for piece in backwards]), whole.indices)
    np.testing.assert_array_equal(np.concatenate([piece.labels for piece in backwards]), whole.labels)


@pytest.mark.parametrize("policy", ["permuted", "rotated"])
@pytest.mark.parametrize("images", [False, True], ids=["flat", "images"])
def test_transformed_tasks_and_their_mixture_show_each_image_as_its_task_does(loader, policy, images):
    wanted = {"n_tasks": 2, "classes_per_task": 6, "policy": policy, "scenario": "class"}
    tasks, _, source = loader(n_repeats=2, images=images, dtype="uint8", sequence=wanted, dataset={"train_per_class": "all"})
    everything = [tasks.task(task) for task in range(2)]
    for task in range(2):
        table, rows = tasks.eval_transform([task]), tasks.task_rows(task)
        np.testing.assert_array_equal(everything[task].labels, source.train_labels[rows.indices] + 6 * task)
        for repeat in range(2):
            one = Transform(table.index[repeat, 0], None if table.weight is None else table.weight[repeat, 0])
            shown = transformed(source.train_images[rows.indices[:, repeat]], one)
            np.testing.assert_array_equal(everything[task].images[:, repeat], shown.reshape(everything[task].images[:, 0].shape))
    mixed = tasks.joint_segment(0, 2 * tasks.n_train)
    for repeat in range(2):
        of_tasks = sum((pairs(task.images[:, repeat], task.labels[:, repeat]) for task in everything), collections.Counter())
        assert pairs(mixed.images[:, repeat], mixed.labels[:, repeat]) == of_tasks


def test_joint_epochs_and_repeats_are_shuffled_differently(loader):
    tasks, _, source = loader(n_repeats=2, sequence={"n_tasks": 3, "policy": "fixed", "classes": ((0, 1), (2, 3), (4, 5))})
    epochs = [tasks.joint_rows(epoch, 72).indices for epoch in range(2)]
    orders = {epoch[:, repeat].tobytes() for epoch in epochs for repeat in range(2)}
    assert len(orders) == 4
    first_half = source.train_labels[epochs[0][:36, 0]]
    assert set(first_half.tolist()) == set(range(6))


def test_the_joint_mixture_holds_one_permutation_a_repeat(loader):
    tasks, _, _ = loader(n_repeats=2, sequence={"n_tasks": 3})
    for segment in range(20):
        tasks.joint_segment(segment, 24)
    assert sum(order.nbytes for _, order in tasks._joint_orders.values()) == 2 * 72 * 4


def test_too_few_images_are_refused_before_any_pixel_is_read(loader):
    with pytest.raises(ConfigError, match="train_per_class is 13"):
        loader(dataset={"train_per_class": 13})
