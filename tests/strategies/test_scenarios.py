"""Which outputs strategies look at in scenarios task and class, against PyTorch on those outputs alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from clray.core.scenario import choices_of
from clray.core.step import row_losses
from clray.strategies.base import Context, StaticSizes, Step, TaskData
from clray.strategies.buffer import Samples
from clray.strategies.choices import NO_CHOICE
from clray.strategies.der import DER
from clray.strategies.fisher import fisher_diagonal
from clray.strategies.lwf import LwF
from clray.strategies.mas import sensitivity
from clray.strategies.selection import class_numbers
from clray.strategies.task_memory import mean_gradient
from clray.types import Batch
from tests.strategies.by_hand import N_HIDDEN, N_INPUTS, assert_close, context, forward, in_torch, scale, torch_gradient, torch_logits

T, C = 3, 2
O = T * C  # noqa: E741
TASK = 1
"""Two of three tasks so far."""

ROW_CHOICES = {
    "task": lambda label: [label // C * C, label // C * C + 1],
    "class": lambda label: [0, 1, 2, 3],
}


def sizes(scenario: str) -> StaticSizes:
    return StaticSizes(T, C, O, 12, 4, (N_INPUTS,), "uint8", scenario)


def in_scenario(scenario: str, task: int = TASK, **hyper: float) -> Context:
    """A context as the core makes it."""
    spec: Any = SimpleNamespace(
        scenario=scenario, n_outputs=O, classes_per_task=C, n_tasks=T, seen=(2, 4, 6) if scenario == "class" else ()
    )

    def choices(labels: Any, asked: Any = None) -> Any:
        return choices_of(spec, labels, jnp.int32(task) if asked is None else asked)

    def losses(logits: Any, batch: Batch) -> Any:
        return row_losses(logits, batch, choices(batch.labels))

    return context(task, sizes=sizes(scenario), **hyper)._replace(losses=losses, choices=choices)


def params_of(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"hidden.kernel": (N_INPUTS, N_HIDDEN), "hidden.bias": (N_HIDDEN,), "head.kernel": (N_HIDDEN, O), "head.bias": (O,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def data_of(seed: int, labels: list[int]) -> TaskData:
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), N_INPUTS)).astype(np.uint8)
    return TaskData(jnp.asarray(images), jnp.asarray(labels, jnp.int32))


PARAMS, TEACHER = params_of(0), params_of(1)
MIXED = data_of(2, [2, 0, 3, 1, 2])
"""Rows of task 1 and replayed ones of task 0."""

each_scenario = pytest.mark.parametrize("scenario", ["task", "class"])


@each_scenario
def test_the_loss_of_a_row_is_among_its_choices(scenario: str) -> None:
    ctx, network = in_scenario(scenario), in_torch(PARAMS)
    found = mean_gradient(PARAMS, Samples(MIXED.images, MIXED.labels, MIXED.labels // C, None), ctx)
    logits = torch_logits(network, MIXED.images)
    losses = []
    for row, label in enumerate(MIXED.labels.tolist()):
        chosen = ROW_CHOICES[scenario](label)
        losses.append(torch.nn.functional.cross_entropy(logits[row, chosen][None], torch.tensor([chosen.index(label)])))
    assert_close(found, torch_gradient(torch.stack(losses).mean(), network))


@each_scenario
@pytest.mark.parametrize("kind", ["exact", "argmax", "empirical"])
def test_fisher_information_is_of_the_probabilities_among_the_choices(scenario: str, kind: str) -> None:
    data, network = data_of(3, [2, 3, 3]), in_torch(PARAMS)
    found = fisher_diagonal(PARAMS, data, kind, None, in_scenario(scenario))  # type: ignore[arg-type]
    expected = {name: np.zeros(leaf.shape) for name, leaf in PARAMS.items()}
    for image, label in zip(data.images, data.labels.tolist(), strict=True):
        chosen = ROW_CHOICES[scenario](label)
        log_p = torch.log_softmax(torch_logits(network, image[None])[0, chosen], dim=0)
        weights = {"exact": log_p.exp().detach(), "argmax": log_p == log_p.max(), "empirical": torch.tensor(chosen) == label}[kind]
        for weight, one in zip(weights, log_p, strict=True):
            for name, leaf in torch_gradient(one, network).items():
                expected[name] += float(weight) * leaf**2 / 3
    assert_close(found, expected)


@each_scenario
def test_mas_asks_how_the_choices_depend_on_the_weights(scenario: str) -> None:
    data, network = data_of(4, [2, 3]), in_torch(PARAMS)
    found = sensitivity(PARAMS, data, None, in_scenario(scenario))
    expected = {name: np.zeros(leaf.shape) for name, leaf in PARAMS.items()}
    for image, label in zip(data.images, data.labels.tolist(), strict=True):
        norm = (torch_logits(network, image[None])[0, ROW_CHOICES[scenario](label)] ** 2).sum()
        for name, leaf in torch_gradient(norm, network).items():
            expected[name] += np.abs(leaf) / 2
    assert_close(found, expected)


def soft_cross_entropy(taught: torch.Tensor, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return -(temperature**2) * (torch.softmax(taught / temperature, dim=1) * torch.log_softmax(logits / temperature, dim=1)).sum(1).mean()


@each_scenario
@pytest.mark.parametrize("task", [1, 2])
def test_lwf_distils_earlier_heads_one_by_one_and_classes_as_they_were_taught(scenario: str, task: int) -> None:
    strategy, temperature, share = LwF(name="lwf").build(), 2.0, 0.3
    data, network = data_of(5, [2 * task, 2 * task + 1, 2 * task, 2 * task]), in_torch(PARAMS)
    batch, ctx = Batch(scale(data.images), data.labels, jnp.ones(4)), in_scenario(scenario, task, temperature=temperature, alpha=share)
    fresh = strategy.init(PARAMS, sizes(scenario))
    state = strategy.boundary(fresh, fresh, TEACHER, ctx)

    def loss(params: Any) -> Any:
        logits = forward(params, batch.images)[0]
        return ctx.losses(logits, batch).mean() + strategy.penalty(state, params, logits, batch, ctx)

    value, gradient = jax.value_and_grad(loss)(PARAMS)
    logits, taught = torch_logits(network, data.images), torch_logits(in_torch(TEACHER), data.images).detach()
    if scenario == "task":
        own = slice(task * C, task * C + C)
        current = torch.nn.functional.cross_entropy(logits[:, own], torch.tensor(data.labels.tolist()) - task * C)
        kept = torch.stack([soft_cross_entropy(taught[:, k : k + C], logits[:, k : k + C], temperature) for k in range(0, task * C, C)])
    else:
        n_before, n_now = task * C, task * C + C
        current = torch.nn.functional.cross_entropy(logits[:, :n_now], torch.tensor(data.labels.tolist()))
        # The network chooses among the new classes too; the teacher never heard of them.
        target = torch.nn.functional.pad(torch.softmax(taught[:, :n_before] / temperature, dim=1), (0, C))
        softened = torch.log_softmax(logits[:, :n_now] / temperature, dim=1)
        kept = -(temperature**2) * (target * softened).sum(dim=1).mean()
    expected = (1 - share) * current + share * kept.mean()
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    assert_close(gradient, torch_gradient(expected, network))


@each_scenario
def test_der_asks_for_the_logits_that_a_sample_was_classified_among_when_it_was_seen(scenario: str) -> None:
    """The sample is of task 0, the network now learns task 1."""
    strategy = DER(name="der", memory_size=8, replay_batch=4, alpha=0.7).build()
    size = sizes(scenario)
    old, new = data_of(6, [0, 1, 0, 1]), data_of(7, [2, 3, 3, 2])
    seen, later = in_scenario(scenario, 0, alpha=0.7), in_scenario(scenario, 1, alpha=0.7)
    ones = jnp.ones(4)
    raw = Batch(old.images, old.labels, ones)
    state, extended = strategy.batch(strategy.init(PARAMS, size), raw, seen)
    shown = Batch(scale(extended.images), extended.labels, extended.weights)
    state = strategy.after_step(state, Step(TEACHER, PARAMS, PARAMS, forward(TEACHER, shown.images)[0], shown), seen)
    state, extended = strategy.batch(state, Batch(new.images, new.labels, ones), later)
    shown = Batch(scale(extended.images), extended.labels, extended.weights)

    def penalty(params: Any) -> Any:
        return strategy.penalty(state, params, forward(params, shown.images)[0], shown, later)

    replayed = extended.images[4:]
    assert set(map(bytes, np.asarray(replayed))) <= set(map(bytes, np.asarray(old.images)))
    network = in_torch(PARAMS)
    taught, logits = torch_logits(in_torch(TEACHER), replayed).detach()[:, :C], torch_logits(network, replayed)[:, :C]
    expected = 0.7 * ((logits - taught) ** 2).sum(dim=1).mean()
    value, gradient = jax.value_and_grad(penalty)(PARAMS)
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    assert_close(gradient, torch_gradient(expected, network))
    assert (np.asarray(state.logits)[:, C:] == np.float32(NO_CHOICE)).all()


@pytest.mark.parametrize(("scenario", "numbers"), [("domain", [2, 3, 1]), ("task", [2, 5, 1]), ("class", [2, 5, 1])])
def test_buffers_tell_classes_of_the_sequence_apart(scenario: str, numbers: list[int]) -> None:
    labels, tasks = {"domain": [0, 1, 1]}.get(scenario, [2, 5, 1]), [1, 1, 0]
    found = class_numbers(jnp.asarray(tasks), jnp.asarray(labels), sizes(scenario))
    np.testing.assert_array_equal(found, numbers)
