"""What a cluster that clray starts lets in: who is on this machine and has the token."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.faults, pytest.mark.ray]

OWNER = """
import json, os, sys, ray
from clray.config import Resources
from clray.trials.runner_ray import RayRunner
with RayRunner(Resources(num_gpus=0)):
    node = ray._private.worker._global_node
    told = {"address": node.gcs_address, "mode": os.environ.get("RAY_AUTH_MODE"), "dashboard": node.webui_url}
    told["logs"] = node.get_logs_dir_path()
    print(json.dumps(told), flush=True)
    sys.stdin.readline()
"""
VISITOR = (
    "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); print('INSIDE', ray.cluster_resources())"
)


def visit(address: str, seconds: float = 15, **environment: str) -> str:
    """What a process of its own gets to see; nothing where it is refused or left waiting."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        own = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # else it looks for a node on the machine's other address
        environment = {**{k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}, **own, **environment}
        done = subprocess.run(
            [sys.executable, "-c", VISITOR, address], env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        return done.stdout
    return ""


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which a process and its descendants listen."""
    family = [process, *process.children(recursive=True)]
    found = set()
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {c.laddr.ip.removeprefix("::ffff:") for c in one.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return found


def commands(process: psutil.Process) -> str:
    """Command lines of a process's descendants."""
    lines = []
    for one in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            lines.append(" ".join(one.cmdline()))
    return "\n".join(lines)


def test_a_local_cluster_has_no_dashboard_and_lets_in_only_who_has_the_token(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert owner.stdout is not None
        found = json.loads(next(line for line in owner.stdout if line.startswith("{")))
        assert not found["dashboard"]
        running = commands(psutil.Process(owner.pid))
        assert "raylet" in running
        assert not re.findall(r"dashboard/dashboard\.py|monitor\.py", running), "services that a sweep does not use"
        assert listening(psutil.Process(owner.pid)) == {"127.0.0.1"}
        assert found["mode"] == "token"
        assert "INSIDE" in visit(found["address"], 60, RAY_AUTH_MODE="token")
        strangers = [{"RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}]
        with ThreadPoolExecutor(2) as both:
            seen = list(both.map(lambda given: visit(found["address"], **given), strangers))
        assert not any("INSIDE" in text for text in seen)
        agent = Path(found["logs"], "dashboard_agent.log").read_text()
        assert "Get dashboard http address failed" not in agent, "which it logs again every second"
    finally:
        owner.communicate("\n", timeout=60)
