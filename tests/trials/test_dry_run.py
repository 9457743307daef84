"""A dry run says what a sweep would do, from the file and what is finished, and starts nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.trials.dry_run import SHOWN, print_dry_run
from clray.trials.pack import pack_key, program_of
from clray.trials.plan import plan_sweep
from clray.trials.status import TrialStatus
from clray.trials.table import TrialsTable, row_of
from tests.trials.sweeps import expanded, experiment, sweep, write

LAYOUT = SweepLayout()


def test_a_dry_run_of_many_points_imports_neither_torch_nor_ray_and_starts_no_backend(tmp_path: Path) -> None:
    hundred = list(range(100))
    big = sweep(grid={"seed": hundred, "optimizer.learning_rate": [(i + 1) / 1000 for i in hundred]})
    write(tmp_path / "big.yaml", big)
    code = (
        "import sys; sys.argv = ['clray', 'sweep', 'big.yaml', '--dry-run']\n"
        "from clray.cli import app\n"
        "try: app()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "from jax._src import xla_bridge\n"
        "print([name for name in ('torch', 'torchvision', 'ray') if name in sys.modules], xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    lines = done.stdout.splitlines()
    assert lines[-1] == "[] False", done.stdout + done.stderr
    assert f"... and {10_000 - SHOWN} more" in lines
    assert any(line.startswith("10000 trials, 1 compiled program for all; 0 finished before, 10000 to run in") for line in lines)
    assert not (tmp_path / "results").exists()


def test_trials_programs_and_needs_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_sweep(sweep(grid={"seed": [1, 2, 1], "model.hidden": [[8], [16, 16]], "optimizer.learning_rate": [0.1]}))
    print_dry_run(plan, str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == [trial.trial_id for trial in plan.trials]
    small, large = lines[1].split(), lines[2].split()
    assert small[1:5] == ["1", "[8]", "0.1", str(64 * 8 + 8 + 8 * 2 + 2)]
    assert large[4] == f"{64 * 16 + 16 + 16 * 16 + 16 + 16 * 2 + 2:,}"
    assert lines[5].startswith("4 trials (6 points, equal ones merged), 2 compiled programs for all; 0 finished before, 4 to run in")
    assert str(tmp_path / "small") in lines[5]
    assert re.match(r"disk \d.*B in all \(\d.*B are free\); of one trial at most: host", lines[7])


def test_the_programs_of_a_dry_run_are_those_of_the_packs() -> None:
    grid = {"seed": [1, 2], "optimizer.learning_rate": [0.1, 0.2], "optimizer.momentum": [0, 0.5, 0.9], "training.batch_size": [8, 9]}
    keys = [(program_of(trial.experiment), pack_key(trial, None)) for trial in expanded(sweep(grid=grid))]
    assert len(set(keys)) == len({program for program, _ in keys}) == len({packed for _, packed in keys}) == 4


def test_packs_are_those_that_would_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clray.trials.dry_run.available_cpus", lambda: 4)

    def told(local: bool = False, address: str | None = None, **resources: Any) -> str:
        plan = plan_sweep(sweep(grid={"optimizer.learning_rate": [0.1 * i for i in range(1, 11)]}, resources=resources))
        print_dry_run(plan, str(tmp_path), local, address)
        return capsys.readouterr().out.splitlines()[12]

    assert told() == "4 packs: 2 x 3 trials (6 lanes each), 2 x 2 trials (4 lanes each); 4 at a time on the 4 CPUs of this machine"
    assert told(max_lanes=1) == "10 packs: 10 x 1 trial (2 lanes each); 4 at a time on the 4 CPUs of this machine"
    assert told(num_cpus=2) == "2 packs: 2 x 5 trials (10 lanes each); 2 at a time on the 4 CPUs of this machine"
    assert told(local=True) == "1 pack: 1 x 10 trials (20 lanes); 1 at a time in this process"
    for options in ({"address": "10.0.0.1:6379"}, {"num_gpus": 1}):
        assert told(**options) == "packs: as many as fit into memory, and no fewer packs than the cluster has slots for"
    assert told(num_gpus=1, max_lanes=8) == "packs: at most 8 lanes, and no fewer packs than the cluster has slots for"


def test_representations_that_grow_large_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = {"sequence": {"n_tasks": 5000, "policy": "reuse"}, "logging": {"log_frequency": 1, "n_subsamples": 20}}
    print_dry_run(plan_sweep(sweep(base=experiment(**many), grid={"seed": [1]})), str(tmp_path))
    assert "of the disk are representations, which grow with tasks x evaluated tasks x log points" in capsys.readouterr().out
    print_dry_run(plan_sweep(sweep(grid={"seed": [1]})), str(tmp_path))
    assert "are representations" not in capsys.readouterr().out


def test_what_is_there_already_is_counted_and_gives_the_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_sweep(sweep(grid={"seed": [1, 2, 3, 4, 5]}))
    ids = [trial.trial_id for trial in plan.trials]
    storage = Storage.of(tmp_path / "small")
    table = TrialsTable(storage, LAYOUT)
    for trial_id, seconds in zip(ids[:2], (10.0, 30.0), strict=True):
        result = {"status": "done", "n_tasks": 2, "attempts": 1, "seconds": seconds, "metrics": {}}
        storage.replace_bytes(LAYOUT.trial(trial_id).result, json.dumps(result).encode())
        table.rows[trial_id] = row_of(trial_id, {}, TrialStatus("done", 2, 1, result=result))
    table.write()
    failed = {"outcome": "failed", "cause": "program", "error": "ValueError"}
    storage.replace_bytes(LAYOUT.trial(ids[2]).attempt(1), json.dumps(failed).encode())
    for trial_id, record in ((ids[3], {"outcome": "running"}), (ids[4], {"outcome": "failed", "cause": "storage"})):
        storage.replace_bytes(LAYOUT.trial(trial_id).attempt(1), json.dumps(record).encode())  # both run again by themselves
    print_dry_run(plan, str(tmp_path))
    out = capsys.readouterr().out
    assert "2 finished before, 1 failed before (--retry-failed), 2 to run in" in out
    assert "time 40 s on one slot: 2 trials at 20.0 s, the median of 2 finished" in out


def test_batches_after_the_last_log_point_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "the last log point of a task is after batch 4 of 5: weights and representations"
    for frequency, expected in ((4, True), (5, False), (1, False)):
        logged = {"log_frequency": frequency, "n_subsamples": 4}
        print_dry_run(plan_sweep(sweep(base=experiment(logging=logged), grid={"seed": [1, 2]})), str(tmp_path))
        assert capsys.readouterr().out.count(told) == expected
    tables = {"log_frequency": 4, "weights": False, "representations": "none"}
    print_dry_run(plan_sweep(sweep(base=experiment(logging=tables), grid={"seed": [1]})), str(tmp_path))
    assert told not in capsys.readouterr().out
