"""Draws what is done to the images of each task: permutations of pixels, or angles of rotation."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np

from clray.config import Sequence
from clray.transform import UNIT, Transform

# Last part of the spawn key, so that transforms share no stream with the classes, spawn_key=(repeat,), or with other draws.
TRANSFORM = 1_000_409


class TaskTransforms(NamedTuple):
    """What is done to the images of every task and repeat. At most one of the two is there."""

    permutations: np.ndarray | None  # (T, R, height * width) int32: pixel i of the result is pixel permutations[t, r, i]
    angles: np.ndarray | None  # (T, R) float64, degrees anticlockwise

    def table(self, tasks: Items[int], shape: tuple[int, int, int]) -> Transform | None:
        """The transforms of some tasks: leading axes (R, len(tasks)).

        Args:
            shape: (height, width, channels) of the images.
        """
        if self.permutations is not None:
            return Transform(np.ascontiguousarray(self.permutations[list(tasks)].swapaxes(0, 1)[:, :, None]), None)
        if self.angles is not None:
            return stack([[rotation(float(self.angles[task, r]), shape) for task in tasks] for r in range(self.angles.shape[1])])
        return None


def draw_transforms(sequence: Sequence, shape: tuple[int, int, int], seed: int, repeats: Items[int]) -> TaskTransforms:
    """Draws for all tasks and repeats.

    Each repeat has its own generator, seeded by (seed, repeat) alone, and the first tasks of a longer sequence are those of a
    shorter one. Where the first task is kept as it is, the others are what they would be otherwise.

    Args:
        sequence: T and the policy.
        shape: (height, width, channels) of the images as prepared.
        repeats: numbers of the repeats, R of them.
    """
    rngs = [np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(repeat, TRANSFORM)))) for repeat in repeats]
    if sequence.policy == "permuted":
        n_pixels = shape[0] * shape[1]
        drawn = np.stack([[rng.permutation(n_pixels) for _ in range(sequence.n_tasks)] for rng in rngs], axis=1).astype(np.int32)
        if sequence.keep_first:
            drawn[0] = np.arange(n_pixels)
        return TaskTransforms(drawn, None)
    if sequence.policy == "rotated":
        angles = np.stack([rng.uniform(*sequence.angle_range, sequence.n_tasks) for rng in rngs], axis=1)
        if sequence.angles is not None:
            angles[:] = np.asarray(sequence.angles)[:, None]
        if sequence.keep_first:
            angles[0] = 0.0
        return TaskTransforms(None, angles)
    return TaskTransforms(None, None)


def rotation(degrees: float, shape: tuple[int, int, int]) -> Transform:
    """A rotation anticlockwise about the middle of the image: bilinear, zero outside; a Transform without leading axes."""
    height, width, _ = shape
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    y, x = rows - (height - 1) / 2, columns - (width - 1) / 2
    angle = np.deg2rad(degrees)
    # Where each pixel of the result comes from; y points down.
    from_y = y * np.cos(angle) + x * np.sin(angle) + (height - 1) / 2
    from_x = x * np.cos(angle) - y * np.sin(angle) + (width - 1) / 2
    top, left = np.floor(from_y), np.floor(from_x)
    down, right = from_y - top, from_x - left
    corners = [(0, 0, (1 - down) * (1 - right)), (0, 1, (1 - down) * right), (1, 0, down * (1 - right)), (1, 1, down * right)]
    shares = np.rint(np.stack([share for *_, share in corners]) * UNIT).astype(np.int32)
    # Four rounded shares can miss the whole by one or two units.
    largest = shares.argmax(axis=0)[None]
    np.put_along_axis(shares, largest, np.take_along_axis(shares, largest, 0) + UNIT - shares.sum(axis=0), 0)
    at_y = np.stack([top + below for below, *_ in corners])
    at_x = np.stack([left + beside for _, beside, _ in corners])
    inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
    index = np.where(inside, at_y * width + at_x, 0).astype(np.int32)
    return Transform(index.reshape(4, -1), np.where(inside, shares, 0).astype(np.int32).reshape(4, -1))


def stack(rows: list[list[Transform]]) -> Transform:
    """Transforms with four taps as one, with the two list axes in front."""
    index, weight = (np.stack([[np.asarray(each[part]) for each in row] for row in rows]) for part in (0, 1))
    return Transform(index, weight)
