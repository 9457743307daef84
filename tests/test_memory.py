"""Estimates of memory against what XLA and the disk say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import clray
from benchmarks.gpu_programs import CIFAR, MNIST, PROGRAMS, experiment_of
from clray.core.lanes import CPU_WIDTH
from clray.core.task import fresh_room, train_task
from clray.errors import ResourceError
from clray.experiment import TrialPack, _Sequence
from clray.memory import check_fits, estimate, lanes_that_fit, segments_that_fit
from clray.process import machine_bytes
from clray.sizes import sizes_of
from tests.core.tiny import prepare, tiny

DEEP: dict[str, Any] = {"model__hidden": [32] * 10, "training": {"epochs": 3, "batch_size": 84}, "logging__log_frequency": 1}
"""Most of what a step holds are activations."""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__hidden": [64, 64]},
        {"model": {"name": "cnn", "hidden": 32}},
        {"logging": {"log_frequency": 15, "n_subsamples": 6, "weights": False, "representations": "none"}},
        {"optimizer": {"name": "adam"}, "model__hidden": [128]},
        {"sequence": {"n_tasks": 40, "policy": "reuse", "scenario": "task"}, "model__hidden": [64]},
        {"sequence": {"n_tasks": 3, "policy": "permuted", "classes_per_task": 10, "scenario": "class"}, "logging__n_subsamples": 20},
        {"sequence": {"n_tasks": 20, "policy": "rotated", "classes_per_task": 10}, "logging__n_subsamples": 20},
        {**DEEP, "strategy": {"name": "er", "replay_batch": 168}},
        {**DEEP, "strategy": {"name": "der++"}},
        {**DEEP, "strategy": {"name": "agem", "reference_batch": 168}},
        {"model__hidden": [512, 512], "sequence__n_tasks": 5, "strategy": {"name": "gem"}, "logging__weights": False},
        {"model__hidden": [512, 512], "strategy": {"name": "shrink_perturb"}, "logging__weights": False},
    ],
    ids=[
        *("tiny", "wider", "cnn", "no logs", "adam", "40 heads", "permuted", "rotated"),
        *("deep, er", "deep, der++", "deep, agem", "wide, gem", "wide, shrink_perturb"),
    ],
)
def test_estimate_is_within_30_percent_of_the_compiled_program(tmp_path: Path, changes: dict[str, Any]) -> None:
    trial = prepare(tiny(**changes), folder=tmp_path)[0]
    pack = TrialPack([trial.member], jax.local_devices()[:1], width=4)
    sequence = _Sequence(pack, pack.members)
    data = sequence.lanes.place(sequence._build(0), sequence.row_of_lane)
    device = sequence.chunks[0].device
    numbers = (np.int32(0), np.int32(1), np.int32(0))
    lanes, pools = sequence.lanes.lanes_of[0], sequence.lanes.pools_on[device]
    state = sequence.lanes.init()[0]
    arguments = (state, lanes, pools, data[0], *numbers, fresh_room(pack.spec, state, lanes, pools, device))
    measured = train_task.lower(pack.spec, *arguments).compile().memory_analysis()
    total = measured.argument_size_in_bytes + measured.output_size_in_bytes + measured.temp_size_in_bytes
    total -= measured.alias_size_in_bytes
    assert estimate(trial.experiment, pack.sizes).program == pytest.approx(total, rel=0.3)


GPU_MIB = {
    "mlp": 1726,
    "mlp, tf32": 1726,
    "mlp, R=256": 6882,
    "mlp, l2": 1948,
    "mlp, ewc": 2514,
    "mlp, si": 2412,
    "mlp, mas": 2423,
    "mlp, lwf": 1948,
    "mlp, er": 1758,
    "mlp, der": 1758,
    "mlp, der++": 1758,
    "mlp, agem": 1745,
    "mlp, gem": 2502,
    "mlp, shrink_perturb": 1726,
    "mlp, cumulative": 1199,
    "mlp, boundaries detected": 2064,
    "cnn": 2188,
    "cnn, ewc": 2702,
    "cnn, lwf": 2881,
    "cnn, er": 3834,
    "cnn, der++": 5450,
    "cnn, agem": 3815,
    "cnn, gem": 2249,
}
"""What programs of ``benchmarks.gpu_programs`` take on an H100, as XLA counted it when it compiled them for one (JAX 0.10.2)."""


@pytest.mark.parametrize("name", GPU_MIB)
def test_estimate_is_within_10_percent_of_a_program_for_a_gpu(name: str) -> None:
    experiment = experiment_of(PROGRAMS[name])
    need = estimate(experiment, sizes_of(experiment, MNIST if name.startswith("mlp") else CIFAR), on_gpu=True)
    assert need.program / 2**20 == pytest.approx(GPU_MIB[name], rel=0.1)


def test_estimate_of_the_disk_is_within_30_percent_of_the_files(tmp_path: Path) -> None:
    results = clray.run(tiny(model__hidden=[64, 64]), output=tmp_path)
    trial = results.trial("t_")
    folder = tmp_path / "tiny" / "trials" / trial.trial_id
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    ready = prepare(tiny(model__hidden=[64, 64]), folder=tmp_path / "other")[0]
    assert estimate(trial.experiment, ready.pack.sizes).disk == pytest.approx(written, rel=0.3)


def test_logs_that_do_not_fit_come_in_the_fewest_equal_segments(tmp_path: Path) -> None:
    trial = prepare(tiny(logging__log_frequency=1), folder=tmp_path)[0]  # L = 15
    need = 2 * estimate(trial.experiment, trial.pack.sizes).logs
    fits = {available: segments_that_fit(trial.experiment, trial.pack.sizes, 1, available) for available in (need, need - 1, need // 4)}
    assert fits == {need: 1, need - 1: 3, need // 4: 5}


def test_a_log_point_that_cannot_fit_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    trial = prepare(tiny(), folder=tmp_path)[0]
    with pytest.raises(ResourceError, match=r"one log point of 4 lanes takes 0 MiB .* Lower resources.max_lanes"):
        segments_that_fit(trial.experiment, trial.pack.sizes, 1, 100)


def test_a_pack_of_other_programs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs another program"):
        prepare(tiny(), tiny(model__hidden=[8]), folder=tmp_path)


TABLES_ONLY = {"log_frequency": 3, "n_subsamples": 6, "weights": False, "representations": "none"}


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence": {"n_tasks": 25, "policy": "reuse"}, "n_repeats": 8},
        {"sequence": {"n_tasks": 25, "policy": "reuse", "scenario": "task"}, "n_repeats": 8},
        {"sequence": {"n_tasks": 20, "policy": "reuse", "classes_per_task": 3}},
    ],
    ids=["domain", "task", "three classes"],
)
def test_estimate_of_tables_alone_is_within_30_percent_of_the_files(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Compressed, a row of a table takes a fraction of its bytes."""
    (trial,) = prepare(tiny(logging=TABLES_ONLY, **changes), folder=tmp_path / "sweep")
    trial.run()
    written = sum(path.stat().st_size for path in trial.folder.rglob("*") if path.is_file())
    assert estimate(trial.experiment, trial.pack.sizes).disk == pytest.approx(written, rel=0.3)


