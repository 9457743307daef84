"""What a task tells JAX before it starts, by what the task was given; each case in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

REPORT = """
import json, os, sys
from clray.process import configure_jax
try:
    configure_jax(*json.loads(sys.argv[1]))
    error = None
except RuntimeError as raised:
    error = str(raised)
import jax
names = ("JAX_PLATFORMS", "XLA_CLIENT_MEM_FRACTION", "PJRT_NPROC")
older = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
devices = [d.platform for d in jax.local_devices()]
print(json.dumps({"env": {n: os.environ.get(n) for n in names}, "older": older, "devices": devices, "error": error}))
"""


def configured(*given: float | None, **environment: str) -> Any:
    """What a fresh process looks like after ``configure_jax(*given)``."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "PJRT_"))}
    command = [sys.executable, "-c", REPORT, json.dumps(given)]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("num_cpus", "devices"), [(0.5, 1), (1, 1), (3, 3)])
def test_a_task_without_a_gpu_runs_on_the_cpu_with_a_device_for_each_whole_core(num_cpus: float, devices: int) -> None:
    """Ray does not hide GPUs from such tasks: JAX must not take one that belongs to another."""
    found = configured(num_cpus, 0)
    assert found["env"] == {"JAX_PLATFORMS": "cpu", "XLA_CLIENT_MEM_FRACTION": None, "PJRT_NPROC": str(devices)}
    assert found["devices"] == ["cpu"] * devices
    assert found["error"] is None


def test_a_fraction_of_a_gpu_gets_that_part_of_its_memory_and_a_cpu_in_its_place_is_an_error() -> None:
    found = configured(1, 0.25, JAX_PLATFORMS="cpu", XLA_PYTHON_CLIENT_MEM_FRACTION="0.5")
    assert found["env"]["XLA_CLIENT_MEM_FRACTION"] == "0.2250"
    assert found["older"] is None, "JAX refuses to start a GPU with both names"
    assert found["error"].startswith("the task was given 0.25 GPU but JAX sees only CPUs; install clray[cuda]")


def test_whole_gpus_keep_all_their_memory() -> None:
    assert configured(1, 2, JAX_PLATFORMS="cpu")["env"]["XLA_CLIENT_MEM_FRACTION"] is None


def test_without_a_cluster_jax_takes_what_it_finds_and_what_people_set_stays() -> None:
    found = configured(2, None, JAX_PLATFORMS="cpu", PJRT_NPROC="7")
    assert found["env"] == {"JAX_PLATFORMS": "cpu", "XLA_CLIENT_MEM_FRACTION": None, "PJRT_NPROC": "7"}
    assert found["devices"] == ["cpu"] * 2
