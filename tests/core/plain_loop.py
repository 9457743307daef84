"""Training written from the definition: Python loops over tasks, repeats and batches, no vmap, no scan.

It reads the data from its source, takes nothing from clray but the initial weights and the order of the data (which
``test_order.py`` looks at), and computes in double precision where the gradient is written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from clray.config import Experiment
from clray.core.task import init_lanes
from clray.data.order import batch_order
from clray.types import Purpose
from tests.core.tiny import Arrays, OneTrial, table

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


def relu(x: Any) -> Any:
    """Its slope at 0 is 0, which matters: over black background a fresh convolution gives exactly 0."""
    return jnp.where(x > 0, x, 0.0)


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
    trial: OneTrial
    reset_optimizer: bool = False

    def __post_init__(self) -> None:
        self.experiment, self.sizes = self.trial.experiment, self.trial.pack.sizes
        self.classes = np.load(self.trial.folder / "classes.npy")  # (T, R, C)

    def data(self, task: int, repeat: int) -> tuple[np.ndarray, np.ndarray]:
        """(N, ...) and (N,): label 0's first samples, then label 1's."""
        per_class = self.experiment.dataset.train_per_class
        images = [self.source.train[k][:per_class] for k in self.classes[task, repeat]]
        return np.concatenate(images), np.repeat(np.arange(len(images)), per_class)

    def evaluate(self, params: Params, repeat: int, tasks: tuple[int, ...] | None = None) -> dict[str, np.ndarray]:
        """Accuracy and loss (E,) and hidden (E, S, H), task by task on the real test samples."""
        found: dict[str, list[Any]] = {"accuracy": [], "loss": [], "hidden": []}
        n_tested = min(len(images) for images in self.source.test)
        for task in tasks or self.experiment.eval_task_numbers:
            own = [self.source.test[k][:n_tested] for k in self.classes[task, repeat]]
            labels = np.repeat(np.arange(len(own)), n_tested)
            logits, hidden = self.model(params, np.concatenate(own))
            found["accuracy"].append((logits.argmax(axis=1) == labels).mean())
            found["loss"].append(cross_entropy(logits, labels))
            kept = hidden.reshape(len(own), n_tested, -1)[:, : self.sizes.n_kept]
            found["hidden"].append(kept.reshape(-1, hidden.shape[1]))
        return {name: np.stack(values) for name, values in found.items()}

    def initial(self, task: int = 0, purpose: Purpose = Purpose.INIT) -> list[Params]:
        """Fresh weights of every repeat, as the library draws them."""
        lanes = jax.device_put(self.trial.lanes(), jax.local_devices()[0])
        params = jax.device_get(init_lanes(self.trial.pack.spec, lanes, np.int32(task), purpose).params)
        return [{name: leaf[repeat] for name, leaf in params.items()} for repeat in range(self.sizes.n_repeats)]

    def task(
        self, params: Params, state: Any, task: int, repeat: int, done: int, tasks: tuple[int, ...] | None = None
    ) -> tuple[Params, Any, dict[str, np.ndarray]]:
        """One task of one repeat, and what is logged of it."""
        sizes, every = self.sizes, self.experiment.logging.log_frequency
        images, labels = self.data(task, repeat)
        number = self.experiment.repeat_numbers[repeat]
        order = batch_order(self.experiment.seed, number, task, len(images), sizes.batch_size, sizes.total_batches)
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
        params = self.initial()
        states: list[Any] = [None] * len(params)
        for task in range(self.sizes.n_tasks):
            found = []
            for repeat in range(len(params)):
                kept = None if self.reset_optimizer else states[repeat]
                done = task * self.sizes.total_batches
                params[repeat], states[repeat], logs = self.task(params[repeat], kept, task, repeat, done)
                found.append(logs)
            yield task, {name: np.stack([logs[name] for logs in found], axis=0 if name.startswith("end") else 1) for name in found[0]}


def assert_trial_equals(plain: Plain) -> None:
    """Every file of every task."""
    for task, expected in plain.tasks():
        folder = plain.trial.folder / f"task_{task:03d}"
        assert_tables_equal(folder, expected, plain.experiment)
        assert_tensors_equal(folder, expected)


def assert_tables_equal(folder: Path, expected: Arrays, experiment: Experiment) -> None:
    """The tables of one task: rows in the order of their axes, and their values."""
    metrics, end, train = (table(folder, f"{name}.parquet") for name in ("metrics", "end", "train"))
    steps, repeats, tasks = expected["step"][:, 0].tolist(), experiment.repeat_numbers, experiment.eval_task_numbers
    rows = [(step, repeat, task) for step in steps for repeat in repeats for task in tasks]
    assert list(zip(metrics["step"], metrics["repeat"], metrics["eval_task"], strict=True)) == rows
    assert list(zip(end["repeat"], end["eval_task"], strict=True)) == [row[1:] for row in rows[: len(repeats) * len(tasks)]]
    assert list(zip(train["step"], train["repeat"], strict=True)) == [(step, repeat) for step in steps for repeat in repeats]
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
