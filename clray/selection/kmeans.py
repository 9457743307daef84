"""The samples nearest to the centroids of k clusters of each class.

``batch``      Lloyd's algorithm from k random samples of the class; a cluster that loses all its samples keeps its centroid.
``streaming``  MacQueen's online k-means from k random samples: one pass in training order, every sample moves its nearest centroid
               by ``1 / (samples it has had)`` of the way.

The centroids then choose in turn, those of large clusters first, each the nearest sample of the class that is still free. So a
set of fewer than k samples of a class holds the nearest to the largest clusters.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from clray.options import Count
from clray.selection.base import Selecting, TaskView, interleaved
from clray.types import HostArray


class KMeans(Selecting):
    """Options of kmeans."""

    num_centroids: Count = Field(4, description="k, clusters of each class")
    variant: Literal["batch", "streaming"] = "batch"
    on: Literal["pixels", "hidden"] = Field("hidden", description="what distances are measured in")
    iterations: Annotated[int, Field(ge=1, le=1000)] = Field(20, description="passes of variant batch")

    @property
    def is_balanced(self) -> bool:
        return True

    def misfit(self, per_class: int) -> str | None:
        if self.num_centroids > per_class:
            return f"num_centroids: {self.num_centroids} is larger than the {per_class} training samples of a class; use at most that"
        return None

    def rank(self, task: TaskView, rng: np.random.Generator, largest: int) -> HostArray:
        features = (task.pixels() if self.on == "pixels" else task.hidden()).astype(np.float32)
        place = np.empty(len(task.stream), np.int64)
        place[task.stream] = np.arange(len(task.stream))
        orders = []
        for rows in task.rows_of:
            own = features[rows]
            start = own[rng.choice(len(own), self.num_centroids, replace=False)]
            if self.variant == "batch":
                centroids = lloyd(own, start, self.iterations)
            else:
                centroids = online(own[np.argsort(place[rows])], start)
            orders.append(rows[nearest_in_turn(own, centroids, min(len(rows), -(-largest // task.n_classes)))])
        return interleaved(orders)


def distances(points: HostArray, centroids: HostArray) -> HostArray:
    """(n, k) squared distances, without what is the same for all centroids of a point."""
    return np.sum(centroids * centroids, axis=1) - 2.0 * (points @ centroids.T)


def lloyd(points: HostArray, start: HostArray, iterations: int) -> HostArray:
    """(k, F) centroids after at most so many passes; fewer where nothing changes any more."""
    centroids, before = start.copy(), None
    for _ in range(iterations):
        nearest = np.argmin(distances(points, centroids), axis=1)
        if before is not None and np.array_equal(nearest, before):
            break
        counts = np.bincount(nearest, minlength=len(centroids))
        sums = (nearest[None, :] == np.arange(len(centroids))[:, None]).astype(points.dtype) @ points
        centroids = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centroids).astype(points.dtype)
        before = nearest
    return centroids


def online(stream: HostArray, start: HostArray) -> HostArray:
    """(k, F) centroids after one pass."""
    centroids, counts = start.copy(), np.ones(len(start))
    for point in stream:
        nearest = np.argmin(np.sum((centroids - point) ** 2, axis=1))
        counts[nearest] += 1
        centroids[nearest] += (point - centroids[nearest]) / counts[nearest]
    return centroids


def nearest_in_turn(points: HostArray, centroids: HostArray, n: int) -> HostArray:
    """(n,) points, chosen by the centroids in turn."""
    apart = distances(points, centroids)
    squared = np.sum(points * points, axis=1, keepdims=True)
    sizes = np.bincount(np.argmin(apart, axis=1), minlength=len(centroids))
    turns = np.argsort(-sizes, kind="stable")
    orders = np.argsort(apart + squared, axis=0, kind="stable").T.tolist()
    at = [0] * len(centroids)
    taken = [False] * len(points)
    chosen: list[int] = []
    while len(chosen) < n:
        for centroid in turns[: n - len(chosen)].tolist():
            while taken[orders[centroid][at[centroid]]]:
                at[centroid] += 1
            point = orders[centroid][at[centroid]]
            taken[point] = True
            chosen.append(point)
    return np.asarray(chosen)
