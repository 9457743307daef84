"""Gives the committed tasks of a made-up trial to loggers: `python -m tests.loggers.emitting FOLDER TRIAL LOGGERS N_TASKS [end]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from clray.artifacts import read_config
from clray.documents import parse_experiment
from clray.loggers.emit import Emitter
from clray.places import Document
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.trials.status import read_json
from tests.report.fake_sweep import EVERY, LOGS

BATCHES = LOGS * EVERY + 2


def emit(
    folder: str,
    trial_id: str,
    loggers: Sequence[dict[str, Any] | str],
    n_tasks: int,
    end: bool = False,
    check: Callable[[], None] = lambda: None,
) -> list[tuple[str, str]]:
    """What an attempt does that commits the tasks below ``n_tasks``, and owns its trial as ``check`` says; returns the warnings."""
    storage, warnings = Storage.of(folder), []
    trial = SweepLayout().trial(trial_id)
    experiment = parse_experiment(Document("", read_config(storage, trial).plain() | {"loggers": list(loggers)}))
    emitter = Emitter(storage, {trial_id: experiment}, BATCHES, lambda *told: warnings.append(told), {trial_id: check})
    for task in range(n_tasks):
        emitter.committed(trial_id, task, last=True)
    emitter.end({trial_id: read_json(storage, trial.result) if end else None})
    return warnings


if __name__ == "__main__":
    print(emit(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]), "end" in sys.argv[5:]))
