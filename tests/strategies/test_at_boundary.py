"""Samples chosen when a task ends: inside the program as by ``clray.selection``, and where strategies put them."""

from __future__ import annotations

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clray.selection.base import interleaved
from clray.selection.herding import herd as numpy_herd
from clray.selection.kmeans import lloyd, nearest_in_turn
from clray.strategies.agem import AGEM
from clray.strategies.at_boundary import CENTROIDS, COMPARED, FIRST, ROUNDS, BoundaryKind, choose, cluster, greedy, herd, outputs
from clray.strategies.base import StaticSizes, TaskData
from clray.strategies.der import DER, DERPlusPlus
from clray.strategies.drawing import without_replacement
from clray.strategies.er import ER
from clray.strategies.gem import GEM
from clray.strategies.selection import rank_in_class
from clray.types import Batch
from tests.strategies.by_hand import N_INPUTS, context, random_params

N, C = 36, 3
SIZES = StaticSizes(n_tasks=3, classes_per_task=C, n_outputs=3, n_train=N, batch_size=4, input_shape=(N_INPUTS,), dtype="uint8")
KINDS = get_args(BoundaryKind)


def task_data(seed: int) -> TaskData:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (N, N_INPUTS)).astype(np.uint8)
    return TaskData(jnp.asarray(images), jnp.asarray(rng.permutation(N) % C, jnp.int32))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_different_and_balanced_where_that_is_meant(kind: Any) -> None:
    data = task_data(0)
    for n in (1, 7, 12, N):
        rows = np.asarray(choose(kind, random_params(1), data, n, context(sizes=SIZES)))
        assert rows.dtype == np.int32
        assert len(set(rows.tolist())) == n
        assert rows.min() >= 0
        assert rows.max() < N
        if kind in ("class_balanced", "kmeans", "herding"):
            counts = np.bincount(np.asarray(data.labels)[rows], minlength=C)
            assert counts.max() - counts.min() <= 1


def test_herding_is_that_of_the_selections() -> None:
    data = task_data(2)
    _, hidden = outputs(random_params(2), data.images, context(sizes=SIZES))
    labels = np.asarray(data.labels)
    own = [np.flatnonzero(labels == label) for label in range(C)]
    expected = interleaved([rows[numpy_herd(np.asarray(hidden)[rows], len(rows))] for rows in own])
    assert np.asarray(herd(hidden, data.labels, 12, C)).tolist() == expected[:12].tolist()


def test_lambda_is_that_of_the_selections() -> None:
    data, ctx = task_data(3), context(sizes=SIZES)
    p = np.asarray(jax.nn.softmax(outputs(random_params(3), data.images, ctx)[0]))
    expected = np.argsort(-np.sum(p * (1 - p), axis=1), kind="stable")[:9]
    assert np.asarray(choose("lambda", random_params(3), data, 9, ctx)).tolist() == expected.tolist()


def test_kmeans_is_that_of_the_selections() -> None:
    # So many samples that no cluster has just two, which would be equally far from their mean.
    rng, key, n_samples = np.random.default_rng(4), jax.random.key(7), 240
    hidden, labels = rng.normal(size=(n_samples, 3)).astype(np.float32), rng.permutation(n_samples) % C
    rank = np.asarray(rank_in_class(jnp.asarray(labels), jax.random.bits(key, (n_samples,))))
    orders = []
    for label in range(C):
        rows = np.flatnonzero(labels == label)
        start = hidden[rows][np.argsort(rank[rows])[:CENTROIDS]]
        orders.append(rows[nearest_in_turn(hidden[rows], lloyd(hidden[rows], start, ROUNDS), len(rows))])
    found = cluster(jnp.asarray(hidden), jnp.asarray(labels, jnp.int32), 15, C, key)
    assert np.asarray(found).tolist() == interleaved(orders)[:15].tolist()


