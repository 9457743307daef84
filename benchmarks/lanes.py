"""Wide packs: 128 lanes against 8 per step and lane; and 16 learning rates packed into lanes against one trial at a time.

python -m benchmarks.lanes
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.data import digits_experiment
from benchmarks.step import STEPS, clray_task
from benchmarks.timing import interleave, report
from clray.devices import training_devices
from clray.process import available_cpus, configure_jax


def sweep_seconds(max_lanes: int | str, root: Path, log_frequency: int, fresh: bool = False) -> float:
    """Wall seconds of 16 learning rates x 8 repeats through Ray, Ray's own start included.

    Args:
        log_frequency: batches between logs with weights and hidden states; a task has 80.
        fresh: a process of its own for every Ray task, as on GPUs; otherwise a CPU worker is used again, with what it compiled.
    """
    import ray

    from clray.trials import runner_ray
    from clray.trials.entry import execute, quiet
    from clray.trials.plan import plan_sweep

    rates = [round(float(rate), 6) for rate in np.geomspace(0.01, 0.2, 16)]
    plan = plan_sweep(
        {
            "name": "rates",
            "experiment": digits_experiment(log_frequency=log_frequency),
            "grid": {"optimizer.learning_rate": rates},
            "resources": {"max_lanes": max_lanes, "num_cpus": 2},
        }
    )
    usual = runner_ray.RayRunner._task
    if fresh:
        task = ray.remote(num_cpus=2, max_calls=1, max_retries=0)(runner_ray.work)
        runner_ray.RayRunner._task = lambda self: task  # type: ignore[method-assign]
    try:
        start = time.perf_counter()
        result = execute(plan, str(root), quiet, local=False)
        seconds = time.perf_counter() - start
    finally:
        runner_ray.RayRunner._task = usual  # type: ignore[method-assign]
    assert not result.failed, result.failed
    return seconds


def same_arrays(one: Path, other: Path) -> int:
    """Number of .npy files compared; all must agree bit for bit."""
    names = [path.relative_to(one) for path in one.glob("rates/trials/*/*/*.npy")]
    for name in names:
        assert np.array_equal(np.load(one / name), np.load(other / name)), name
    return len(names)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for log_frequency, logged in ((80, "logs at task ends"), (8, "logs every 8 batches")):
        cases: dict[str, tuple[int | str, bool]] = {"packed": ("auto", False), "fresh": (1, True), "again": (1, False)}
        taken: dict[str, list[float]] = {name: [] for name in cases}
        for run in range(args.runs):
            with tempfile.TemporaryDirectory() as folder:
                for name, (max_lanes, fresh) in cases.items():
                    taken[name].append(sweep_seconds(max_lanes, Path(folder, name), log_frequency, fresh))
                if not run:
                    compared = same_arrays(Path(folder, "packed"), Path(folder, "again"))
        packed, alone, single = (float(np.median(taken[name])) for name in cases)
        what = f"16 learning rates x R=8 through Ray, {logged}: one at a time in"
        rows += [
            (f"{what} fresh processes (as on GPUs) / packed", f"{alone:.1f} / {packed:.1f} s = {alone / packed:.1f} x", ">= 4 x"),
            (
                f"{what} one CPU worker that keeps what it compiled / packed",
                f"{single:.1f} / {packed:.1f} s = {single / packed:.1f} x",
                ">= 4 x",
            ),
            (f"the same, {logged}: arrays of packed trials equal those of the same trials alone", f"{compared} files, bit for bit", "all"),
        ]
    configure_jax(available_cpus())
    devices = training_devices()
    widths = {f"{lanes} lanes": clray_task(devices, 8, n_repeats=lanes) for lanes in (8, 128)}
    per = {name: seconds / STEPS / int(name.split()[0]) * 1e6 for name, seconds in interleave(widths, 7).items()}
    rows.append(("128 lanes against 8, per step and lane, logs every 8", f"{per['128 lanes'] / per['8 lanes']:.2f} x", "<= 1.05 x"))
    report("benchmarks.lanes", rows)


if __name__ == "__main__":
    main()
