"""Whole trials against training written from the definition, file by file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from tests.core.plain_loop import (
    TOLERANCE,
    Differentiated,
    Mlp,
    Params,
    Plain,
    Source,
    assert_accuracy_equals,
    assert_trial_equals,
    digits,
    relu,
    torch_sgd,
)
from tests.core.tiny import OneTrial, table, tiny


def test_sgd_with_momentum_and_weight_decay(base_trial: OneTrial) -> None:
    assert_trial_equals(Plain(digits(), Mlp(), torch_sgd(0.05, momentum=0.9, weight_decay=1e-3), base_trial))


def test_initial_folder_is_the_evaluation_of_fresh_weights(base_trial: OneTrial) -> None:
    plain, initial = Plain(digits(), Mlp(), torch_sgd(0.05), base_trial), base_trial.folder / "initial"
    fresh = plain.initial()
    evaluated = [plain.evaluate(params, repeat) for repeat, params in enumerate(fresh)]
    metrics = table(initial, "metrics.parquet")
    assert set(metrics["step"]) == {0}
    assert_accuracy_equals(metrics["accuracy"], np.stack([one["accuracy"] for one in evaluated]))
    np.testing.assert_allclose(metrics["loss"], np.concatenate([one["loss"] for one in evaluated]), rtol=TOLERANCE)
    representations = np.load(initial / "representations.npy")
    np.testing.assert_allclose(representations, np.stack([one["hidden"] for one in evaluated])[None], rtol=TOLERANCE, atol=TOLERANCE)
    for name in fresh[0]:
        np.testing.assert_array_equal(np.load(initial / f"weights.{name}.npy"), np.stack([params[name] for params in fresh])[None])


def test_eval_samples_are_the_first_test_samples_of_each_class(base_trial: OneTrial) -> None:
    np.testing.assert_array_equal(np.load(base_trial.folder / "eval_samples.npy"), [rows[:3] for rows in digits().test_indices])


def warmup_cosine(rate: float, done: int, total: int, warmup: float, final: float) -> float:
    """Linear over the first part of the batches, then half a cosine (Loshchilov & Hutter 2017, equation 5)."""
    if done / total < warmup:
        return rate * min((done + 1) / (warmup * total), 1.0)
    return rate * (final + (1 - final) * 0.5 * (1 + np.cos(np.pi * (done / total - warmup) / (1 - warmup))))


def test_adam_with_a_schedule_over_the_sequence(finished: Callable[..., OneTrial]) -> None:
    schedule = {"name": "warmup_cosine", "per": "sequence", "warmup_fraction": 0.25, "final": 0.1}
    optimizer = {"name": "adam", "learning_rate": 0.003, "b1": 0.8, "b2": 0.99, "eps": 1e-6, "weight_decay": 0.01, "schedule": schedule}
    trial = finished(tiny(n_repeats=2, optimizer=optimizer))

    def forward(params: Params, x: Any) -> tuple[Any, Any]:
        hidden = relu(x @ params["hidden.0.kernel"] + params["hidden.0.bias"])
        return hidden @ params["head.kernel"] + params["head.bias"], hidden

    def update(params: Params, gradient: Params, state: Any, done: int) -> tuple[Params, Any]:
        rate = warmup_cosine(0.003, done, 45, 0.25, 0.1)
        adam = optax.chain(optax.add_decayed_weights(0.01), optax.adam(rate, b1=0.8, b2=0.99, eps=1e-6))
        updates, state = adam.update(gradient, adam.init(params) if state is None else state, params)
        return optax.apply_updates(params, updates), state

    assert_trial_equals(Plain(digits(), Differentiated(forward), update, trial))


@pytest.fixture
def colours(tmp_path: Path) -> tuple[Path, Source]:
    """Random uint8 colour images of four classes that differ in brightness, and the same as normalised floats."""
    rng = np.random.default_rng(5)
    labels = {"train": rng.permutation(np.repeat(np.arange(4), 20)), "test": rng.permutation(np.repeat(np.arange(4), 9))}
    images = {}
    for part, own in labels.items():
        noise = rng.integers(0, 160, (len(own), 3, 4, 3))
        images[part] = (noise + 25 * own[:, None, None, None] + [0, 10, 20]).clip(0, 255).astype(np.uint8)
        np.save(tmp_path / f"X_{part}.npy", images[part])
        np.save(tmp_path / f"y_{part}.npy", own)
    pixels = images["train"].astype(np.float64) / 255.0
    mean, deviation = pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))
    seen = {part: ((images[part] / 255.0 - mean) / deviation).reshape(len(labels[part]), -1) for part in labels}
    members = {part: [np.flatnonzero(labels[part] == k) for k in range(4)] for part in labels}
    by_class = {part: [seen[part][rows] for rows in members[part]] for part in labels}
    return tmp_path, Source(by_class["train"], by_class["test"], members["test"])


def test_normalised_colour_images_with_steps_and_fresh_optimizers(colours: tuple[Path, Source], finished: Callable[..., OneTrial]) -> None:
    folder, source = colours
    experiment = tiny(
        n_repeats=2,
        sequence={"n_tasks": 2},
        dataset={"name": "arrays", "root": str(folder), "train_per_class": 12, "normalize": "standard"},
        model={"name": "mlp", "hidden": [10, 8]},
        optimizer={"name": "sgd", "learning_rate": 0.02, "momentum": 0.8, "nesterov": True, "schedule": {"name": "cosine", "final": 0.2}},
        training={"steps": 7, "batch_size": 8, "reset_optimizer": True},
        logging={"log_frequency": 3, "representations": "none", "eval_tasks": [1, 0], "n_subsamples": 2},
    )
    trial = finished(experiment)

    def update(params: Params, gradient: Params, state: Any, done: int) -> tuple[Params, Any]:
        rate = 0.02 * (0.2 + 0.8 * 0.5 * (1 + np.cos(np.pi * (done % 7) / 7)))  # over the 7 batches of each task
        return torch_sgd(rate, momentum=0.8, nesterov=True)(params, gradient, state, done)

    assert_trial_equals(Plain(source, Mlp(), update, trial, reset_optimizer=True))
    assert not list(trial.folder.rglob("representations.npy"))


def convolutional(params: Params, x: Any) -> tuple[Any, Any]:
    """Three blocks of convolution, relu and 2 x 2 maximum, then two dense layers."""
    for block in ("blocks.0", "blocks.1", "blocks.2"):
        x = jax.lax.conv_general_dilated(x, params[f"{block}.kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = relu(x + params[f"{block}.bias"])
        n, height, width, channels = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
    hidden = relu(x.reshape(len(x), -1) @ params["hidden.kernel"] + params["hidden.bias"])
    return hidden @ params["head.kernel"] + params["head.bias"], hidden


def test_cnn_on_three_classes_without_weights(finished: Callable[..., OneTrial]) -> None:
    experiment = tiny(
        repeats=[2],
        sequence={"n_tasks": 2, "classes_per_task": 3, "policy": "reuse"},
        dataset={"name": "digits", "train_per_class": 20},
        model={"name": "cnn", "channels": [3, 4, 5], "hidden": 9},
        optimizer={"name": "sgd", "learning_rate": 0.1},
        training={"epochs": 2, "batch_size": 20},
        logging={"log_frequency": 3, "weights": False, "n_subsamples": 6},
    )
    # Another random generator, as the default one takes five seconds to compile for the five layers' initial weights.
    with jax.default_prng_impl("unsafe_rbg"):
        trial = finished(experiment)
        plain = Plain(digits((8, 8, 1)), Differentiated(convolutional), torch_sgd(0.1), trial)
        assert_trial_equals(plain)
    assert not list(trial.folder.rglob("weights.*"))
    metrics, end = (table(trial.folder / "task_001", f"{name}.parquet") for name in ("metrics", "end"))
    for name in ("accuracy", "loss"):  # no batch is trained after the last log
        np.testing.assert_array_equal(metrics[name][-2:], end[name])
