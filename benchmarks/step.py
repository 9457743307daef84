"""Time per training step and repeat against the bare scan, the PyTorch loop and Avalanche.

    python -m benchmarks.step [--avalanche]

digits, MLP 64-256-256-2, batch 32, SGD, R = 8. ``CLRAY_BENCH_PYTHON`` names the Python that has avalanche-lib. Files are written to
the temporary folder (``TMPDIR``) and, where there is one, to the file system in memory as well: what a disk takes differs from
machine to machine, and a virtual disk takes processor time beside it.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.data import digits_experiment
from benchmarks.peers import bare_scan
from benchmarks.timing import interleave, peer, report
from clray.devices import training_devices
from clray.process import available_cpus, configure_jax

R, STEPS = 8, 80
NO_TENSORS = {"weights": False, "representations": "none"}
MEMORY = Path("/dev/shm")
BLOCK = 2 * 2**20


def clray_task(devices: list[jax.Device], log_frequency: int, tensors: bool = True, n_repeats: int = R) -> Any:
    """A function that trains one task on the devices and waits; no files. Logs are in the memory of the task before, as in a run."""
    from clray.documents import Document, parse_experiment
    from clray.experiment import Member, TrialPack, _Sequence

    class _Folders:
        trial_id, log = "bench", None

    data = digits_experiment(log_frequency=log_frequency, n_repeats=n_repeats)
    if not tensors:
        data["logging"] |= NO_TENSORS
    experiment = parse_experiment(Document("bench", data))
    pack = TrialPack([Member(experiment, _Folders())], devices)  # type: ignore[arg-type]
    sequence = _Sequence(pack, pack.members)
    placed = sequence.lanes.place(sequence._build(0), sequence.row_of_lane)
    states = sequence.lanes.init()

    def train() -> None:
        _, logs = sequence.lanes.train(states, placed, 0, 400)
        sequence.lanes.fetch_logs(logs).close()

    return train


def bare_task(devices: list[jax.Device], n_repeats: int = R) -> Any:
    """The same number of steps on the same devices as a bare scan, lanes spread evenly."""
    width = n_repeats // len(devices)
    rng = np.random.default_rng(0)
    arguments = []
    for device in devices:
        images = rng.random((278, width, 64), np.float32)
        labels = rng.integers(0, 2, (278, width)).astype(np.int32)
        order = np.stack(
            [np.stack([rng.permutation(278)[:256].reshape(8, 32) for _ in range(10)]).reshape(80, 32) for _ in range(width)], 1
        )
        params = bare_scan.init((64, 256, 256, 2), width)
        arguments.append(jax.device_put((params, images, labels, order.astype(np.int32), np.float32(0.1)), device))
    return lambda: jax.block_until_ready([bare_scan.train(*given) for given in arguments])


def beside_writing(devices: list[jax.Device], n_bytes: int, folder: Path) -> Callable[[], None]:
    """The bare scan beside a thread that does nothing but put as many bytes on the disk, past the page cache where it can.

    A call ends when both are done: what they take together is a limit for whatever trains and writes as much.
    """
    block = mmap.mmap(-1, BLOCK)
    block.write(np.random.default_rng(0).bytes(BLOCK))
    train, pool = bare_task(devices), ThreadPoolExecutor(1)

    def write() -> None:
        path = folder / "written"
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
        except OSError:  # a file system without it
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            for _ in range(round(n_bytes / BLOCK)):
                if os.write(file, block) < BLOCK:
                    raise OSError(f"{folder} is full")
            os.fsync(file)
        finally:
            os.close(file)
            path.unlink()

    def both() -> None:
        writing = pool.submit(write)
        train()
        writing.result()

    return both


def whole_run(log_frequency: int, n_tasks: int = 50, tensors: bool = True, folder: Path | None = None) -> tuple[float, int]:
    """Seconds per task of a whole run with files on disk, from the second task's commit on, and bytes a task.

    Many tasks, so that starting and ending weigh little; the first five are evaluated, which is what the peers' five tasks are.
    """
    from clray.documents import Document, parse_experiment
    from clray.trials.job import Job, JobTrial, run_job

    data = digits_experiment(n_tasks, log_frequency=log_frequency)
    data["logging"]["eval_tasks"] = list(range(5))
    if not tensors:
        data["logging"] |= NO_TENSORS
    experiment = parse_experiment(Document("bench", data))
    times: list[float] = []
    with tempfile.TemporaryDirectory(dir=folder) as root:
        job = Job(root, (JobTrial(experiment.trial_id(), experiment.plain(), 1),))
        outcomes = run_job(job, lambda trial_id, event: times.append(time.perf_counter()))
        assert outcomes[0].status == "done", outcomes
        n_bytes = sum(path.stat().st_size for path in Path(root).glob(f"trials/*/task_{n_tasks - 1:03d}/*"))
    return (times[-1] - times[1]) / (len(times) - 2), n_bytes


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--avalanche", action="store_true")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    configure_jax(available_cpus())
    devices = training_devices()
    cases = {
        "bare": bare_task(devices),
        "bare, one device": bare_task(devices[:1]),
        "clray, no logs": clray_task(devices, 80, tensors=False),
        "clray, no logs, one device": clray_task(devices[:1], 80, tensors=False),
        "clray, logs every 8": clray_task(devices, 8),
    }
    per = {name: seconds / STEPS / R * 1e6 for name, seconds in interleave(cases, args.repetitions).items()}
    _, n_bytes = whole_run(8, n_tasks=5)
    # Without logs the peers leave tables and states, no weights or hidden states.
    runs: dict[str, tuple[int, bool, Path | None]] = {"ends": (80, False, None), "ends, tensors": (80, True, None), "logs": (8, True, None)}
    loop = ("benchmarks.peers.pytorch_loop", "--repeats", "2", "--files")
    peers: dict[str, tuple[tuple[str, ...], Path | None]] = {"loop": (loop, None), "loop, logs": ((*loop, "--log-every", "8"), None)}
    if in_memory := MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 60 * n_bytes:
        runs["logs, memory"] = (8, True, MEMORY)
        peers["loop, logs, memory"] = ((*loop, "--log-every", "8"), MEMORY)
    if args.avalanche:
        peers["avalanche"] = (("benchmarks.peers.avalanche_naive", "--repeats", "1"), None)
    # In turn, so that a machine that is slower for a while is so for all of them.
    taken = {name: [] for name in ("bare", "bare, writing", *runs, *peers)}  # type: dict[str, list[float]]
    with tempfile.TemporaryDirectory() as folder:
        limits = {"bare": cases["bare"], "bare, writing": beside_writing(devices, n_bytes, Path(folder))}
        for _ in range(args.runs):
            for name, case in limits.items():  # each by itself: a disk goes on after the last write
                taken[name].append(interleave({name: case}, args.repetitions)[name] / STEPS / R * 1e6)
            for name, (log_frequency, tensors, where) in runs.items():
                taken[name].append(whole_run(log_frequency, tensors=tensors, folder=where)[0] / STEPS / R * 1e6)
            for name, (command, where) in peers.items():
                taken[name].append(peer(*command, temporary=where)["us_per_step"])
    middle = {name: float(np.median(each)) for name, each in taken.items()}
    files, files_tensors, files_logs = (middle[name] for name in ("ends", "ends, tensors", "logs"))
    loop_ends, loop_logs = middle["loop"], middle["loop, logs"]
    bare, beside, writing = per["bare"], middle["bare"], middle["bare, writing"]
    rows = [
        ("bare scan, all devices / one device", f"{bare:.0f} / {per['bare, one device']:.0f} us", ""),
        ("steady step against the bare scan, no logging", f"{per['clray, no logs'] / bare:.2f} x", "<= 1.10 x"),
        ("a log every 8 batches, core alone", f"{per['clray, logs every 8'] / bare:.2f} x", ""),
        ("a log every 8 batches, files written", f"{files_logs:.0f} us, {files_logs / beside:.2f} x", "<= 1.4 x"),
        (
            f"the bare scan beside a thread that only writes as many bytes ({n_bytes / 1e6:.0f} MB a task)",
            f"{writing:.0f} us, {writing / beside:.2f} x",
            "",
        ),
        ("evaluated at task ends, with weights and hidden states in files", f"{files_tensors:.0f} us, {files_tensors / beside:.2f} x", ""),
        (
            "evaluated at task ends, files written, against the PyTorch loop",
            f"{loop_ends:.0f} / {files:.0f} us = {loop_ends / files:.1f} x",
            ">= 7 x",
        ),
        (
            "logs every 8 batches, against the PyTorch loop",
            f"{loop_logs:.0f} / {files_logs:.0f} us = {loop_logs / files_logs:.1f} x",
            ">= 6.5 x",
        ),
        ("two CPU devices against one", f"{per['clray, no logs, one device'] / per['clray, no logs']:.2f} x", ">= 1.7 x"),
    ]
    if in_memory:
        own, loop_own = middle["logs, memory"], middle["loop, logs, memory"]
        rows.append(("a log every 8 batches, files written to memory", f"{own:.0f} us, {own / beside:.2f} x", ""))
        rows.append(("the same, against the PyTorch loop", f"{loop_own:.0f} / {own:.0f} us = {loop_own / own:.1f} x", ""))
    if args.avalanche:
        naive = middle["avalanche"]
        rows.append(("evaluated at task ends, against Avalanche Naive", f"{naive:.0f} / {files:.0f} us = {naive / files:.1f} x", ">= 11 x"))
    report("benchmarks.step", rows)


if __name__ == "__main__":
    main()
