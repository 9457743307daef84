"""Which trials share a compiled program, and how many of them run in one task.

Trials whose experiments differ only in seed and in traced hyperparameters are lanes of one program. A pack is as wide as
memory allows, but never so wide that a slot of the cluster stays idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from clray.config import Experiment, digest
from clray.study.config import Study
from clray.trials.expand import Trial

MOST_LANES = 4096

Item = TypeVar("Item")


def pack_key(experiment: Experiment) -> str:
    """Equal for trials that can share a compiled program and a data set. A study runs alone."""
    plain = experiment.canonical()
    if isinstance(experiment, Study):
        return digest(plain | {"dataset": {**experiment.dataset.canonical(), "root": experiment.dataset.root}})
    plain.pop("seed", None)
    plain["optimizer"] = experiment.optimizer.structure().canonical()
    plain["strategy"] = [options.structure().canonical() for options in experiment.strategy]
    plain["dataset"] = {**experiment.dataset.canonical(), "root": experiment.dataset.root}
    return digest(plain)


def program_of(experiment: Experiment) -> Experiment:
    """Equal where ``pack_key`` is, and quicker to tell for thousands of trials."""
    traced = {"optimizer": experiment.optimizer.structure(), "strategy": tuple(options.structure() for options in experiment.strategy)}
    return experiment.model_copy(update={"name": "", "seed": 0, "loggers": (), **traced})


def make_packs(
    trials: Sequence[Trial], slots: int, max_lanes: int | Literal["auto"], lanes_that_fit: Callable[[Trial], int]
) -> list[list[Trial]]:
    """Deals trials to packs.

    Args:
        trials: in the order in which they should start.
        slots: packs the cluster can run at once.
        max_lanes: lanes of a pack at most (a trial is never cut: 1 means one trial a pack); auto: ``lanes_that_fit``.
        lanes_that_fit: lanes of a trial's kind that fit into the memory of one task.

    Returns:
        Packs in the order of their first trials. Where one pack could have been wider, no slot is left idle.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(pack_key(trial.experiment), []).append(trial)
    packs = []
    for group in groups.values():
        most = min(MOST_LANES, lanes_that_fit(group[0])) if max_lanes == "auto" else max_lanes
        per_pack = max(1, most // len(group[0].experiment.repeat_numbers))
        packs += even_parts(group, -(-len(group) // per_pack))
    while len(packs) < min(slots, len(trials)):
        widest = max(range(len(packs)), key=lambda i: len(packs[i]))
        packs[widest : widest + 1] = even_parts(packs[widest], 2)
    order = {trial.trial_id: i for i, trial in enumerate(trials)}
    return sorted(packs, key=lambda pack: order[pack[0].trial_id])


def even_parts(items: Sequence[Item], n: int) -> list[list[Item]]:
    """``items`` cut into ``n`` neighbouring parts whose lengths differ by at most one."""
    base, extra = divmod(len(items), n)
    parts, start = [], 0
    for i in range(n):
        stop = start + base + (i < extra)
        parts.append(list(items[start:stop]))
        start = stop
    return parts
