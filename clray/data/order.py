"""The order in which training visits the samples of a task.

Drawn on the host, in the thread that prepares the next task: a permutation of 12,000 takes 0.1 ms there and 3 to 12 ms as a
compiled sort on a CPU device, besides a second of compile time for the random bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Last part of the spawn key, so that the order shares no stream with the classes or with other draws of a repeat and task.
ORDER = 1_000_211


def batch_order(seed: int, repeat: int, task: int, n_train: int, batch_size: int, total_batches: int) -> np.ndarray:
    """Sample numbers of every batch of one task of one repeat.

    Every epoch is a new permutation of the N samples of which the last partial batch is dropped. Depends on nothing but
    (seed, repeat, task) and the sizes.

    Returns:
        (total batches, B) int32.
    """
    per_epoch = n_train // batch_size
    n_epochs = -(-total_batches // per_epoch)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(repeat, task, ORDER)))
    epochs = rng.permuted(np.tile(np.arange(n_train, dtype=np.int32), (n_epochs, 1)), axis=1)
    return epochs[:, : per_epoch * batch_size].reshape(-1, batch_size)[:total_batches]


def task_order(seed: int, repeats: Sequence[int], task: int, n_train: int, batch_size: int, total_batches: int) -> np.ndarray:
    """``batch_order`` of all repeats: (total batches, R, B) int32."""
    return np.stack([batch_order(seed, r, task, n_train, batch_size, total_batches) for r in repeats], axis=1)
