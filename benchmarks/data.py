"""The same tasks for all peers: digits, T tasks of two classes, as clray cuts them."""

from __future__ import annotations

from typing import Any

import numpy as np


def digits_experiment(n_tasks: int = 5, n_repeats: int = 8, log_frequency: int = 8, **changes: Any) -> dict[str, Any]:
    """The experiment that all comparisons share: MLP 64-256-256-2, batch 32, SGD 0.1, 80 batches a task."""
    experiment: dict[str, Any] = {
        "name": "bench",
        "n_repeats": n_repeats,
        "sequence": {"n_tasks": n_tasks, "policy": "disjoint" if n_tasks <= 5 else "reuse"},
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [256, 256]},
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "training": {"epochs": 10, "batch_size": 32},
        "logging": {"log_frequency": log_frequency, "n_subsamples": 20},
    }
    for key, value in changes.items():
        table, _, field = key.partition("__")
        if field:
            experiment[table][field] = value
        else:
            experiment[table] = value
    return experiment


def digits_tasks(n_tasks: int, repeat: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """(x, y, test x, test y) of every task of one repeat: float32 (n, 64), int64 (n,)."""
    from clray.data.cache import open_dataset
    from clray.data.loader import TaskLoader
    from clray.data.sequence import draw_classes
    from clray.documents import Document, parse_experiment

    experiment = parse_experiment(Document("bench", digits_experiment(n_tasks, repeat + 1) | {"repeats": [repeat]}))
    dataset = open_dataset(experiment.dataset)
    classes = draw_classes(experiment.sequence, dataset.info.n_classes, experiment.seed, [repeat])
    loader = TaskLoader(dataset, experiment, classes)
    pools = loader.eval_pools().images
    tasks = []
    for task in range(n_tasks):
        arrays = loader.task(task)
        own = classes[task, 0]
        test_x = pools[own].reshape(-1, pools.shape[-1])
        test_y = np.repeat(np.arange(len(own)), pools.shape[1])
        tasks.append((np.ascontiguousarray(arrays.images[:, 0]), arrays.labels[:, 0].astype(np.int64), test_x, test_y))
    return tasks