def test_gss_is_the_loop_of_its_definition() -> None:
    rng, key, size = np.random.default_rng(5), jax.random.key(8), 6
    hidden, delta = rng.normal(size=(N, 4)).astype(np.float32), rng.normal(size=(N, 3)).astype(np.float32)
    in_order, in_draws = jax.random.split(key)
    stream = np.asarray(without_replacement(in_order, N, N))
    draws = np.asarray(jax.random.uniform(in_draws, (N, COMPARED + 2)))
    gradients = np.einsum("ni,no->nio", np.pad(hidden, ((0, 0), (0, 1)), constant_values=1.0), delta).reshape(N, -1).astype(np.float64)
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    memory, scores, replaced = [int(stream[0])], [FIRST], 0
    for x, draw in zip(stream[1:].tolist(), draws[1:], strict=True):
        places = [min(int(np.float32(u) * np.float32(len(memory))), len(memory) - 1) for u in draw[:-2]]
        score = 1.0 + max(unit[x] @ unit[memory[i]] for i in places)
        if len(memory) < size:
            memory.append(x)
            scores.append(score)
        elif score < 1.0:
            place = min(int(np.searchsorted(np.cumsum(scores), draw[-2] * sum(scores), side="right")), size - 1)
            if draw[-1] < scores[place] / (scores[place] + score):
                memory[place], scores[place] = x, score
                replaced += 1
    assert np.asarray(greedy(jnp.asarray(hidden), jnp.asarray(delta), size, key)).tolist() == memory
    assert replaced


def test_a_class_without_samples_leaves_its_turns_to_the_others() -> None:
    data = task_data(6)._replace(labels=jnp.asarray([0] * 2 + [1] * 17 + [2] * 17, jnp.int32))
    for kind in ("class_balanced", "kmeans", "herding"):
        rows = np.asarray(choose(kind, random_params(6), data, 15, context(sizes=SIZES)))  # type: ignore[arg-type]
        assert len(set(rows.tolist())) == 15
        assert np.bincount(np.asarray(data.labels)[rows], minlength=3)[0] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_projections_remember_what_is_chosen(kind: Any) -> None:
    for options, size in ((GEM(name="gem", memory_size=6, selection=kind), 6), (AGEM(name="agem", memory_size=18, selection=kind), 6)):
        strategy, data, ctx = options.build(), task_data(7), context(task=1, sizes=SIZES)
        state = strategy.init(random_params(0), SIZES)
        state = strategy.end_task(state, random_params(1), data, ctx)
        rows = choose(kind, random_params(1), data, size, ctx)
        assert np.array_equal(state.images[1], data.images[rows])
        assert not np.asarray(state.images[0]).any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "class_balanced"])
@pytest.mark.parametrize("options", [ER, DER, DERPlusPlus])
def test_replay_draws_from_what_was_chosen_of_earlier_tasks(kind: Any, options: Any) -> None:
    strategy = options(name="er", memory_size=12, replay_batch=40, selection=kind).build()
    params, state = random_params(1), strategy.init(random_params(0), SIZES)
    batch = Batch(task_data(9).images[:4], task_data(9).labels[:4], jnp.ones(4))
    _, untouched = strategy.batch(state, batch, context(task=0, sizes=SIZES, alpha=0.5))
    assert not np.asarray(untouched.weights[4:]).any()
    chosen: set[bytes] = set()
    for task in range(2):
        data, ctx = task_data(10 + task), context(task=task, seed=task, sizes=SIZES)
        rows = choose(kind, params, data, 4, ctx)
        chosen |= {image.tobytes() for image in np.asarray(data.images[rows])}
        state = strategy.end_task(state, params, data, ctx)
    after, replayed = strategy.batch(state, batch, context(task=2, seed=5, sizes=SIZES, alpha=0.5))
    assert {image.tobytes() for image in np.asarray(replayed.images[4:])} <= chosen
    assert len({image.tobytes() for image in np.asarray(replayed.images[4:])}) > 4
    if options is not ER:
        drawn = outputs(params, replayed.images[4:44], context(sizes=SIZES))[0]
        assert np.allclose(after.logits, drawn, atol=1e-6)  # logits of the network that had just learnt the task
