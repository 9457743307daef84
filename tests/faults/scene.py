"""Sweeps to be disturbed, the commands that run them, and what must be left in the end: the files of an undisturbed run."""

from __future__ import annotations

import collections
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clray.process_tree import birth_of
from clray.trials.plan import plan_sweep
from tests.core.tiny import Arrays, arrays_of, assert_same_bits

REPOSITORY = Path(__file__).parents[2]
CLRAY = str(Path(sys.executable).with_name("clray"))
N_TASKS = 3
SEEDS = range(10)

EXPERIMENT: dict[str, Any] = {
    "n_repeats": 2,
    "sequence": {"n_tasks": N_TASKS},
    "dataset": {"name": "digits", "train_per_class": 20},
    "model": {"name": "tests.faults.planted:Net", "hidden": [8]},
    "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    "training": {"epochs": 2, "batch_size": 8},
    "logging": {"log_frequency": 5, "n_subsamples": 4},
}


WITH_QUICK_LEASES = [
    sys.executable,
    "-c",
    "from clray.store import lease; lease.RENEW_SECONDS, lease.STALE_SECONDS, lease.WATCH_SECONDS = 0.5, 1.0, 1.5; "
    "from clray.cli import main; main()",
]
"""clray that renews its lease often, and takes over after a second of silence."""


def sweep_of(seeds: Iterable[int], **more: Any) -> dict[str, Any]:
    """A sweep over seeds, a program a trial."""
    return {"name": "s", "experiment": copy.deepcopy(EXPERIMENT), "grid": {"seed": list(seeds)}, "resources": {"max_lanes": 2}, **more}


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Waits for something to be true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)
    return found


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float = 0.0


