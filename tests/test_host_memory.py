"""What cannot fit into the machine's memory is refused by arithmetic, before anything is drawn."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from clray import sizes
from clray.errors import ResourceError
from clray.trials.plan import plan_sweep
from tests.faults.in_process import command
from tests.trials.sweeps import experiment, sweep, write


@pytest.mark.parametrize("arguments", [("run",), ("sweep", "--local")])
def test_more_epochs_than_memory_can_order_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    write(tmp_path / "small.yaml", sweep(base=experiment(training={"epochs": 10_000_000, "batch_size": 8}, n_repeats=100)))
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    code, err = command(*arguments, "small.yaml")
    assert code == 2, err
    assert "GiB of host memory" in err
    assert "training.epochs" in err
    assert time.monotonic() - started < 10
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_the_limit_is_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = plan_sweep(sweep(grid={"seed": [1]})).sizes.values()
    assert found is not None
    order = found.n_repeats * found.total_batches * found.batch_size * 4
    images = found.n_repeats * found.n_train * (found.input_shape[0] * (1 if found.dtype == "uint8" else 4) + 4)
    logs = found.n_logs * found.n_repeats * (2 * found.n_eval_tasks + 2) * 4
    need = 2 * (order + images) + logs
    monkeypatch.setattr(sizes, "machine_bytes", lambda: need)
    sizes.check_host(found)
    monkeypatch.setattr(sizes, "machine_bytes", lambda: need - 1)
    with pytest.raises(ResourceError, match="Lower training.epochs"):
        sizes.check_host(found)