def test_a_cpu_holds_the_temporaries_of_the_lanes_that_run_at_once() -> None:
    experiment = experiment_of(PROGRAMS["mlp"])
    sizes = sizes_of(experiment, MNIST)
    all_at_once, two_devices = estimate(experiment, sizes), estimate(experiment, sizes, n_devices=2)
    assert all_at_once.temporary * 2 * CPU_WIDTH == two_devices.temporary * sizes.n_repeats
    on_gpu = estimate(experiment, sizes, on_gpu=True, n_devices=2)
    assert on_gpu.temporary == estimate(experiment, sizes, on_gpu=True).temporary
    assert on_gpu.source == sizes.n_source * 784
    assert on_gpu.built < on_gpu.data / 50  # numbers of images instead of images


def test_lanes_that_fit_share_what_is_there_once() -> None:
    experiment = experiment_of(PROGRAMS["mlp"])
    sizes = sizes_of(experiment, MNIST)
    for on_gpu in (False, True):
        need = estimate(experiment, sizes, on_gpu, 2)
        once = need.source + (0 if on_gpu else need.temporary)
        assert lanes_that_fit(need, sizes.n_repeats, need.device, on_gpu) == sizes.n_repeats
        assert lanes_that_fit(need, sizes.n_repeats, once + 3 * (need.device - once), on_gpu) == 3 * sizes.n_repeats
        assert lanes_that_fit(need, sizes.n_repeats, 0, on_gpu) == 0


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"model__hidden": [4096, 4096], "training": {"steps": 8, "batch_size": 2}, "logging": {**TABLES_ONLY}}, "smaller model"),
        ({"training": {"steps": 3000, "batch_size": 2}, "logging": {"log_frequency": 1, "n_subsamples": 6}}, "Log less"),
        ({**DEEP, "logging": {**TABLES_ONLY}, "model__hidden": [16] * 80}, "training.batch_size"),
        ({"training": {"steps": 30000, "batch_size": 42}, "logging": {**TABLES_ONLY, "log_frequency": 10000}}, "training.epochs"),
    ],
    ids=["state", "logs", "work", "data"],
)
def test_what_cannot_fit_is_refused_with_the_arithmetic_and_what_helps(tmp_path: Path, changes: dict[str, Any], advice: str) -> None:
    (trial,) = prepare(tiny(**changes), folder=tmp_path)
    need, sizes = estimate(trial.experiment, trial.pack.sizes, n_devices=2), trial.pack.sizes
    least = 2 * need.state + need.data + need.pools + need.logs + int(need.temporary / 1.3)
    check_fits(need, sizes, "t_x", least)
    with pytest.raises(ResourceError, match=rf"^t_x needs at least .* of memory, and this machine has .*{advice}"):
        check_fits(need, sizes, "t_x", least - 1)
    with pytest.raises(ResourceError, match="all repeats of 2 trials,.*; or lower resources.max_lanes"):
        check_fits(need, sizes, "t_x", least, n_trials=2)
    shared = least + 2 * need.state + need.logs
    check_fits(need, sizes, "t_x", shared, n_trials=2)  # of one seed, so the data is there once
    with pytest.raises(ResourceError):
        check_fits(need, sizes, "t_x", shared + need.data - 1, n_trials=2, n_seeds=2)


