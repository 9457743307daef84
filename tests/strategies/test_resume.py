"""A run that was interrupted between tasks goes on with the memory and the importances it had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clray.store.checkpoint import unpack_state
from tests.core.test_resume import StopAfter
from tests.core.tiny import arrays_of, assert_same_bits, prepare, tiny

CHAIN: list[dict[str, Any]] = [
    {"name": "er", "memory_size": 20, "selection": "class_balanced"},
    {"name": "der++", "memory_size": 14, "replay_batch": 5},
    {"name": "ewc"},
    {"name": "si"},
    {"name": "lwf"},
    {"name": "gem", "memory_size": 6},
    {"name": "shrink_perturb", "shrink": 0.9},
]
"""As many kinds of state as there are, in one program."""


def test_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(tmp_path: Path) -> None:
    experiment = tiny(
        n_repeats=2,
        model={"name": "mlp", "hidden": [5]},
        strategy=CHAIN,
        training={"steps": 8, "batch_size": 7},
        logging={"log_frequency": 8, "n_subsamples": 2},
    )
    (whole,) = prepare(experiment, folder=tmp_path / "whole")
    whole.run()
    (stopped,) = prepare(experiment, folder=tmp_path / "resumed", report=StopAfter(1, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    (resumed,) = prepare(experiment, folder=tmp_path / "resumed")
    resumed.run()
    assert_same_bits(arrays_of(resumed.folder), arrays_of(whole.folder))
    state = unpack_state((whole.folder / "task_002" / "state.msgpack").read_bytes())
    held = {name for name, leaf in state.items() if name.startswith(".strategy") and np.asarray(leaf).any()}
    for position in range(len(CHAIN) - 1):  # the last one has no state
        assert any(name.startswith(f".strategy[{position}]") for name in held), f"nothing to resume in {CHAIN[position]}"
