"""Evaluation factored by class equals evaluating every task on its own test samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clray.assembly import evaluation_pool
from clray.core.evaluate import Evaluation
from clray.core.lanes import ChunkedLanes, plan_chunks
from clray.core.task import evaluate_lanes, fresh_lanes
from tests.core.plain_loop import Mlp, cross_entropy, digits
from tests.core.tiny import OneTrial, prepare, table, tiny

N_TESTED = 35
"""Test samples of the smallest class of digits."""

ACCURACY = 2e-7
"""One hit more or less is 1/70: only the rounding of the division in float32 is let through."""

LOSS = 1e-6
"""Losses of order 1; both sides compute a mean over 70 samples in float32 or better. Measured: below 4e-7."""


def direct(weights: dict[str, np.ndarray], classes: np.ndarray) -> tuple[float, float]:
    """Accuracy and loss of one network on one task, sample by sample of the task's own test set."""
    source = digits()
    images = np.concatenate([source.test[k][:N_TESTED] for k in classes])
    labels = np.repeat(np.arange(len(classes)), N_TESTED)
    logits = Mlp()(weights, images)[0]
    return float((logits.argmax(axis=1) == labels).mean()), cross_entropy(logits, labels)


@pytest.mark.parametrize("folder", ["initial", "task_000", "task_001", "task_002"])
def test_metrics_follow_from_the_saved_weights_and_the_real_test_samples(base_trial: OneTrial, folder: str) -> None:
    path = base_trial.folder / folder
    weights = {file.name[len("weights.") : -len(".npy")]: np.load(file).astype(np.float64) for file in path.glob("weights.*.npy")}
    classes, found = np.load(base_trial.folder / "classes.npy"), table(path, "metrics.parquet")
    assert len(weights) == 4
    n_logs = len(weights["head.bias"])
    accuracy, loss = (found[name].reshape(n_logs, 4, 3) for name in ("accuracy", "loss"))
    for log, repeat, task in np.ndindex(n_logs, 4, 3):
        own = {name: array[log, repeat] for name, array in weights.items()}
        expected = direct(own, classes[task, repeat])
        assert accuracy[log, repeat, task] == pytest.approx(expected[0], abs=ACCURACY)
        assert loss[log, repeat, task] == pytest.approx(expected[1], abs=LOSS)


@pytest.mark.parametrize("folder", ["initial", "task_001"])
def test_representations_follow_from_the_saved_weights_and_eval_samples(base_trial: OneTrial, folder: str) -> None:
    path, source = base_trial.folder / folder, digits()
    test_images = {int(index): image for k in range(10) for index, image in zip(source.test_indices[k], source.test[k], strict=True)}
    kernel, bias = (np.load(path / f"weights.hidden.0.{name}.npy").astype(np.float64) for name in ("kernel", "bias"))
    classes, samples = np.load(base_trial.folder / "classes.npy"), np.load(base_trial.folder / "eval_samples.npy")
    found = np.load(path / "representations.npy")
    assert found.shape[1:] == (4, 3, 6, 16)
    for log, repeat, task in np.ndindex(*found.shape[:3]):
        images = np.stack([test_images[int(index)] for k in classes[task, repeat] for index in samples[k]])
        expected = np.maximum(images @ kernel[log, repeat] + bias[log, repeat], 0.0)
        np.testing.assert_allclose(found[log, repeat, task], expected, atol=1e-6)


def evaluate_fresh(trial: OneTrial, eval_rows: int) -> tuple[Any, Evaluation]:
    """Fresh weights of all lanes, and their evaluation in blocks of ``eval_rows`` samples."""
    pack = trial.pack
    spec = dataclasses.replace(pack.spec, eval_rows=eval_rows)
    lanes = ChunkedLanes(pack.spec, trial.lanes(), pack.pools, plan_chunks(4, jax.local_devices()[:1], 4))
    (state,) = lanes.init()
    found = evaluate_lanes(spec, state, lanes.lanes_of[0], lanes.pools_on[jax.local_devices()[0]], np.int32(0))
    return jax.device_get(state.params), jax.device_get(found)


