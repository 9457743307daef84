"""Each selection against a slow version written from its definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from clray.selection import gss as gss_module
from clray.selection.class_balanced import ClassBalanced
from clray.selection.gss import FIRST, GSS
from clray.selection.herding import Herding, herd
from clray.selection.kmeans import KMeans, lloyd, nearest_in_turn, online
from clray.selection.random import Random
from clray.selection.reservoir import reservoir
from clray.selection.uncertainty import Uncertainty
from tests.selection.views import made_up_view


def test_reservoir_is_the_loop_of_its_definition() -> None:
    stream = np.random.default_rng(1).permutation(50)
    for size in (1, 7, 49):
        rng = np.random.default_rng(2)
        places = rng.integers(0, np.arange(size, 50) + 1)
        kept = stream[:size].copy()
        for number in range(size, 50):
            if places[number - size] < size:
                kept[places[number - size]] = stream[number]
        assert np.array_equal(reservoir(stream, size, np.random.default_rng(2)), kept)


def test_reservoir_keeps_every_sample_with_the_same_probability() -> None:
    rng = np.random.default_rng(3)
    counts = np.bincount(np.concatenate([reservoir(np.arange(20), 5, rng) for _ in range(4000)]), minlength=20)
    assert chisquare(counts).pvalue > 1e-3


def test_random_and_balanced_orders_begin_with_every_sample_equally_often() -> None:
    view = made_up_view(20, 2, seed=4)
    rng = np.random.default_rng(5)
    for method in (Random(name="random"), ClassBalanced(name="class_balanced")):
        counts = np.bincount(np.concatenate([method.rank(view, rng, 4)[:4] for _ in range(4000)]), minlength=20)
        assert chisquare(counts).pvalue > 1e-3


def test_lloyd_is_the_loop_of_its_definition() -> None:
    rng = np.random.default_rng(6)
    points = rng.normal(size=(40, 3)).astype(np.float32)
    start = np.concatenate([points[:4], np.full((1, 3), 50.0, np.float32)])  # nothing is nearest to the last one
    centroids = start.astype(np.float64)
    for _ in range(6):
        nearest = [int(np.argmin([np.sum((p - c) ** 2) for c in centroids])) for p in points]
        for k in range(5):
            own = [p for p, at in zip(points, nearest, strict=True) if at == k]
            if own:
                centroids[k] = np.mean(own, axis=0)
    assert np.allclose(lloyd(points, start, 6), centroids, atol=1e-5)
    assert np.array_equal(lloyd(points, start, 6)[4], start[4])


def test_online_kmeans_is_a_running_mean_of_what_came_nearest() -> None:
    rng = np.random.default_rng(7)
    points, start = rng.normal(size=(30, 2)), rng.normal(size=(3, 2))
    members = [[c] for c in start]
    for point in points:
        means = [np.mean(own, axis=0) for own in members]
        members[int(np.argmin([np.sum((point - m) ** 2) for m in means]))].append(point)
    assert np.allclose(online(points, start), [np.mean(own, axis=0) for own in members])


def test_centroids_choose_their_nearest_free_sample_in_turn() -> None:
    rng = np.random.default_rng(8)
    points, centroids = rng.normal(size=(25, 2)).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32)
    apart = np.array([[np.sum((p - c) ** 2) for c in centroids] for p in points])
    sizes = np.bincount(apart.argmin(axis=1), minlength=4)
    turns = sorted(range(4), key=lambda k: -sizes[k])
    chosen: list[int] = []
    for number in range(25):
        free = [i for i in range(25) if i not in chosen]
        chosen.append(min(free, key=lambda i: apart[i, turns[number % 4]]))
    assert nearest_in_turn(points, centroids, 25).tolist() == chosen
    assert nearest_in_turn(points, centroids, 3).tolist() == chosen[:3]


@pytest.mark.parametrize("in_memory", [True, False])
def test_herding_is_the_greedy_choice_of_its_definition(monkeypatch: pytest.MonkeyPatch, in_memory: bool) -> None:
    monkeypatch.setattr("clray.selection.herding.MOST_IN_MEMORY", 10**6 if in_memory else 0)
    hidden = np.abs(np.random.default_rng(9).normal(size=(30, 4)))
    hidden[3] = 0.0
    phi = np.array([h / np.linalg.norm(h) if h.any() else h for h in hidden])
    chosen: list[int] = []
    for k in range(1, 31):
        free = [i for i in range(30) if i not in chosen]
        chosen.append(min(free, key=lambda i: np.linalg.norm(phi.mean(axis=0) - (phi[i] + phi[chosen].sum(axis=0)) / k)))
    assert herd(hidden, 30).tolist() == chosen


def test_lambda_takes_the_largest_trace_first() -> None:
    view = made_up_view(30, 3, seed=10)
    p = view.probabilities().astype(np.float64)
    trace = [np.trace(np.diag(row) - np.outer(row, row)) for row in p]
    order = Uncertainty(name="lambda").rank(view, np.random.default_rng(0), 30)
    assert sorted(order.tolist()) == list(range(30))
    assert np.all(np.diff(np.array(trace)[order]) <= 1e-12)
    balanced = Uncertainty(name="lambda", balanced=True).rank(view, np.random.default_rng(0), 30)
    for label in range(3):
        own = balanced[view.labels[balanced] == label]
        assert np.array_equal(own, order[view.labels[order] == label])


def slow_gss(gradients: np.ndarray, stream: np.ndarray, size: int, batch: int, rng: np.random.Generator) -> list[int]:
    """The loop of the definition over whole gradients."""
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    memory, scores = [int(stream[0])], [FIRST]
    draws = np.concatenate(
        [
            rng.random((min(gss_module.BLOCK, len(stream) - start), batch + 2), np.float32)
            for start in range(0, len(stream), gss_module.BLOCK)
        ]
    )
    for x, draw in zip(stream[1:].tolist(), draws[1:], strict=True):
        places = [min(int(u * np.float32(len(memory))), len(memory) - 1) for u in draw[:-2]]
        score = 1.0 + max(unit[x] @ unit[memory[i]] for i in places)
        if len(memory) < size:
            memory.append(x)
            scores.append(score)
        elif score < 1.0:
            place = min(int(np.searchsorted(np.cumsum(scores), draw[-2] * sum(scores), side="right")), size - 1)
            if draw[-1] < scores[place] / (scores[place] + score):
                memory[place], scores[place] = x, score
    return memory


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("block", [512, 13])
def test_gss_is_the_loop_of_its_definition(monkeypatch: pytest.MonkeyPatch, batch: int, block: int) -> None:
    monkeypatch.setattr(gss_module, "BLOCK", block)
    view = made_up_view(60, 2, seed=11)
    gradients = np.concatenate(
        [np.einsum("ni,no->nio", np.pad(a, ((0, 0), (0, 1)), constant_values=1.0), d).reshape(60, -1) for a, d in view.factors()], axis=1
    ).astype(np.float64)
    sizes = [3, 10, 40]
    (found,) = GSS(name="gss", batch=batch).select(view, sizes, 1, lambda draw, size: np.random.default_rng([12, draw, size]))
    for size, rows in zip(sizes, found, strict=True):
        expected = slow_gss(gradients, view.stream, size, batch, np.random.default_rng([12, 0, size]))
        assert rows.tolist() == expected
    assert found[0].tolist() != view.stream[:3].tolist()  # something was replaced


def test_gss_of_the_head_within_each_class_is_a_pass_over_the_class() -> None:
    view = made_up_view(60, 2, seed=13)
    hidden, head = view.factors()[-1]
    gradients = np.einsum("ni,no->nio", np.pad(hidden, ((0, 0), (0, 1)), constant_values=1.0), head).reshape(60, -1).astype(np.float64)
    method = GSS(name="gss", batch=2, gradients="head", balanced=True)
    ((found,),) = method.select(view, [8], 1, lambda draw, size: np.random.default_rng([14, draw, size]))
    rng = np.random.default_rng([14, 0, 8])
    parts = [slow_gss(gradients, view.stream[view.labels[view.stream] == label], 4, 2, rng) for label in range(2)]
    assert found.tolist() == [row for pair in zip(*parts, strict=True) for row in pair]


@pytest.mark.parametrize("variant", ["batch", "streaming"])
@pytest.mark.parametrize("on", ["pixels", "hidden"])
def test_kmeans_of_a_task_clusters_each_class_by_what_it_was_told(variant: str, on: str) -> None:
    view = made_up_view(90, 3, seed=15)
    features = view.pixels() if on == "pixels" else view.hidden()
    rng, parts = np.random.default_rng(16), []
    for label in range(3):
        rows = [row for row in range(90) if view.labels[row] == label]
        centroids = [features[rows[i]].astype(np.float64) for i in rng.choice(len(rows), 4, replace=False)]
        had = [1] * 4
        for _ in range(20 if variant == "batch" else 0):
            near = [int(np.argmin([np.sum((features[row] - c) ** 2) for c in centroids])) for row in rows]
            own = [[features[row] for row, at in zip(rows, near, strict=True) if at == k] for k in range(4)]
            centroids = [np.mean(own[k], axis=0, dtype=np.float64) if own[k] else centroids[k] for k in range(4)]
        for row in [row for row in view.stream.tolist() if row in rows] if variant == "streaming" else []:
            k = int(np.argmin([np.sum((features[row] - c) ** 2) for c in centroids]))
            had[k] += 1
            centroids[k] = centroids[k] + (features[row] - centroids[k]) / had[k]
        near = [int(np.argmin([np.sum((features[row] - c) ** 2) for c in centroids])) for row in rows]
        turns, chosen = sorted(range(4), key=lambda k: -near.count(k)), []
        for number in range(6):
            centroid = centroids[turns[number % 4]]
            chosen.append(min((row for row in rows if row not in chosen), key=lambda row: np.sum((features[row] - centroid) ** 2)))
        parts.append(chosen)
    found = KMeans(name="kmeans", variant=variant, on=on).rank(view, np.random.default_rng(16), 18)
    assert found[:18].tolist() == [row for turn in zip(*parts, strict=True) for row in turn]


def test_herding_of_a_task_takes_one_of_each_class_in_turn() -> None:
    view = made_up_view(60, 3, seed=17)
    phi = np.array([h / np.linalg.norm(h) if h.any() else h for h in view.hidden().astype(np.float64)])
    parts = []
    for label in range(3):
        rows = np.flatnonzero(view.labels == label).tolist()
        chosen: list[int] = []
        for k in range(1, 6):
            free = [row for row in rows if row not in chosen]
            mean = phi[rows].mean(axis=0)
            chosen.append(min(free, key=lambda row: np.linalg.norm(mean - (phi[row] + phi[chosen].sum(axis=0)) / k)))
        parts.append(chosen)
    found = Herding(name="herding").rank(view, np.random.default_rng(0), 15)
    assert found[:15].tolist() == [row for turn in zip(*parts, strict=True) for row in turn]
