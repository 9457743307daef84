"""What the driver costs: 500 finished trials run again, a dry run of 10,000 points, ``clray --help``; workers on Ray.

python -m benchmarks.driver
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.data import digits_experiment
from benchmarks.timing import report

CLRAY = str(Path(sys.executable).with_name("clray"))


def seconds(*arguments: str) -> float:
    """Wall seconds of one ``clray`` command."""
    start = time.perf_counter()
    subprocess.run([CLRAY, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def write(folder: Path, name: str, **sweep: object) -> str:
    """A sweep file over the benchmarks' experiment."""
    experiment = digits_experiment(2, 1, 4) | {"training": {"steps": 4, "batch_size": 32}, "model": {"name": "mlp", "hidden": [16]}}
    experiment["logging"] |= {"weights": False, "representations": "none"}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, "experiment": {**experiment, **sweep.pop("experiment", {})}, **sweep}))  # type: ignore[dict-item]
    return str(path)


def unpackable(folder: Path, workers: int) -> float:
    """Seconds of 16 trials of 16 widths on a Ray of so many single-CPU workers, from the first start to the last end.

    Ray, its workers and this process have as many CPUs as there are workers, and no more: the threads with which a worker compiles
    and writes would take those of the others. Every trial is compiled: nothing is left from the runs before.
    """
    import ray

    from clray.trials.entry import execute
    from clray.trials.plan import plan_sweep

    experiment = digits_experiment(20, 8, 80)
    sweep = {"name": f"workers{workers}", "experiment": experiment, "grid": {"model.hidden": [[256 - i, 256] for i in range(16)]}}
    times: list[float] = []
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cpus)[:workers])  # Ray's processes inherit this, and the next line
    os.environ["CLRAY_COMPILED_DIR"] = str(folder / "compiled")
    ray.init(address="local", num_cpus=workers, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        result = execute(plan_sweep(sweep), str(folder), lambda *_: times.append(time.perf_counter()), local=False)
    finally:
        ray.shutdown()
        del os.environ["CLRAY_COMPILED_DIR"]
        os.sched_setaffinity(0, cpus)
    assert not result.failed
    return times[-1] - times[1]


def main() -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        rates = [round(1e-3 * 1.01**i, 9) for i in range(500)]
        many = write(folder, "many", grid={"optimizer.learning_rate": rates})
        subprocess.run([CLRAY, "sweep", many, "--local", "-q", "-o", root], check=True)
        again = median(seconds("sweep", many, "-q", "-o", root) for _ in range(3))
        points = write(folder, "points", grid={"optimizer.learning_rate": rates[:100], "seed": list(range(100))})
        dry = median(seconds("sweep", points, "--dry-run", "-o", root) for _ in range(3))
        helped = median(seconds("--help") for _ in range(7))
        taken = [[unpackable(folder / f"{i}-{workers}", workers) for workers in (1, 2)] for i in range(3)]
        one, two = (median(each) for each in zip(*taken, strict=True))
    rows = [
        ("500 trials already done, run again", f"{again:.2f} s", "<= 3 s"),
        ("dry run of 10,000 points", f"{dry:.2f} s", "<= 5 s"),
        ("clray --help", f"{helped:.2f} s", "<= 0.35 s"),
        ("16 unpackable trials, 1 / 2 single-CPU workers on as many CPUs", f"{one:.1f} / {two:.1f} s = {one / two:.2f} x", ">= 1.8 x"),
    ]
    report("benchmarks.driver", rows)


if __name__ == "__main__":
    main()
