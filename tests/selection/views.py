"""A task as selections see it, made up."""

from __future__ import annotations

import numpy as np

from clray.selection.base import TaskView


def made_up_view(n: int, n_classes: int, seed: int) -> TaskView:
    """N samples whose features depend on their class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    centres = rng.normal(size=(n_classes, 6))
    hidden = np.maximum(centres[labels] + rng.normal(size=(n, 6)), 0.0).astype(np.float32)
    logits = 2.0 * hidden @ rng.normal(size=(6, n_classes))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    pixels = rng.random((n, 5)).astype(np.float32)
    head = (probabilities - np.eye(n_classes)[labels]).astype(np.float32)
    inner = rng.normal(size=(n, 6)).astype(np.float32)
    return TaskView(
        labels=labels,
        n_classes=n_classes,
        stream=rng.permutation(n),
        pixels=lambda: pixels,
        hidden=lambda: hidden,
        probabilities=lambda: probabilities.astype(np.float32),
        factors=lambda: [(pixels, inner), (hidden, head)],
    )
