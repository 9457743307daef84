"""Nodes that vanish or freeze while they run trials: the work is finished elsewhere, and of two attempts one commits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from clray.process_tree import birth_of
from tests.faults.conftest import start_cluster
from tests.faults.scene import Scene, until


@pytest.fixture
def nodes(expected: object) -> Iterator[Any]:
    """A cluster whose head runs no trials."""
    made = start_cluster(num_cpus=0)
    yield made
    made.shutdown()


def raylet_of(node: Any) -> int:
    """Process of a node's raylet."""
    return int(node.all_processes["raylet"][0].process.pid)


def nonces(scene: Scene) -> dict[str, bytes]:
    """Every marker: it holds a nonce."""
    return {str(path): path.read_bytes() for path in scene.root.glob("trials/*/*/COMMIT.json")}


@pytest.mark.parametrize("moment", ["train:1", "before:_rename:task_001"])
def test_a_node_that_vanishes_and_one_that_freezes_and_wakes_up_later(nodes: Any, scene: Callable[..., Scene], moment: str) -> None:
    """The frozen worker wakes up when its trial is long done: in the middle of a task, or a moment before its folder gets its name."""
    s = scene(0, 1)
    s.order(0, "train:1", "sleep 600")
    s.order(1, moment, "stop")
    by_id = {node.node_id: node for node in (nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1))}
    driver = s.start("--address", nodes.address)
    *_, vanishing = s.wait_for(0, "train:1")
    *_, frozen_worker, freezing = s.wait_for(1, moment)
    assert {vanishing, freezing} == set(by_id)
    worker = int(frozen_worker)
    raylet = raylet_of(by_id[freezing])
    os.kill(raylet, signal.SIGSTOP)
    nodes.remove_node(by_id[vanishing], allow_graceful=False)
    third = nodes.add_node(num_cpus=1)
    done = s.end(driver)
    assert done.code == 0, done.err
    before = nonces(s)
    files = {path: path.stat().st_mtime_ns for path in s.root.rglob("*") if path.is_file()}
    os.kill(worker, signal.SIGCONT)
    # The worker comes to its end first: its raylet, once awake, learns that it counts as dead. Ray may leave the idle process behind.
    until(lambda: ["1", "failed", "lease"] in s.ended_attempts(1), 60, "the end of the frozen attempt")
    os.kill(raylet, signal.SIGCONT)
    until(lambda: birth_of(raylet) in (None, -1), 30, "the end of the thawed raylet")
    assert nonces(s) == before
    changed = [path for path, at in files.items() if path.stat().st_mtime_ns != at]
    assert changed == []
    for seed in (0, 1):
        first, second = s.attempts(seed)
        assert (first["outcome"], first["cause"], second["outcome"]) == ("failed", "system", "done")
        assert (first["node"], second["node"]) == ([vanishing, freezing][seed], third.node_id)
        assert s.committed_by(seed)["task_000"] == "001"
        assert s.committed_by(seed)["task_001"] == "002"
    s.assert_undisturbed(orphan="001")
