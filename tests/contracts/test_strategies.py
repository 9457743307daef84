"""What every registered strategy keeps to, in the training program of a tiny network on digits."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from clray.core.lanes import ChunkedLanes, plan_chunks
from clray.core.program import Lane
from clray.core.task import train_task
from clray.store.checkpoint import pack_state, unpack_state
from clray.strategies import TABLE
from tests.core.tiny import Arrays, assert_same_bits, logs_of, prepare, tiny

N_TASKS, BATCHES, WIDTH = 2, 6, 2

DETECTED: list[dict[str, Any]] = [
    {"name": "si"},
    {"name": "ewc", "fisher": "running", "mode": "online"},
    {"name": "l2"},
    {"name": "lwf"},
    {"name": "er"},
    {"name": "der"},
]
"""What can do without being told where a task ends, in one chain."""
CASES: dict[str, dict[str, Any]] = {name: {"strategy": {"name": name}} for name in TABLE}
CASES["detected"] = {"strategy": DETECTED, "training__boundaries": {"window": 2, "threshold": 0.02}}

Found = list[Arrays]
"""For each task its logs, and at last the state, of one lane."""


class Bench:
    """The training program of one strategy, and lanes that differ in repeat and in every traced number."""

    def __init__(self, name: str, folder: Path, scenario: str = "domain"):
        experiment = tiny(
            n_repeats=3,
            sequence={"n_tasks": N_TASKS, "scenario": scenario},
            dataset={"name": "digits", "train_per_class": 100},
            model={"name": "mlp", "hidden": [6]},
            optimizer={"name": "sgd", "learning_rate": 0.1, "momentum": 0.5},
            training={"steps": BATCHES, "batch_size": 8} | ({"active_classes": "seen"} if scenario == "class" else {}),
            logging={"log_frequency": 3, "n_subsamples": 2},
            **CASES[name],
        )
        (self.trial,) = prepare(experiment, folder=folder)
        self.options = self.trial.experiment.strategy
        self.pools = self.trial.pack.pools
        if self.pools.train is not None:  # a row that breaks whoever trains on it
            self.pools = self.pools._replace(train=np.concatenate([self.pools.train, np.full_like(self.pools.train[:1], np.nan)]))

    def lanes(self, numbers: list[int]) -> Lane:
        """Lanes by number: the repeat of that number, with numbers of its own for all that is traced."""
        lanes = jax.tree.map(lambda leaf: leaf[numbers], self.trial.lanes())
        scale = 1.0 - 0.1 * np.asarray(numbers, np.float32)
        return lanes._replace(
            optimizer={name: value * scale for name, value in lanes.optimizer.items()},
            strategy={name: value * scale for name, value in lanes.strategy.items()},
        )

    def chunked(self, numbers: list[int]) -> ChunkedLanes:
        chunks = plan_chunks(len(numbers), jax.local_devices()[:1], WIDTH)
        return ChunkedLanes(self.trial.pack.spec, self.lanes(numbers), self.pools, chunks)

    def train(self, numbers: list[int], stored: Any = None, broken: int | None = None, n_tasks: int = N_TASKS) -> tuple[list[Found], Any]:
        """Both tasks, or the second one from a stored state.

        Args:
            broken: the lane whose images of the first task are NaN.

        Returns:
            What was found, a lane each, and the state of all.
        """
        chunked = self.chunked(numbers)
        states = chunked.init() if stored is None else chunked.restore_state(stored)
        found: list[Found] = [[] for _ in numbers]
        for task in range(0 if stored is None else 1, n_tasks):
            data = self.trial.data(task)
            if broken is not None and task == 0:
                if self.pools.train is None:
                    data.images[:, broken] = np.nan
                else:
                    data.order[:, broken] = len(self.pools.train) - 1
            states, logs = chunked.train(states, chunked.place(data, numbers), task, N_TASKS * BATCHES)
            host = chunked.fetch_logs(logs)
            for lane in range(len(numbers)):
                found[lane].append(logs_of(host, lane))
        flat = chunked.fetch_state(states)
        for lane in range(len(numbers)):
            found[lane].append({name: leaf[lane] for name, leaf in flat.items()})
        return found, flat

    @functools.cached_property
    def pair(self) -> list[Found]:
        """Lanes 0 and 1 in one chunk, from the first task to the last."""
        return self.train([0, 1])[0]


@pytest.fixture(scope="module", params=list(CASES))
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Every registered strategy in turn, with its defaults."""
    return Bench(request.param, tmp_path_factory.mktemp("strategy"))