def test_a_pack_that_cannot_fit_is_refused_before_it_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clray.experiment.machine_bytes", lambda: 10_000)
    with pytest.raises(ResourceError, match="this machine has 9.8 KiB"):
        prepare(tiny(), folder=tmp_path)


def test_a_control_group_limits_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Docker (a limit at the root), Slurm (one on the way to the own group) and version 1 of control groups set it."""
    whole = machine_bytes()
    monkeypatch.setattr("clray.process.CGROUPS", tmp_path)
    read = Path.read_text

    def groups(lines: str) -> None:
        monkeypatch.setattr(Path, "read_text", lambda path, *args: lines if str(path) == "/proc/self/cgroup" else read(path, *args))

    own = tmp_path / "slurm" / "job_1" / "step_0"
    own.mkdir(parents=True)
    groups("0::/slurm/job_1/step_0\n")
    assert machine_bytes() == whole
    (own / "memory.max").write_text("max\n")
    assert machine_bytes() == whole
    (tmp_path / "slurm" / "job_1" / "memory.max").write_text(f"{whole // 2}\n")
    assert machine_bytes() == whole // 2
    groups("0::/\n")
    (tmp_path / "memory.max").write_text(f"{whole // 4}\n")
    assert machine_bytes() == whole // 4
    groups("3:cpu:/x\n4:memory,hugetlb:/docker/abc\n")
    (tmp_path / "memory" / "docker" / "abc").mkdir(parents=True)
    (tmp_path / "memory" / "docker" / "abc" / "memory.limit_in_bytes").write_text(f"{whole // 8}\n")
    assert machine_bytes() == whole // 8


def test_a_gpu_holds_two_log_points_and_the_temporaries_of_all_trials() -> None:
    """Logs leave it in segments; all lanes run at once there."""
    experiment = experiment_of(PROGRAMS["mlp"])
    sizes = sizes_of(experiment, MNIST)
    need = estimate(experiment, sizes, on_gpu=True)
    assert sizes.n_logs > 2
    least = 4 * need.state + need.data + need.pools + 2 * (2 * need.logs // sizes.n_logs) + int(2 * need.temporary / 1.3)
    check_fits(need, sizes, "t_x", least, n_trials=2, on_gpu=True)
    with pytest.raises(ResourceError, match="its devices have .* for two log points, and "):
        check_fits(need, sizes, "t_x", least - 1, n_trials=2, on_gpu=True)
