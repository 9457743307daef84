"""Which trials share a program, and how they are dealt to the slots of a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clray.documents import Document, parse_sweep
from clray.sizes import sizes_of
from clray.trials.expand import Trial, expand
from clray.trials.pack import even_parts, make_packs, pack_key
from clray.trials.runner_ray import tasks_on
from tests.core.tiny import tiny


def trials_of(**axes: Any) -> list[Trial]:
    """The trials of a grid over the tiny experiment of four repeats."""
    document = Document("grid.yaml", {"name": "grid", "experiment": tiny(), "grid": axes})
    return expand(parse_sweep(document), document.inner("experiment"))


RATES = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]


@pytest.mark.parametrize(
    ("key", "values"),
    [("optimizer.learning_rate", [0.1, 0.2]), ("optimizer.momentum", [0.5, 0.9]), ("optimizer.weight_decay", [0.1, 0.2]), ("seed", [1, 2])],
)
def test_trials_that_differ_in_a_traced_value_or_the_seed_share_a_program(key: str, values: list[float]) -> None:
    first, second = trials_of(**{key: values})
    assert pack_key(first, None) == pack_key(second, None)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("model.hidden", [[8], [16]]),
        ("training.epochs", [3, 4]),
        ("training.batch_size", [16, 8]),
        ("optimizer.momentum", [0.0, 0.9]),  # momentum of 0 is not there at all
        ("optimizer.nesterov", [False, True]),
        ("dataset.train_per_class", [40, 42]),
        ("n_repeats", [2, 4]),
        ("logging.log_frequency", [3, 4]),
    ],
)
def test_trials_that_differ_in_shape_or_structure_do_not(key: str, values: list[Any]) -> None:
    first, second = trials_of(**{key: values})
    assert pack_key(first, None) != pack_key(second, None)


def test_seeds_share_a_pack_only_where_tasks_are_equally_large() -> None:
    """With all images of every class, N is that of the classes that a seed draws: here 291, 289, 290, 288 and 291."""
    trials = trials_of(seed=[0, 1, 2, 3, 4, 5, 6, 7], **{"dataset.train_per_class": ["all"]})
    known = {trial.trial_id: sizes_of(trial.experiment, trial.experiment.dataset.describe()) for trial in trials}  # type: ignore[attr-defined]
    packs = make_packs(trials, 1, "auto", lambda trial: 1000, known)
    assert sum(sizes(packs)) == 8
    assert [len({known[trial.trial_id].n_train for trial in pack}) for pack in packs] == [1] * len(packs)
    assert len(packs) == len({size.n_train for size in known.values()}) < 8
    assert len(make_packs(trials, 1, "auto", lambda trial: 1000, {})) == 8, "where sizes are not known"
    assert len(make_packs(trials_of(seed=[0, 1, 2]), 1, "auto", lambda trial: 1000, {})) == 1


def sizes(packs: list[list[Trial]]) -> list[int]:
    return [len(pack) for pack in packs]


def test_one_slot_takes_all_trials_of_a_program_in_one_pack() -> None:
    assert sizes(make_packs(trials_of(**{"optimizer.learning_rate": RATES}), 1, "auto", lambda trial: 1000, {})) == [6]


def test_no_slot_stays_idle_to_widen_a_pack() -> None:
    trials = trials_of(**{"optimizer.learning_rate": RATES})
    for slots in range(1, 10):
        assert len(make_packs(trials, slots, "auto", lambda trial: 1000, {})) == min(slots, 6)


def test_no_slot_stays_idle_in_the_last_round_either() -> None:
    trials = trials_of(**{"optimizer.learning_rate": [0.01 * i for i in range(1, 51)]})
    assert sizes(make_packs(trials, 4, "auto", lambda trial: 40, {})) == [7, 7, 6, 6, 6, 6, 6, 6]  # not five of ten, the last of them alone
    for slots in range(1, 60):
        n_packs = len(make_packs(trials, slots, "auto", lambda trial: 40, {}))
        assert n_packs % slots == 0 or n_packs == 50


def test_max_lanes_of_one_gives_every_trial_a_pack_of_its_own() -> None:
    assert sizes(make_packs(trials_of(**{"optimizer.learning_rate": RATES}), 1, 1, lambda trial: 1000, {})) == [1] * 6


def test_packs_hold_at_most_max_lanes_or_what_fits() -> None:
    trials = trials_of(**{"optimizer.learning_rate": RATES})  # four lanes a trial
    assert sizes(make_packs(trials, 1, 8, lambda trial: 1000, {})) == [2, 2, 2]
    assert sizes(make_packs(trials, 1, "auto", lambda trial: 13, {})) == [3, 3]
    assert sizes(make_packs(trials, 1, "auto", lambda trial: 0, {})) == [1] * 6


def test_programs_are_not_mixed_and_packs_start_in_the_order_of_the_sweep() -> None:
    trials = trials_of(**{"optimizer.learning_rate": RATES[:2], "model.hidden": [[8], [16]]})
    packs = make_packs(trials, 1, "auto", lambda trial: 1000, {})
    assert [len({pack_key(trial, None) for trial in pack}) for pack in packs] == [1, 1]
    assert [pack[0].trial_id for pack in packs] == [trials[0].trial_id, trials[1].trial_id]


@given(st.lists(st.integers(), min_size=1, max_size=50), st.data())
def test_even_parts_keep_all_items_in_order_and_differ_by_at_most_one(items: list[int], data: st.DataObject) -> None:
    parts = even_parts(items, data.draw(st.integers(1, len(items))))
    assert [item for part in parts for item in part] == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("gpus", "each", "tasks"), [(2, 0.4, 4), (2, 0.6, 2), (8, 0.7, 8), (2, 0.1, 20), (1, 1.0, 1), (8, 3, 2), (0, 0.5, 0)]
)
def test_no_task_gets_parts_of_two_gpus(gpus: float, each: float, tasks: int) -> None:
    assert tasks_on(gpus, each) == tasks
