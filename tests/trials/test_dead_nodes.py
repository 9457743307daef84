"""Jobs that Ray never reports on, because their node hangs with its connections open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.trials import runner_ray
from clray.trials.attempt import JobTrial
from clray.trials.job import Job


def test_jobs_of_dead_nodes_are_found_once_and_those_of_others_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: dict[str, bool] = {"long gone": False, "a": True, "b": True}
    clock = [0.0]
    nodes: Any = lambda: [{"NodeID": name, "Alive": well} for name, well in alive.items()]  # noqa: E731
    monkeypatch.setattr(runner_ray.ray, "nodes", nodes)
    monkeypatch.setattr(runner_ray.time, "monotonic", lambda: clock[0])

    def job(name: str, node: str | None) -> Job:
        if node:
            path = SweepLayout().trial(name).attempt(1)
            Storage.of(tmp_path).replace_bytes(path, json.dumps({"node": node}).encode())
        return Job(str(tmp_path), (JobTrial(name, {}, 1),))

    running: dict[Any, Job] = {1: job("t_1", "a"), 2: job("t_2", "b"), 3: job("t_3", None)}
    dead = runner_ray.DeadNodes()
    assert dead.jobs_of(running) == []
    clock[0] = 5
    alive["a"] = False
    assert dead.jobs_of(running) == []
    clock[0] = 6
    running[4] = job("t_4", None)  # sent after the node died: it cannot have gone there
    assert dead.jobs_of(running) == []
    clock[0] = 5.1 + runner_ray.SILENCE_SECONDS
    assert [(ref, node) for ref, _, node in dead.jobs_of(running)] == [(1, "a"), (3, None)]
    clock[0] = 100
    assert dead.jobs_of(running) == []