@pytest.mark.parametrize(
    ("n_tasks", "eval_rows"),
    [(3, 2048), (3, 3 * N_TESTED), (5, 2048), (5, 16)],
    ids=["six of ten classes at once", "six classes, three at a time", "all ten at once", "all ten, a class in three uneven passes"],
)
def test_blocks_do_not_change_the_evaluation(base_trial: OneTrial, tmp_path: Path, n_tasks: int, eval_rows: int) -> None:
    trial = base_trial if n_tasks == 3 else prepare(tiny(sequence={"n_tasks": 5}), folder=tmp_path / "five")[0]
    params, found = evaluate_fresh(trial, eval_rows)
    assert found.hidden.shape == (4, 2 * n_tasks, 3, 16)
    for repeat, task in np.ndindex(4, n_tasks):
        own = {name: leaf[repeat].astype(np.float64) for name, leaf in params.items()}
        accuracy, loss = direct(own, trial.draw.classes[task, repeat])
        assert found.accuracy[repeat, task] == pytest.approx(accuracy, abs=ACCURACY)
        assert found.loss[repeat, task] == pytest.approx(loss, abs=LOSS)
    for repeat, (pool, hidden) in enumerate(zip(trial.draw.pool, found.hidden, strict=True)):
        own = {name: leaf[repeat].astype(np.float64) for name, leaf in params.items()}
        for k, kept in zip(pool, hidden, strict=True):
            np.testing.assert_allclose(kept, Mlp()(own, digits().test[k][:3])[1], atol=1e-6)


@pytest.mark.parametrize("eval_rows", [5 * N_TESTED, 15], ids=["five of ten classes at once", "a class in three uneven passes"])
def test_blocks_do_not_change_the_evaluation_on_a_gpu(
    base_trial: OneTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eval_rows: int
) -> None:
    """Where lanes share the images of each block."""
    asked = []
    monkeypatch.setattr(jax, "default_backend", lambda: asked.append(None) or "gpu")
    test_blocks_do_not_change_the_evaluation(base_trial, tmp_path, 5, eval_rows)
    assert asked


def test_accuracy_is_the_exact_fraction(tmp_path: Path) -> None:
    """11 of 55 hits are 0.2 and not 0.19999999; multiplying by a rounded 1/55 also makes 55 of 55 less than 1."""
    experiment = tiny(
        sequence={"n_tasks": 2, "classes_per_task": 5},
        dataset={"name": "digits", "train_per_class": 42, "test_per_class": 11},
        logging={"log_frequency": 4, "n_subsamples": 10},
    )
    (trial,) = prepare(experiment, folder=tmp_path / "sweep")
    lanes = ChunkedLanes(trial.pack.spec, trial.lanes(), trial.pack.pools, plan_chunks(4, jax.local_devices()[:1], 4))
    shapes = jax.eval_shape(lambda lanes: fresh_lanes(trial.pack.spec, lanes, np.int32(0)), trial.lanes())
    always_label_0 = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    np.testing.assert_array_equal(lanes.snapshot([always_label_0]).accuracy, np.full((1, 4, 2), np.float32(11 / 55)))


def test_pool_holds_the_classes_of_all_evaluated_tasks_and_labels_point_at_them() -> None:
    rng = np.random.default_rng(0)
    classes = np.stack([[rng.permutation(20)[:3] for _ in range(4)] for _ in range(5)])  # (E, R, C)
    pool, labels = evaluation_pool(classes, 20, 15)
    assert pool.shape == (4, 15)
    for repeat in range(4):
        assert len(set(pool[repeat])) == 15
        np.testing.assert_array_equal(pool[repeat][labels[repeat]], classes[:, repeat])


def test_pool_over_all_classes_is_in_the_order_of_the_source() -> None:
    pool, _ = evaluation_pool(np.array([[[7, 2]], [[2, 5]]]), 8, 8)
    np.testing.assert_array_equal(pool[0], np.arange(8))
