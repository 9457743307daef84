"""What networks of a study train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clray.study.batches import union_batches, with_memory
from clray.study.downstream import downstream_spec, train_with_memories
from clray.study.run import StudyPack


def test_batches_come_from_all_tasks_so_far(study: tuple[StudyPack, Path]) -> None:
    pack, _ = study
    n = pack.sizes.n_train
    for task in range(3):
        numbers = union_batches(pack.study, pack.sizes, 0, task)
        assert numbers.shape == (pack.sizes.total_batches, pack.sizes.batch_size)
        assert set(np.unique(numbers // n).tolist()) == set(range(task + 1))
        per_epoch = (task + 1) * n // pack.sizes.batch_size
        first = numbers[:per_epoch].ravel()
        assert len(set(first.tolist())) == len(first)


def test_arrays_are_the_samples_that_batches_name(study: tuple[StudyPack, Path]) -> None:
    pack, _ = study
    n = pack.sizes.n_train
    arrays = pack.draw.task(2, pixels=True)
    for position in range(2):
        numbers = union_batches(pack.study, pack.sizes, position, 2)
        images = arrays.images[:, position][arrays.order[:, position]]
        assert np.array_equal(images, pack.draw.images(pack.draw.indices[numbers // n, numbers % n, position]))
        labels = arrays.labels[:, position][arrays.order[:, position]]
        classes = pack.draw.classes[numbers // n, position, labels]
        dataset = pack.draw.loader.dataset
        assert np.array_equal(classes, np.asarray(dataset.train_labels)[pack.draw.indices[numbers // n, numbers % n, position]])


def test_a_memory_keeps_the_share_of_each_task_and_uses_its_rows_equally() -> None:
    numbers = np.random.default_rng(0).permutation(3 * 12).reshape(6, 6)  # a whole epoch of three tasks of 12
    memory = [np.array([7, 1, 4]), np.array([0, 11, 5, 6])]
    replaced = with_memory(numbers, 2, 12, memory)
    assert np.array_equal(replaced // 12, numbers // 12)
    assert np.array_equal(replaced[numbers >= 24], numbers[numbers >= 24])
    for past, rows in enumerate(memory):
        found, counts = np.unique(replaced[replaced // 12 == past] % 12, return_counts=True)
        assert sorted(found.tolist()) == sorted(rows.tolist())
        assert len(set(counts.tolist())) == 1


def test_a_memory_of_everything_trains_the_ideal_model(study: tuple[StudyPack, Path]) -> None:
    pack, _ = study
    everything = np.arange(pack.sizes.n_train)
    spec = downstream_spec(pack.spec)
    accuracy = train_with_memories(pack.study, pack.draw, spec, pack.pools, pack.devices, [0, 1], lambda lane, past: everything)
    ideal = pack.member.folders.accuracy_matrix(pack.study)[0]
    assert np.array_equal(accuracy, ideal.transpose(2, 0, 1))
