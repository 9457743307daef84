"""How many trials one driver can carry: trials that do nothing, on a local Ray cluster of 8 nodes, through the real driver.

python -m benchmarks.scale [TRIALS]

Everything that the driver does is real (expansion, packs, Ray tasks, messages, trials.parquet, the lease); only what a worker
does with its trial is replaced: it writes the files that say the trial is done. Ray's own processes (raylets, GCS, workers) are
not the driver's CPU time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.data import digits_experiment
from benchmarks.timing import report
from clray.store.lease import Lease
from clray.trials.plan import Plan, plan_sweep
from clray.trials.runner_ray import RayRunner
from clray.trials.sweep import run_plan, sweep_root
from clray.trials.table import TrialsTable

NODES = 8
TRIALS = 2000
MOST_POINTS = 100_000
SLOW_SECONDS = 120.0


def nothing(job: dict[str, Any], *settings: Any) -> list[dict[str, Any]]:
    """What a worker does in place of training: the files and messages of a trial that is done."""
    from clray.artifacts import write_attempt
    from clray.store.filesystem import Storage
    from clray.store.layout import SweepLayout
    from clray.trials.job import Outcome

    storage = Storage.of(job["root"])
    board = settings[-1]
    outcomes = []
    for trial in job["trials"]:
        board.post.remote(trial["trial_id"], {"event": "start", "attempt": trial["attempt"]})
        paths = SweepLayout().trial(trial["trial_id"])
        write_attempt(storage, paths, trial["attempt"], {"outcome": "done"})
        metrics = {name: {"mean": 0.5, "sem": 0.1, "repeats": [0.5]} for name in ("acc", "forgetting", "bwt", "fwt", "learning_acc")}
        result = {"status": "done", "n_tasks": 2, "attempts": 1, "n_diverged": 0, "seconds": 0.1, "metrics": metrics}
        storage.replace_bytes(paths.result, json.dumps(result).encode())
        board.post.remote(trial["trial_id"], {"event": "task", "task": 1, "n_tasks": 2, "accuracy": 0.5})
        outcomes.append(dataclasses.asdict(Outcome(trial["trial_id"], "done", attempt=trial["attempt"])))
    return outcomes


def slow(job: dict[str, Any], *settings: Any) -> list[dict[str, Any]]:
    """A trial that takes long the first time, and nothing after that."""
    if job["trials"][0]["attempt"] == 1:
        settings[-1].post.remote(job["trials"][0]["trial_id"], {"event": "start", "attempt": 1})
        time.sleep(SLOW_SECONDS)
    return nothing(job, *settings)


class IdleRunner(RayRunner):
    """The real runner with other work for its tasks."""

    work: Any = staticmethod(nothing)

    def _task(self) -> Any:
        import ray

        return ray.remote(num_cpus=self.num_cpus, max_retries=0)(self.work)


class SlowRunner(IdleRunner):
    work: Any = staticmethod(slow)


def idle_plan(name: str, n_trials: int) -> Plan:
    """A sweep of so many learning rates, each a trial and a task of its own."""
    experiment = digits_experiment(2, 1, 4) | {"training": {"steps": 4, "batch_size": 32}, "model": {"name": "mlp", "hidden": [16]}}
    rates = [round(1e-3 * 1.001**i, 12) for i in range(n_trials)]
    return plan_sweep(
        {"name": name, "experiment": experiment, "grid": {"optimizer.learning_rate": rates}, "resources": {"num_gpus": 0, "max_lanes": 1}}
    )


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Meter:
    """Counts what the driver writes to trials.parquet, and samples its memory as trials end."""

    def __init__(self) -> None:
        self.table_bytes: list[int] = []
        self.table_seconds = 0.0
        self.memory: list[int] = []

    def __call__(self, trial_id: str, event: Mapping[str, Any]) -> None:
        del trial_id
        if event["event"] == "end":
            self.memory.append(resident_bytes())

    def counted(self, write: Any) -> Any:
        """``TrialsTable.write`` that is counted."""

        @functools.wraps(write)
        def counting(table: TrialsTable) -> None:
            since = time.perf_counter()
            write(table)
            self.table_seconds += time.perf_counter() - since
            path = table._storage.local_path(table._layout.trials_table)
            self.table_bytes.append(path.stat().st_size)

        return counting


def many_trials(output: str, n_trials: int) -> tuple[list[tuple[str, str, str]], float, float]:
    """Rows of the report; CPU seconds and bytes of the driver for each trial."""
    plan = idle_plan("many", n_trials)
    meter = Meter()
    original = TrialsTable.write
    TrialsTable.write = meter.counted(original)  # type: ignore[method-assign]
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        storage = sweep_root(output, plan.name)
        with Lease.claim(storage, force=False) as lease:
            result = run_plan(plan, storage, IdleRunner(plan.sweep.resources), meter, lease)
    finally:
        TrialsTable.write = original  # type: ignore[method-assign]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert not result.failed, result.failed[:3]
    warm = len(meter.memory) // 4
    grown = (meter.memory[-1] - meter.memory[warm]) / (len(meter.memory) - warm)
    rows = [
        (f"{n_trials} trials of no work, {NODES} nodes", f"{wall:.0f} s, {n_trials / wall:.0f} trials/s", ""),
        ("CPU of the driver", f"{1e3 * cpu / n_trials:.1f} ms a trial", ""),
        ("memory of the driver", f"{grown / 1024:.1f} KiB a trial, {meter.memory[-1] / 2**20:.0f} MiB at the end", ""),
        (
            "writes of trials.parquet",
            f"{len(meter.table_bytes)}, {sum(meter.table_bytes) / 2**20:.2f} MiB in all, the last {meter.table_bytes[-1] / 1024:.0f} KiB; "
            f"{100 * meter.table_seconds / wall:.1f}% of the time",
            "<= 3% of the time",
        ),
    ]
    return rows, cpu / n_trials, grown


def lost_node(output: str, name: str, n_nodes: int, lose: Callable[[], None]) -> str:
    """Seconds from the loss of a node to the first trial that goes out again, as text.

    Args:
        n_nodes: nodes that are alive, each with one slot.
        lose: makes one of them go.
    """
    plan = idle_plan(name, n_nodes)
    started: set[str] = set()
    all_started = threading.Event()
    lost_at: list[float] = []
    again_at: list[float] = []

    def on_event(trial_id: str, event: Mapping[str, Any]) -> None:
        if event["event"] == "start":
            started.add(trial_id)
            if len(started) == n_nodes:
                all_started.set()
        if event["event"] == "retry":
            again_at.append(time.perf_counter())
            raise KeyboardInterrupt

    def lose_when_started() -> None:
        if all_started.wait(SLOW_SECONDS):
            lost_at.append(time.perf_counter())
            lose()

    thread = threading.Thread(target=lose_when_started)
    thread.start()
    storage = sweep_root(output, plan.name)
    with contextlib.suppress(KeyboardInterrupt), Lease.claim(storage, force=False) as lease:
        run_plan(plan, storage, SlowRunner(plan.sweep.resources), on_event, lease)
    thread.join()
    if not lost_at:
        return f"not measured: {len(started)} of {n_nodes} trials started"
    if not again_at:
        return f"not seen: the trial ended first, after {SLOW_SECONDS:.0f} s"
    return f"{again_at[0] - lost_at[0]:.1f} s"


def lost_nodes(output: str, cluster: Any, nodes: list[Any]) -> list[tuple[str, str, str]]:
    """Rows for a node that is killed, and for one that is frozen."""
    n_nodes, node = alive(nodes)
    killed = lost_node(output, "killed", n_nodes, lambda: cluster.remove_node(node, allow_graceful=False))
    _, node = alive(nodes)
    return [
        ("a node is killed: until its trial goes out again", killed, ""),
        ("a raylet is frozen: until Ray calls its node dead (its worker goes on)", frozen_node(node), ""),
    ]


def frozen_node(node: Any) -> str:
    """Seconds from SIGSTOP of a node's raylet until the cluster counts the node as dead, by Ray's own health checks."""
    import ray

    raylet = node.all_processes["raylet"][0].process.pid
    started = time.perf_counter()
    os.kill(raylet, signal.SIGSTOP)
    try:
        while time.perf_counter() - started < SLOW_SECONDS:
            if not any(known["NodeID"] == node.node_id and known["Alive"] for known in ray.nodes()):
                return f"{time.perf_counter() - started:.1f} s"
            time.sleep(0.1)
        return f"not within {SLOW_SECONDS:.0f} s"
    finally:
        os.kill(raylet, signal.SIGCONT)


def alive(nodes: list[Any]) -> tuple[int, Any]:
    """How many nodes are alive (a busy machine can lose one by itself), and the last of those that are not the head."""
    import ray

    ids = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    left = [node for node in nodes if node.node_id in ids and "raylet" in node.all_processes]
    return 1 + len(left), left[-1]


def main() -> None:
    """Measures and prints."""
    n_trials = int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(NODES - 1)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        with tempfile.TemporaryDirectory() as output:
            rows, cpu, grown = many_trials(output, n_trials)
            rows += lost_nodes(output, cluster, nodes)
    finally:
        ray.shutdown()
        cluster.shutdown()
    rows.append(
        (
            "the largest sweep of one driver",
            f"{MOST_POINTS:,} points, the most that a file may expand to: {cpu * MOST_POINTS / 60:.0f} min of CPU and "
            f"{grown * MOST_POINTS / 2**30:.1f} GiB for the driver. It sends out {1 / cpu:.0f} trials/s at most, "
            f"which is {60 / cpu:,.0f} slots with trials of a minute",
            "",
        )
    )
    report("benchmarks.scale", rows)


if __name__ == "__main__":
    main()
