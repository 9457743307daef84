"""Long sequences: seconds per task and peak memory at T = 500 against T = 5; a whole process against Avalanche at T = 50.

python -m benchmarks.tasks [--avalanche]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.data import digits_experiment
from benchmarks.timing import peer, report

CHILD = "import sys; from benchmarks.tasks import child; child(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))"


def child(n_tasks: int, root: str, n_repeats: int) -> None:
    """Runs one experiment and prints JSON: seconds a task, peak resident MiB, seconds in all.

    A task counts from the second commit to the last but one: while the last one is written nothing trains, which would flatter few tasks.
    """
    from clray.process import available_cpus, configure_jax

    start = time.perf_counter()
    configure_jax(available_cpus())
    from clray.documents import Document, parse_experiment
    from clray.trials.job import Job, JobTrial, run_job

    data = digits_experiment(n_tasks, n_repeats)
    data["sequence"]["policy"] = "reuse"
    data["logging"] |= {"representations": "none"}
    experiment = parse_experiment(Document("bench", data))
    times: list[float] = []
    outcomes = run_job(Job(root, (JobTrial(experiment.trial_id(), experiment.plain(), 1),)), lambda *_: times.append(time.perf_counter()))
    assert outcomes[0].status == "done", outcomes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"per_task": (times[-2] - times[1]) / (len(times) - 3), "peak": peak, "seconds": time.perf_counter() - start}))


def run_child(n_tasks: int, n_repeats: int = 8) -> dict[str, float]:
    """``child`` in a process of its own."""
    with tempfile.TemporaryDirectory() as root:
        out = subprocess.run([sys.executable, "-c", CHILD, str(n_tasks), root, str(n_repeats)], check=True, capture_output=True, text=True)
    return json.loads(out.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def several(rounds: int = 3, short_runs: int = 5) -> tuple[dict[str, float], dict[str, float]]:
    """Medians of T = 5 and of T = 500, in turn: five runs of the first, in which few tasks count, before each of the second.

    So the very first run, which compiles, does not count: compiling takes more memory than training.
    """
    short, long = [], []
    for _ in range(rounds):
        short += [run_child(5) for _ in range(short_runs)]
        long.append(run_child(500))
    first, second = ({key: statistics.median(run[key] for run in runs) for key in runs[0]} for runs in (short, long))
    return first, second


def whole_process(n_tasks: int, n_repeats: int) -> float:
    """Seconds of ``clray run``, start to files on disk, evaluated at task ends with weights and hidden states."""
    with tempfile.TemporaryDirectory() as root:
        file = Path(root) / "bench.json"  # JSON is YAML
        file.write_text(json.dumps(digits_experiment(n_tasks, n_repeats, log_frequency=80)))
        start = time.perf_counter()
        subprocess.run([str(Path(sys.executable).with_name("clray")), "run", str(file), "-q", "-o", root], check=True)
        return time.perf_counter() - start


def avalanche_process(n_tasks: int, n_repeats: int) -> float:
    """Seconds of the same in Avalanche, one repeat after the other in one process."""
    with tempfile.TemporaryDirectory() as results:
        start = time.perf_counter()
        peer("benchmarks.peers.avalanche_naive", "--tasks", str(n_tasks), "--repeats", str(n_repeats), "--results", results)
        return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--avalanche", action="store_true")
    args = parser.parse_args()
    short, long = several()
    rows = [
        (
            "seconds per task, T=500 against T=5",
            f"{long['per_task']:.3f} / {short['per_task']:.3f} = {long['per_task'] / short['per_task']:.2f} x",
            "<= 1.10 x",
        ),
        (
            "peak resident memory, T=500 against T=5",
            f"{long['peak']:.0f} / {short['peak']:.0f} MiB = {long['peak'] / short['peak']:.2f} x",
            "<= 1.10 x",
        ),
    ]
    if args.avalanche:
        both = [(whole_process(50, 16), avalanche_process(50, 16)) for _ in range(3)]
        ours, theirs = (statistics.median(each) for each in zip(*both, strict=True))
        rows.append(("whole process, T=50, R=16, against Avalanche", f"{theirs:.0f} / {ours:.0f} s = {theirs / ours:.1f} x", ">= 6 x"))
    report("benchmarks.tasks", rows)


if __name__ == "__main__":
    main()