class Scene:
    """One sweep over seeds in a folder of its own.

    Args:
        folder: for its files.
        expected: the arrays of an undisturbed run, by trial.
        seeds: of the sweep.

    Attributes:
        root: the sweep's folder, or what ``Bucket.copy_to`` makes of it.
        output: what ``-o`` says.
        beside: files of a trial that an undisturbed run does not have.
    """

    output = "out"
    beside: frozenset[str] = frozenset()

    def __init__(self, folder: Path, expected: dict[str, Arrays], seeds: Iterable[int]):
        self.folder = folder
        self.expected = expected
        self.file = folder / "s.yaml"
        self.root = folder / "out" / "s"
        self.orders = folder / "out" / "orders"
        self.started: list[subprocess.Popen[str]] = []
        self.seeds: dict[str, int] = {}
        self.write(sweep_of(seeds))

    def write(self, sweep: dict[str, Any]) -> None:
        """Writes the sweep's file; its trials are ``self.ids`` by seed."""
        self.file.write_text(json.dumps(sweep))
        self.ids = {trial.params["seed"]: trial.trial_id for trial in plan_sweep(self.file).trials}
        self.seeds |= {trial_id: seed for seed, trial_id in self.ids.items()}

    def order(self, seed: int | None, moment: str, *orders: str) -> None:
        """Plants orders for a moment of a trial; without a seed, see ``planted``."""
        path = self.orders / ("any" if seed is None else self.ids[seed]) / moment
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(orders))

    def carried_out(self) -> list[list[str]]:
        """Orders carried out so far: trial id, moment, order, (its amount,) process, and node where there is one."""
        path = self.orders / "done.log"
        return [line.split(" ") for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, seed: int, moment: str, times: int = 1, seconds: float = 90) -> list[str]:
        """Waits until an order was carried out there for the so-manieth time."""

        def last() -> list[str] | None:
            found = [done for done in self.carried_out() if done[:2] == [self.ids[seed], moment]]
            return found[times - 1] if len(found) >= times else None

        return until(last, seconds, f"{moment} of seed {seed}")

    def ended_attempts(self, seed: int) -> list[list[str]]:
        """Attempts at a trial that came to their own end: number, status, cause."""
        path = self.orders / "ended.log"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [line[1:] for line in lines if line[0] == self.ids[seed]]

    def trainings(self) -> list[list[str]]:
        """Trainings of tasks that were begun, in order: trial id, task, attempt."""
        path = self.orders / "trained.log"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def trained(self) -> dict[tuple[int, int], int]:
        """How often each task of each seed was trained."""
        return dict(collections.Counter((self.seeds[trial_id], int(task)) for trial_id, task, _ in self.trainings()))

    def start(self, *options: str, environment: dict[str, str] | None = None, argv: list[str] | None = None) -> subprocess.Popen[str]:
        """Starts ``clray sweep`` on the file."""
        command = [*(argv or [CLRAY]), "sweep", "s.yaml", "-o", self.output, *options]
        given = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CLRAY_TEST_ORDERS": str(self.orders), **(environment or {})}
        process = subprocess.Popen(command, cwd=self.folder, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.started.append(process)
        return process

    def end(self, process: subprocess.Popen[str], seconds: float = 300) -> Ended:
        """Waits for a command."""
        begun = time.monotonic()
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"not ended within {seconds:g} s: {process.communicate()}") from None
        assert "Traceback" not in out + err, out + err
        return Ended(process.returncode, out, err, time.monotonic() - begun)

    def run(self, *options: str, **more: Any) -> Ended:
        """``clray sweep`` on the file, to its end."""
        return self.end(self.start(*options, **more))

    def status(self) -> str:
        """What ``clray status`` prints."""
        done = subprocess.run([CLRAY, "status", str(self.root)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rows(self) -> dict[int, dict[str, Any]]:
        """trials.parquet by seed."""
        by_id = {row["trial_id"]: row for row in pq.read_table(self.root / "trials.parquet").to_pylist()}
        return {seed: by_id[trial_id] for seed, trial_id in self.ids.items()}

    def attempts(self, seed: int) -> list[dict[str, Any]]:
        """The records of a trial's attempts."""
        return [json.loads(path.read_text()) for path in sorted((self.trial(seed) / "attempts").glob("*.json"))]

    def trial(self, seed: int) -> Path:
        """A trial's folder."""
        return self.root / "trials" / self.ids[seed]

    def committed_by(self, seed: int) -> dict[str, str]:
        """Folder to the attempt that committed it, of one trial."""
        markers = sorted(self.trial(seed).glob("*/COMMIT.json"))
        return {path.parent.name: json.loads(path.read_text())["attempt"].partition("-")[0] for path in markers}

    def assert_same_files(self, seed: int, orphan: str = "") -> None:
        """One trial is finished with the files of an undisturbed run and no others, and trained no task that was committed.

        Args:
            orphan: number of an attempt that was frozen and woke up: what it trains until it learns that it was replaced is lost.
        """
        assert_same_bits(arrays_of(self.trial(seed)), self.expected[self.ids[seed]])
        present = {path.name for path in self.trial(seed).iterdir()}
        folders = {"initial", *(f"task_{task:03d}" for task in range(N_TASKS))}
        assert present - self.beside == folders | {"attempts", "config.yaml", "classes.npy", "eval_samples.npy", "RESULT.json"}
        committed = self.committed_by(seed)
        for task in range(N_TASKS):
            by = [attempt for trial_id, number, attempt in self.trainings() if (trial_id, number) == (self.ids[seed], str(task))]
            by = [attempt for attempt in by if not orphan or attempt.partition("-")[0] != orphan or attempt == by[0]]
            # In the order of the log: whoever committed the task was the last one to train it.
            assert by[-1].partition("-")[0] == committed[f"task_{task:03d}"], (seed, task, by, committed)
            assert len(set(by)) == len(by)

    def assert_undisturbed(self, trained: dict[tuple[int, int], int] | None = None, orphan: str = "") -> None:
        """``assert_same_files`` of all trials.

        Args:
            trained: where it is certain, how often a task (seed, task) was trained; all others were trained once.
            orphan: see there.
        """
        for seed in self.ids:
            self.assert_same_files(seed, orphan)
        if trained is not None:
            assert self.trained() == {(seed, task): 1 for seed in self.seeds.values() for task in range(N_TASKS)} | trained

    def close(self) -> None:
        """Ends what a failed test left running."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.communicate()


def gone(processes: dict[int, int]) -> bool:
    """Whether none of these processes (id to birth) runs any more."""
    return not any(birth_of(pid) == born for pid, born in processes.items())
