"""Which trials share a compiled program, and how many of them run in one task.

Trials whose experiments differ only in seed and in traced hyperparameters are lanes of one program. A pack is as wide as
memory allows, but never so wide that a slot of the cluster stays idle.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal, TypeVar

from clray.config import Experiment
from clray.sizes import Sizes
from clray.study.config import Study
from clray.trials.expand import Trial

MOST_LANES = 4096

Item = TypeVar("Item")


def program_of(experiment: Experiment) -> Experiment:
    """Equal for trials that share a compiled program and a data set, as long as their sizes are the same."""
    traced = {"optimizer": experiment.optimizer.structure(), "strategy": tuple(options.structure() for options in experiment.strategy)}
    return experiment.model_copy(update={"name": "", "seed": 0, "loggers": (), **traced})


def pack_key(trial: Trial, sizes: Sizes | None) -> Hashable:
    """Equal for trials that can run in one pack.

    Args:
        sizes: of the trial; None where they are not known.
    """
    experiment = trial.experiment
    if isinstance(experiment, Study):
        return trial.trial_id  # runs alone
    # With all images of the classes that a seed draws, the tasks of another seed may be larger.
    n_train = sizes.n_train if sizes else experiment.seed if experiment.dataset.train_per_class == "all" else None
    return program_of(experiment), n_train


def make_packs(
    trials: Sequence[Trial],
    slots: int,
    max_lanes: int | Literal["auto"],
    lanes_that_fit: Callable[[Trial], int],
    sizes: Mapping[str, Sizes | None],
) -> list[list[Trial]]:
    """Deals trials to packs.

    Args:
        trials: in the order in which they should start.
        slots: packs the cluster can run at once.
        max_lanes: lanes of a pack at most (a trial is never cut: 1 means one trial a pack); auto: ``lanes_that_fit``.
        lanes_that_fit: lanes of a trial's kind that fit into the memory of one task.
        sizes: by trial id, as far as they are known.

    Returns:
        Packs in the order of their first trials. Where packs could have been wider, no slot is left idle: neither at first, nor in the
        last of several rounds.
    """
    by_key: dict[Hashable, list[Trial]] = {}
    for trial in trials:
        by_key.setdefault(pack_key(trial, sizes.get(trial.trial_id)), []).append(trial)
    groups, counts = list(by_key.values()), []
    for group in groups:
        most = min(MOST_LANES, lanes_that_fit(group[0])) if max_lanes == "auto" else max_lanes
        per_pack = max(1, most // len(group[0].experiment.repeat_numbers))
        counts.append(-(-len(group) // per_pack))
    rounds = -(-sum(counts) // slots)
    widest = [(-len(group) / n, i) for i, (group, n) in enumerate(zip(groups, counts, strict=True))]
    heapq.heapify(widest)
    for _ in range(min(rounds * slots, len(trials)) - sum(counts)):
        i = widest[0][1]
        counts[i] += 1
        heapq.heapreplace(widest, (-len(groups[i]) / counts[i], i))
    packs = [pack for group, n in zip(groups, counts, strict=True) for pack in even_parts(group, n)]
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
