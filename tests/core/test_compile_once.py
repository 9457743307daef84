"""One compilation a device for all tasks and for every trial of the same shapes; one fetch of logs a task."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import pytest

from clray.core.task import train_task
from clray.core.transfer import crossings
from tests.core.tiny import OneTrial, prepare, tiny

T, R, D, H = 5, 2, 64, 12
FIVE = tiny(n_repeats=R, sequence={"n_tasks": T}, model={"name": "mlp", "hidden": [H]})
"""Shapes that no other test has, so that what is compiled here is counted here. 15 batches a task, L = 3, U = K = 10."""


@contextmanager
def compilations() -> Iterator[Counter[str]]:
    """Counts what XLA compiles, by the name of the function."""
    found: Counter[str] = Counter()

    def listen(event: str, seconds: float, **facts: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found[str(facts.get("fun_name"))] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class Counted:
    """A trial with what it compiled and moved."""

    def __init__(self, trial: OneTrial):
        programs = train_task._cache_size()
        moved = Counter(crossings)
        with compilations() as self.compiled:
            trial.run()
        self.trial = trial
        self.programs = train_task._cache_size() - programs
        self.moved = Counter(crossings)
        self.moved.subtract(moved)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    """The first trial of these shapes in this process, on all devices (two, unless JAX was started with one)."""
    return Counted(prepare(FIVE, folder=tmp_path_factory.mktemp("compile"), devices=jax.local_devices()[:2])[0])


def n_devices() -> int:
    return min(2, jax.local_device_count())


def test_training_is_compiled_once_a_device_for_all_tasks(first: Counted) -> None:
    assert first.compiled["jit(train_task)"] == n_devices()
    assert first.programs == n_devices()


OTHERS = "jit(fresh_lanes)", "jit(evaluate_lanes)"


@pytest.mark.parametrize("name", OTHERS)
def test_what_runs_beside_training_is_compiled_once_a_device(first: Counted, name: str) -> None:
    assert first.compiled[name] == n_devices()


def test_nothing_else_is_compiled(first: Counted) -> None:
    assert set(first.compiled) == {"jit(train_task)", *OTHERS}


CHANGES: dict[str, tuple[bool, dict[str, Any]]] = {
    "other traced values and seed": (
        False,
        {"seed": 99, "optimizer": {"name": "sgd", "learning_rate": 0.3, "momentum": 0.5, "weight_decay": 0.2}},
    ),
    "defaults written out": (True, {"name": "other", "model": {"name": "mlp", "hidden": [H], "activation": "relu", "init": "flax"}}),
    "other classes": (False, {"sequence": {"n_tasks": T, "policy": "reuse"}}),
}


@pytest.mark.parametrize(("same_trial", "changes"), CHANGES.values(), ids=CHANGES.keys())
def test_another_trial_of_the_same_shapes_compiles_nothing(
    first: Counted, tmp_path: Path, same_trial: bool, changes: dict[str, Any]
) -> None:
    again = Counted(prepare(copy.deepcopy(FIVE) | changes, folder=tmp_path / "again", devices=jax.local_devices()[:2])[0])
    assert (again.trial.folder.name == first.trial.folder.name) is same_trial
    assert not again.compiled
    assert again.programs == 0


def test_logs_and_state_of_a_task_are_fetched_once_each(first: Counted) -> None:
    assert first.moved["to_host"] == 2 * T + 1  # and one for the untrained networks


def test_bytes_to_the_host_are_logs_and_state_with_hidden_states_of_pools_only(first: Counted) -> None:
    n_logs, n_parameters, pool, kept = 3, D * H + H + H * 2 + 2, 10, 3
    evaluation = 4 * (2 * T + pool * kept * H)  # accuracy, loss, hidden states of one lane
    logs = n_logs * (evaluation + 4 * n_parameters + 4 * 2) + 4 * 2 * T  # with weights, training metrics, and the end
    state = 4 * 2 * n_parameters + 4 + 1  # parameters, momentum, counter, flag
    assert first.moved["to_host_bytes"] == R * (T * (logs + state) + evaluation + 4 * n_parameters)


def test_bytes_to_the_devices_are_pools_and_lanes_once_and_the_data_of_each_task(first: Counted) -> None:
    n_train, n_batches, batch_size = 84, 15, 16
    data = R * T * (4 * n_train * D + 4 * n_train + 4 * n_batches * batch_size)
    pools = n_devices() * 4 * (10 * 35 * D)
    lanes = R * 4 * (2 + 3 + 10 + 2 * T)  # seed and repeat, three hyperparameters, pool and labels
    assert first.moved["to_device_bytes"] == data + pools + lanes
    assert first.moved["to_device"] == n_devices() * (T + 2)
