"""Programs as a GPU gets them: they are lowered for CUDA, which needs no GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from clray.core.task import evaluate_lanes, fresh_room, init_lanes, train_task
from clray.experiment import TrialPack, _Sequence
from clray.types import Purpose
from tests.core.tiny import prepare, tiny

PRECISIONS = {
    "float32": "precision = [HIGHEST, HIGHEST]",
    "tf32": "precision = [HIGH, HIGH]",
    "bfloat16": "algorithm = <lhs_precision_type = bf16, rhs_precision_type = bf16, accumulation_type = f32",
}
STRATEGIES: list[Any] = ["finetune", "l2", "ewc", "si", "mas", "lwf", "er", "der", "der++", "agem", "gem", "shrink_perturb", "cumulative"]


def programs(folder: Path, **changes: Any) -> dict[str, str]:
    """StableHLO for CUDA by the name of the program."""
    trial = prepare(tiny(**changes), folder=folder)[0]
    pack = TrialPack([trial.member], jax.local_devices()[:1], width=4)
    sequence = _Sequence(pack, pack.members)
    lanes, device, zero = sequence.lanes, sequence.chunks[0].device, np.int32(0)
    (data,) = lanes.place(sequence._build(0), sequence.row_of_lane)
    (state,), (table,), pools = lanes.init(), lanes.lanes_of, lanes.pools_on[device]
    room = fresh_room(pack.spec, state, table, pools, device)
    traced = {
        "init": init_lanes.trace(pack.spec, table, zero, Purpose.INIT),
        "evaluate": evaluate_lanes.trace(pack.spec, state, table, pools, zero),
        "train": train_task.trace(pack.spec, state, table, pools, data, zero, zero, zero, room),
    }
    return {name: each.lower(lowering_platforms=("cuda",)).as_text() for name, each in traced.items()}


@pytest.mark.parametrize(("precision", "expected"), PRECISIONS.items())
@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [16]}, {"name": "cnn", "hidden": 8}], ids=["mlp", "cnn"])
def test_products_have_the_precision_that_was_asked_for(tmp_path: Path, model: dict[str, Any], precision: str, expected: str) -> None:
    texts = programs(tmp_path, model=model, training__precision=precision)
    for name in ("evaluate", "train"):
        products = re.findall(r"stablehlo.dot_general.*", texts[name])
        assert products
        assert all(expected in line for line in products), (name, products)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_of_a_cpu_is_in_them(tmp_path: Path, strategy: str) -> None:
    texts = programs(tmp_path, strategy=[{"name": strategy}])
    assert not re.findall(r"custom_call @(?!cu|Sharding)\w+", "".join(texts.values()))
    assert "optimization_barrier" not in texts["train"], "which hold products in the form that is fast on a CPU"
