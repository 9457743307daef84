"""Workers that die, diverge or run out of memory: retried from the last commit where that helps, told where it does not."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.faults.conftest import start_cluster
from tests.faults.scene import EXPERIMENT, Scene, sweep_of

# Moment at which the worker dies -> whether the task was committed by then.
DEATHS = {
    "train:1": False,
    "before:open:task_001": False,
    "after:file_done:task_001:weights.head.kernel.npy": False,
    "after:file_done:task_001:state.msgpack": False,
    "before:_write_commit:task_001": False,
    "before:_rename:task_001": False,
    "after:_rename:task_001": True,
    "before:publish:initial": False,
}


def test_workers_killed_at_every_step_of_a_flush(cluster: Any, scene: Callable[..., Scene]) -> None:
    s = scene(*range(len(DEATHS)))
    for seed, moment in enumerate(DEATHS):
        s.order(seed, moment, "kill")
    done = s.run("--address", cluster.address)
    assert done.code == 0, done.err
    assert len(s.carried_out()) == len(DEATHS)
    trained = s.trained()
    for seed, (moment, committed) in enumerate(DEATHS.items()):
        assert trained[seed, 1] == (1 if committed or moment.endswith("initial") else 2)
        assert s.committed_by(seed)["task_001"] == ("001" if committed else "002")
        assert s.committed_by(seed)["initial"] == ("002" if moment.endswith("initial") else "001")
        lost, kept = s.attempts(seed)
        assert (lost["outcome"], lost["cause"], kept["outcome"]) == ("failed", "system", "done")
        assert lost["error"].startswith("WorkerCrashedError")
        assert lost["pid"] != kept["pid"]
    s.assert_undisturbed()
    assert {row["attempts"] for row in s.rows().values()} == {2}


def test_losses_are_bounded_and_counted_over_drivers_until_told_to_retry(cluster: Any, scene: Callable[..., Scene]) -> None:
    s = scene(0, 1)
    s.order(0, "train:0", "kill", "kill", "sleep 100", "kill")
    first = s.start("--address", cluster.address)
    s.wait_for(0, "train:0", times=3)
    first.kill()
    first.communicate()
    second = s.run("--address", cluster.address)
    assert second.code == 1
    assert [(r["outcome"], r["losses"]) for r in s.attempts(0)] == [("failed", 1), ("failed", 2), ("interrupted", 2), ("failed", 3)]
    row = s.rows()[0]
    assert (row["status"], row["attempts"]) == ("failed", 4)
    assert s.rows()[1]["status"] == "done"
    status = s.status()
    assert re.search(rf"{s.ids[0]} failed \(system\) in attempt 4 on \S+ \(node \w+\): WorkerCrashedError", status), status
    assert "attempts/traceback.txt" in status
    third = s.run("--address", cluster.address)
    assert third.code == 1
    assert len(s.attempts(0)) == 4
    last = s.run("--address", cluster.address, "--retry-failed")
    assert last.code == 0, last.err
    s.assert_undisturbed(trained={(0, 0): 5})


def test_a_worker_that_commits_between_its_deaths_is_never_given_up(cluster: Any, scene: Callable[..., Scene]) -> None:
    s = scene(0)
    for task in range(3):
        s.order(0, f"train:{task}", "kill", "kill")
    done = s.run("--address", cluster.address)
    assert done.code == 0, done.err
    assert [record["losses"] for record in s.attempts(0)] == [1, 2, 1, 2, 1, 2, 2]
    s.assert_undisturbed(trained={(0, task): 3 for task in range(3)})


def test_a_diverged_trial_is_flushed_not_retried_and_leaves_its_neighbours_alone(cluster: Any, scene: Callable[..., Scene]) -> None:
    s = scene(0)
    rates = {"optimizer.learning_rate": [EXPERIMENT["optimizer"]["learning_rate"], 1e30]}
    s.file.write_text(json.dumps({**sweep_of([0]), "grid": rates, "resources": {"num_cpus": 2}}))  # one slot: one program for both
    done = s.run("--address", cluster.address)
    assert done.code == 0, done.err
    fine, diverged = pq.read_table(s.root / "trials.parquet").to_pylist()
    assert fine["trial_id"] == s.ids[0]
    assert (fine["status"], diverged["status"], diverged["n_diverged"], diverged["attempts"]) == ("done", "diverged", 2, 1)
    assert len(list((s.root / "trials" / diverged["trial_id"]).glob("*/COMMIT.json"))) == 4
    s.assert_same_files(0)


def test_a_device_out_of_memory_is_told_with_the_estimate_and_not_retried(cluster: Any, scene: Callable[..., Scene]) -> None:
    s = scene(0, 1)
    s.order(0, "train:1", "fill-device")
    done = s.run("--address", cluster.address)
    assert done.code == 1
    (record,) = s.attempts(0)
    assert (record["outcome"], record["cause"]) == ("failed", "program")
    told = r"out of memory on the device \(cpu\): 1 trial in one program need about [\d.]+ [KM]iB by estimate.*Lower resources.max_lanes"
    assert re.match(told, record["error"]), record["error"]
    assert "RESOURCE_EXHAUSTED" in (s.trial(0) / "attempts" / "traceback.txt").read_text()
    assert s.rows()[1]["status"] == "done"
    assert s.run("--address", cluster.address).code == 1
    assert len(s.attempts(0)) == 1
    assert s.run("--address", cluster.address, "--retry-failed").code == 0
    s.assert_undisturbed(trained={(0, 1): 2})


def test_an_error_before_the_trial_begins_leaves_its_traceback(expected: object, scene: Callable[..., Scene]) -> None:
    """A node that says it has a GPU, and has none."""
    s = scene(0)
    s.write(sweep_of([0], resources={"max_lanes": 2, "num_gpus": 0.5}))
    liar = start_cluster(num_cpus=1, num_gpus=1)
    try:
        done = s.run("--address", liar.address)
    finally:
        liar.shutdown()
    assert done.code == 1
    (record,) = s.attempts(0)
    assert (record["outcome"], record["cause"]) == ("failed", "program")
    assert "the task was given 0.5 GPU but JAX sees only CPUs" in record["error"]
    assert "configure_jax" in (s.trial(0) / "attempts" / "traceback.txt").read_text()
    assert s.run("--local", "--retry-failed").code == 0
    s.assert_undisturbed()


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="Ray's memory monitor needs Linux")
def test_a_host_out_of_memory_is_retried_a_bounded_number_of_times(scene: Callable[..., Scene]) -> None:
    s = scene(0)
    s.order(0, "train:1", "fill-host", "fill-host", "fill-host")
    with open("/proc/meminfo") as file:
        kib = {line.split(":")[0]: int(line.split()[1]) for line in file}
    threshold = 1 - (kib["MemAvailable"] - 3 * 2**20) / kib["MemTotal"]
    monitor = {"RAY_memory_usage_threshold": f"{threshold:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    done = s.run(environment=monitor)
    assert done.code == 1, done.err
    records = s.attempts(0)
    assert [(r["outcome"], r["cause"]) for r in records] == [("failed", "system")] * len(records)
    # The first attempt committed a task; three in a row did not get any further.
    assert len(records) == 3
    assert all(r["error"].startswith("out of memory on the host: Ray ended the worker") for r in records)
    assert "resources.max_lanes" in done.err
    assert s.run("--local", "--retry-failed").code == 0
    s.assert_undisturbed(trained={(0, 1): 4})
