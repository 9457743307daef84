"""Whole trials against training written from the definition: Python loops over tasks, repeats and batches, no vmap, no scan.

The plain side reads the data from its source, derives nothing from clray but the initial weights and the data order (which
``tests/data/test_order.py`` looks at), and computes in double precision where the gradient is written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from clray.core.task import init_lanes
from clray.data.order import batch_order
from clray.experiment import Expert, TrialRun, make_lanes
from clray.types import Purpose
from tests.core.conftest import Arrays, folder_of, prepare, table, tiny

TOLERANCE = 1e-5
"""Numbers are of order 1 and float32 rounds at 6e-8; 45 steps add up and amplify some ten times that. Measured: below 2e-6."""

Params = dict[str, Any]


@dataclass
class Source:
    """Images (n, ...) as the model sees them, by class, in the source's order."""

    train: list[np.ndarray]
    test: list[np.ndarray]
    test_indices: list[np.ndarray]  # where the images of each class stand in the test split


def digits(shape: tuple[int, ...] = (64,)) -> Source:
    """scikit-learn's digits: the first 80% of each class train, the rest test, in the source's order."""
    bunch = load_digits()
    images = (bunch.images / 16.0).reshape(len(bunch.images), *shape)
    members = [np.flatnonzero(bunch.target == label) for label in range(10)]
    train = [rows[: len(rows) * 8 // 10] for rows in members]
    test = [rows[len(rows) * 8 // 10 :] for rows in members]
    order = np.sort(np.concatenate(test))
    return Source([images[rows] for rows in train], [images[rows] for rows in test], [np.searchsorted(order, rows) for rows in test])


class Mlp:
    """A network of relu layers; forward and backward by hand."""

    def forward(self, params: Params, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Logits, hidden, and the inputs of all layers."""
        inputs = [x]
        for layer in range(len(params) // 2 - 1):
            x = np.maximum(x @ params[f"hidden.{layer}.kernel"] + params[f"hidden.{layer}.bias"], 0.0)
            inputs.append(x)
        return x @ params["head.kernel"] + params["head.bias"], x, inputs

    def __call__(self, params: Params, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.forward(params, x)[:2]

    def gradient(self, params: Params, x: np.ndarray, y: np.ndarray) -> Params:
        """Of the mean cross-entropy of a batch."""
        logits, _, inputs = self.forward(params, x)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        delta = (probabilities - np.eye(logits.shape[1])[y]) / len(y)
        gradient: Params = {}
        names = [f"hidden.{layer}" for layer in range(len(params) // 2 - 1)] + ["head"]
        for name, entered in zip(reversed(names), reversed(inputs), strict=True):
            gradient[f"{name}.kernel"], gradient[f"{name}.bias"] = entered.T @ delta, delta.sum(axis=0)
            delta = (delta @ params[f"{name}.kernel"].T) * (entered > 0)
        return gradient


class Differentiated:
    """A forward function written in jax.numpy, with its gradient by ``jax.grad``, in float32."""

    def __init__(self, forward: Callable[[Params, Any], tuple[Any, Any]]):
        def loss(params: Params, x: Any, y: Any) -> Any:
            logits = forward(params, x)[0]
            return (jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(y)), y]).mean()

        self._forward, self._gradient = jax.jit(forward), jax.jit(jax.grad(loss))

    def __call__(self, params: Params, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, hidden = self._forward(params, x.astype(np.float32))
        return np.asarray(logits), np.asarray(hidden)

    def gradient(self, params: Params, x: np.ndarray, y: np.ndarray) -> Params:
        """Of the mean cross-entropy of a batch."""
        return self._gradient(params, x.astype(np.float32), y)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over a batch."""
    logits = logits.astype(np.float64)
    top = logits.max(axis=1)
    return float((np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(labels)), labels]).mean())


Update = Callable[[Params, Params, Any, int], tuple[Params, Any]]
"""(params, gradient, optimizer state or None, batches done so far) -> (params, state)."""


def torch_sgd(rate: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False) -> Update:
    """v = momentum * v + (g + weight_decay * w); w = w - rate * v; nesterov steps by g + momentum * v."""

    def update(params: Params, gradient: Params, state: Any, done: int) -> tuple[Params, Any]:
        state = state or {name: np.zeros_like(value) for name, value in params.items()}
        decayed = {name: gradient[name] + weight_decay * value for name, value in params.items()}
        state = {name: momentum * state[name] + decayed[name] for name in params}
        step = {name: decayed[name] + momentum * state[name] if nesterov else state[name] for name in params}
        return {name: value - rate * step[name] for name, value in params.items()}, state

    return update


@dataclass
class Plain:
    """One trial's definition."""

    source: Source
    model: Any
    update: Update
    classes: np.ndarray  # (T, R, C)
    run: TrialRun
    reset_optimizer: bool = False

    def data(self, task: int, repeat: int) -> tuple[np.ndarray, np.ndarray]:
        """(N, ...) and (N,): label 0's first samples, then label 1's."""
        per_class = self.run.experiment.dataset.train_per_class
        images = [self.source.train[k][:per_class] for k in self.classes[task, repeat]]
        return np.concatenate(images), np.repeat(np.arange(len(images)), per_class)

    def evaluate(self, params: Params, repeat: int, tasks: tuple[int, ...] | None = None) -> dict[str, np.ndarray]:
        """Accuracy and loss (E,) and hidden (E, S, H), task by task on the real test samples."""
        found: dict[str, list[Any]] = {"accuracy": [], "loss": [], "hidden": []}
        n_tested = min(len(images) for images in self.source.test)
        for task in tasks or self.run.experiment.eval_task_numbers:
            own = [self.source.test[k][:n_tested] for k in self.classes[task, repeat]]
            labels = np.repeat(np.arange(len(own)), n_tested)
            logits, hidden = self.model(params, np.concatenate(own))
            found["accuracy"].append((logits.argmax(axis=1) == labels).mean())
            found["loss"].append(cross_entropy(logits, labels))
            kept = hidden.reshape(len(own), n_tested, -1)[:, : self.run.sizes.n_kept]
            found["hidden"].append(kept.reshape(-1, hidden.shape[1]))
        return {name: np.stack(values) for name, values in found.items()}

    def initial(self, repeat: int, task: int = 0, purpose: Purpose = Purpose.INIT) -> Params:
        """Fresh weights of one repeat as the library draws them."""
        lane = jax.tree.map(lambda leaf: leaf[repeat : repeat + 1], make_lanes(self.run.experiment, self.run.pool, self.run.labels))
        params = init_lanes(self.run.spec, lane, np.int32(task), purpose).params
        return {name: np.asarray(leaf[0]) for name, leaf in params.items()}

    def task(
        self, params: Params, state: Any, task: int, repeat: int, done: int, tasks: tuple[int, ...] | None = None
    ) -> tuple[Params, Any, dict[str, np.ndarray]]:
        """One task of one repeat, and what is logged of it."""
        sizes, every = self.run.sizes, self.run.experiment.logging.log_frequency
        images, labels = self.data(task, repeat)
        number = self.run.experiment.repeat_numbers[repeat]
        order = batch_order(self.run.experiment.seed, number, task, len(images), sizes.batch_size, sizes.total_batches)
        logs: dict[str, list[Any]] = {}
        window: list[tuple[float, float]] = []
        for batch, chosen in enumerate(order):
            x, y = images[chosen], labels[chosen]
            logits = self.model(params, x)[0]
            window.append(((logits.argmax(axis=1) == y).mean(), cross_entropy(logits, y)))
            params, state = self.update(params, self.model.gradient(params, x, y), state, done + batch)
            if (batch + 1) % every == 0:
                entry = {**self.evaluate(params, repeat, tasks), "step": batch + 1}
                entry["train_accuracy"], entry["train_loss"] = np.mean(window, axis=0)
                entry |= {f"weights.{name}": np.asarray(value) for name, value in params.items()}
                window = []
                for name, value in entry.items():
                    logs.setdefault(name, []).append(value)
        found = {name: np.stack(values) for name, values in logs.items()}
        end = self.evaluate(params, repeat, tasks)
        return params, state, found | {"end_accuracy": end["accuracy"], "end_loss": end["loss"]}

    def tasks(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """For each task, its logs with the repeats (R) behind the log axis, or in front where there is none."""
        params = [self.initial(repeat) for repeat in range(self.run.sizes.n_repeats)]
        states: list[Any] = [None] * len(params)
        for task in range(self.run.sizes.n_tasks):
            found = []
            for repeat in range(len(params)):
                kept = None if self.reset_optimizer else states[repeat]
                done = task * self.run.sizes.total_batches
                params[repeat], states[repeat], logs = self.task(params[repeat], kept, task, repeat, done)
                found.append(logs)
            yield task, {name: np.stack([logs[name] for logs in found], axis=0 if name.startswith("end") else 1) for name in found[0]}


def assert_trial_equals(trial: Path, plain: Plain) -> None:
    """Every file of every task."""
    for task, expected in plain.tasks():
        folder = trial / f"task_{task:03d}"
        assert_tables_equal(folder, expected)
        assert_tensors_equal(folder, expected)


def assert_tables_equal(folder: Path, expected: Arrays) -> None:
    metrics, end, train = (table(folder, f"{name}.parquet") for name in ("metrics", "end", "train"))
    assert metrics["step"].tolist() == np.repeat(expected["step"][:, 0], expected["accuracy"][0].size).tolist()
    assert_accuracy_equals(metrics["accuracy"], expected["accuracy"])
    assert_accuracy_equals(end["accuracy"], expected["end_accuracy"])
    assert_accuracy_equals(train["accuracy"], expected["train_accuracy"])
    for found, name in ((metrics, "loss"), (end, "end_loss"), (train, "train_loss")):
        np.testing.assert_allclose(found["loss"], expected[name].ravel(), rtol=TOLERANCE, atol=TOLERANCE)


def assert_accuracy_equals(found: np.ndarray, expected: np.ndarray) -> None:
    """Counts of hits are whole numbers: only the division's rounding in float32 is let through."""
    np.testing.assert_allclose(found, expected.ravel(), rtol=0, atol=2e-7)


def assert_tensors_equal(folder: Path, expected: Arrays) -> None:
    files = sorted(path.name for path in folder.glob("*.npy"))
    assert files, "nothing to compare"
    for name in files:
        wanted = expected["hidden" if name == "representations.npy" else name.removesuffix(".npy")]
        np.testing.assert_allclose(np.load(folder / name), wanted, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def plain_of(run: TrialRun, source: Source, model: Any, update: Update, **options: Any) -> Plain:
    return Plain(source, model, update, np.load(folder_of(run) / "classes.npy"), run, **options)


@pytest.fixture
def base_run(base: Path, tmp_path: Path) -> TrialRun:
    """The run behind ``base``, not run again."""
    run = prepare(tiny(), tmp_path)
    run.folders.storage = run.folders.storage.of(base.parents[1])
    return run


def test_sgd_with_momentum_and_weight_decay(base: Path, base_run: TrialRun) -> None:
    plain = plain_of(base_run, digits(), Mlp(), torch_sgd(0.05, momentum=0.9, weight_decay=1e-3))
    assert_trial_equals(base, plain)


def test_initial_folder_is_the_evaluation_of_fresh_weights(base: Path, base_run: TrialRun) -> None:
    plain = plain_of(base_run, digits(), Mlp(), torch_sgd(0.05))
    fresh = [plain.initial(repeat) for repeat in range(4)]
    evaluated = [plain.evaluate(params, repeat) for repeat, params in enumerate(fresh)]
    metrics = table(base / "initial", "metrics.parquet")
    assert set(metrics["step"]) == {0}
    assert_accuracy_equals(metrics["accuracy"], np.stack([one["accuracy"] for one in evaluated]))
    np.testing.assert_allclose(metrics["loss"], np.concatenate([one["loss"] for one in evaluated]), rtol=TOLERANCE)
    representations = np.load(base / "initial" / "representations.npy")
    np.testing.assert_allclose(representations, np.stack([one["hidden"] for one in evaluated])[None], rtol=TOLERANCE, atol=TOLERANCE)
    for name in fresh[0]:
        np.testing.assert_array_equal(np.load(base / "initial" / f"weights.{name}.npy"), np.stack([params[name] for params in fresh])[None])


def test_eval_samples_are_the_first_test_samples_of_each_class(base: Path) -> None:
    np.testing.assert_array_equal(np.load(base / "eval_samples.npy"), [rows[:3] for rows in digits().test_indices])


def warmup_cosine(rate: float, done: int, total: int, warmup: float, final: float) -> float:
    """Linear over the first part of the batches, then half a cosine (Loshchilov & Hutter 2017, equation 5)."""
    if done / total < warmup:
        return rate * min((done + 1) / (warmup * total), 1.0)
    return rate * (final + (1 - final) * 0.5 * (1 + np.cos(np.pi * (done / total - warmup) / (1 - warmup))))


def test_adam_with_a_schedule_over_the_sequence(start: Callable[..., TrialRun]) -> None:
    schedule = {"name": "warmup_cosine", "per": "sequence", "warmup_fraction": 0.25, "final": 0.1}
    optimizer = {"name": "adam", "learning_rate": 0.003, "b1": 0.8, "b2": 0.99, "eps": 1e-6, "weight_decay": 0.01, "schedule": schedule}
    run = start(tiny(n_repeats=2, model={"name": "mlp", "hidden": [12, 8]}, optimizer=optimizer))
    run.run()

    def forward(params: Params, x: Any) -> tuple[Any, Any]:
        for layer in ("hidden.0", "hidden.1"):
            before = x @ params[f"{layer}.kernel"] + params[f"{layer}.bias"]
            x = jnp.where(before > 0, before, 0.0)
        return x @ params["head.kernel"] + params["head.bias"], x

    def update(params: Params, gradient: Params, state: Any, done: int) -> tuple[Params, Any]:
        rate = warmup_cosine(0.003, done, 45, 0.25, 0.1)
        adam = optax.chain(optax.add_decayed_weights(0.01), optax.adam(rate, b1=0.8, b2=0.99, eps=1e-6))
        updates, state = adam.update(gradient, adam.init(params) if state is None else state, params)
        return optax.apply_updates(params, updates), state

    assert_trial_equals(folder_of(run), plain_of(run, digits(), Differentiated(forward), update))


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


def test_normalised_colour_images_with_steps_and_fresh_optimizers(colours: tuple[Path, Source], start: Callable[..., TrialRun]) -> None:
    folder, source = colours
    experiment = tiny(
        n_repeats=2,
        sequence={"n_tasks": 2},
        dataset={"name": "arrays", "root": str(folder), "train_per_class": 12, "normalize": "standard"},
        optimizer={"name": "sgd", "learning_rate": 0.02, "momentum": 0.8, "nesterov": True},
        training={"steps": 7, "batch_size": 8, "reset_optimizer": True},
        logging={"log_frequency": 3, "representations": "none", "eval_tasks": [1, 0], "n_subsamples": 2},
    )
    run = start(experiment)
    run.run()
    update = torch_sgd(0.02, momentum=0.8, nesterov=True)
    assert_trial_equals(folder_of(run), plain_of(run, source, Mlp(), update, reset_optimizer=True))
    assert not list(folder_of(run).rglob("representations.npy"))


def convolutional(params: Params, x: Any) -> tuple[Any, Any]:
    """Three blocks of convolution, relu and 2 x 2 maximum, then two dense layers."""
    for block in ("blocks.0", "blocks.1", "blocks.2"):
        x = jax.lax.conv_general_dilated(x, params[f"{block}.kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jnp.maximum(x + params[f"{block}.bias"], 0.0)
        n, height, width, channels = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
    hidden = jnp.maximum(x.reshape(len(x), -1) @ params["hidden.kernel"] + params["hidden.bias"], 0.0)
    return hidden @ params["head.kernel"] + params["head.bias"], hidden


def test_cnn_on_three_classes_without_weights(start: Callable[..., TrialRun]) -> None:
    experiment = tiny(
        n_repeats=2,
        sequence={"n_tasks": 2, "classes_per_task": 3, "policy": "reuse"},
        dataset={"name": "digits", "train_per_class": 20},
        model={"name": "cnn", "channels": [3, 4, 5], "hidden": 9, "init": "pytorch"},
        optimizer={"name": "sgd", "learning_rate": 0.1},
        training={"epochs": 2, "batch_size": 20},
        logging={"log_frequency": 3, "weights": False, "n_subsamples": 6},
    )
    run = start(experiment)
    run.run()
    assert_trial_equals(folder_of(run), plain_of(run, digits((8, 8, 1)), Differentiated(convolutional), torch_sgd(0.1)))
    assert not list(folder_of(run).rglob("weights.*"))


assert Expert
