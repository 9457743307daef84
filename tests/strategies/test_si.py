"""Synaptic intelligence over real training runs, against loops in double precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clray.data.order import batch_order
from clray.store.checkpoint import unpack_state
from tests.core.plain_loop import Mlp, Params, Plain, digits, torch_sgd
from tests.core.tiny import OneTrial, prepare, tiny

IMPORTANCE, XI = 0.3, 0.05
RATE, MOMENTUM = 0.05, 0.5


def trained(folder: Path, path: str) -> OneTrial:
    (trial,) = prepare(
        tiny(
            n_repeats=2,
            sequence={"n_tasks": 2},
            model={"name": "mlp", "hidden": [9]},
            optimizer={"name": "sgd", "learning_rate": RATE, "momentum": MOMENTUM},
            strategy={"name": "si", "importance": IMPORTANCE, "xi": XI, "path": path},
            logging={"log_frequency": 15, "n_subsamples": 2, "representations": "none", "weights": False},
        ),
        folder=folder,
    )
    trial.run()
    return trial


def slow_si(plain: Plain, params: Params, repeat: int, path: str) -> dict[str, Params]:
    """Both tasks of one repeat, from the definition."""
    model, optimizer = Mlp(), None
    omega, anchor = {name: np.zeros(leaf.shape) for name, leaf in params.items()}, dict(params)
    for task in range(2):
        images, labels = plain.data(task, repeat)
        along = {name: 0.0 * leaf for name, leaf in params.items()}
        order = batch_order(plain.experiment.seed, repeat, task, len(images), plain.sizes.batch_size, plain.sizes.total_batches)
        for chosen in order:
            of_task = model.gradient(params, images[chosen], labels[chosen])
            total = {name: of_task[name] + 2 * IMPORTANCE * omega[name] * (params[name] - anchor[name]) for name in params}
            moved, optimizer = plain.update(params, total, optimizer, 0)
            seen = of_task if path == "task" else total
            along = {name: along[name] - seen[name] * (moved[name] - params[name]) for name in params}
            params = moved
        omega = {name: omega[name] + along[name] / ((params[name] - anchor[name]) ** 2 + XI) for name in params}
        anchor = dict(params)
    return {"omega": omega, "params": params}


@pytest.mark.parametrize("path", ["task", "total"])
def test_path_integral_over_two_tasks(tmp_path: Path, path: str) -> None:
    trial = trained(tmp_path / "sweep", path)
    plain = Plain(digits(), Mlp(), torch_sgd(RATE, momentum=MOMENTUM), trial)
    stored = unpack_state((trial.folder / "task_001" / "state.msgpack").read_bytes())

    def leaf(part: str, name: str, repeat: int) -> Any:
        return stored[f"{part}['{name}']"][repeat]

    for repeat, start in enumerate(plain.initial()):
        expected = slow_si(plain, {name: np.asarray(value, np.float64) for name, value in start.items()}, repeat, path)
        for name, omega in expected["omega"].items():
            np.testing.assert_allclose(leaf(".params", name, repeat), expected["params"][name], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(leaf(".strategy[0].anchor", name, repeat), expected["params"][name], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(leaf(".strategy[0].omega", name, repeat), omega, rtol=1e-4, atol=1e-5 * np.abs(omega).max())
            assert not leaf(".strategy[0].path", name, repeat).any()