@pytest.fixture(scope="module", params=[(name, scenario) for name in TABLE for scenario in ("task", "class")], ids="-".join)
def in_scenario(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Every registered strategy with a head a task, and with one head over the classes so far."""
    name, scenario = request.param
    return Bench(name, tmp_path_factory.mktemp("scenario"), scenario)


def test_it_trains_in_every_scenario_and_leaves_outputs_alone_that_are_no_choice_yet(in_scenario: Bench) -> None:
    lanes = in_scenario.chunked([0, 1])
    fresh = lanes.fetch_state(lanes.init())
    for lane, (first, second, state) in enumerate(in_scenario.pair):
        assert all(np.isfinite(array).all() for array in state.values())
        assert not state[".diverged"]
        untrained = fresh[".params['head.kernel']"][lane]
        moved = (first["head.kernel"][-1, 0] != untrained).any(axis=0)
        np.testing.assert_array_equal(moved, [True, True, False, False])
        assert (second["head.kernel"][-1, 0] != untrained).any(axis=0).all()


def test_a_lane_equals_itself_alone_in_every_scenario(in_scenario: Bench) -> None:
    (alone,), _ = in_scenario.train([1])
    assert_same(alone, in_scenario.pair[1])


def assert_same(left: Found, right: Found) -> None:
    for ours, theirs in zip(left, right, strict=True):
        assert_same_bits(ours, theirs)


def test_it_trains_without_diverging(bench: Bench) -> None:
    for *tasks, state in bench.pair:
        assert not state[".diverged"]
        assert state[".batches"] == N_TASKS * BATCHES
        for arrays in (*tasks, state):
            assert all(np.isfinite(array).all() for name, array in arrays.items() if name != ".watch.reference")
        if ".watch.n_found" in state:
            assert state[".watch.n_found"] > 0, "nothing was found, so nothing is tested"
        assert (tasks[0]["head.kernel"][0] != tasks[-1]["head.kernel"][-1]).any()


def test_state_keeps_structure_shapes_dtypes_and_weak_types_over_a_task(bench: Bench) -> None:
    lanes = bench.chunked([0, 1])
    (state,) = lanes.init()
    after = jax.eval_shape(lambda state: lanes.train([state], lanes.place(bench.trial.data(0), [0, 1]), 0, N_TASKS * BATCHES)[0][0], state)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for (path, before), leaf in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(after), strict=True):
        where = jax.tree_util.keystr(path)
        assert (before.shape, before.dtype, before.weak_type) == (leaf.shape, leaf.dtype, leaf.weak_type), where


def test_later_tasks_other_numbers_and_other_repeats_compile_nothing(bench: Bench) -> None:
    before = train_task._cache_size()
    bench.train([0, 1], n_tasks=1)
    first = train_task._cache_size()
    bench.train([2, 0])
    assert first - before <= 1
    assert train_task._cache_size() == first


def test_a_lane_equals_itself_alone(bench: Bench) -> None:
    for lane in (0, 1):
        (alone,), _ = bench.train([lane])
        assert_same(alone, bench.pair[lane])


def test_a_broken_neighbour_changes_nothing_and_stands_still(bench: Bench) -> None:
    (healthy, broken), _ = bench.train([0, 1], broken=1)
    assert_same(healthy, bench.pair[0])
    lanes = bench.chunked([0, 1])
    fresh = lanes.fetch_state(lanes.init())
    assert broken[-1][".diverged"]
    for name, leaf in broken[-1].items():
        assert np.isfinite(leaf).all() or name == ".watch.reference", name
        if name.startswith((".params", ".optimizer", ".batches")):
            np.testing.assert_array_equal(leaf, fresh[name][1], err_msg=name)


def test_state_goes_to_a_file_and_back_between_tasks_and_nothing_changes(bench: Bench) -> None:
    _, state = bench.train([0, 1], n_tasks=1)
    stored = {name: np.asarray(leaf) for name, leaf in unpack_state(pack_state(state)).items()}
    resumed, _ = bench.train([0, 1], stored)
    for lane in (0, 1):
        assert_same(resumed[lane], bench.pair[lane][1:])


def test_what_is_traced_is_not_in_the_structure(bench: Bench) -> None:
    for options in bench.options:
        for name, value in options.traced().items():
            other = options.model_copy(update={name: value * 0.5})
            if value:
                assert other.structure() == options.structure()
                assert hash(other.structure()) == hash(options.structure())
