"""Faults inside real workers. A sweep of these tests names its model here, so whoever runs the sweep imports this module, wherever
it runs; clray itself knows nothing of it.

Orders lie beside the sweep's folder: ``orders/<trial id>/<moment>`` holds one order a line, and each time a worker passes that
moment it takes the first one. Moments are ``train:<task>`` (the task before is committed, this one's training has been started) and
``before:`` or ``after:`` a step of a commit and its folder: ``before:open:task_001``, ``after:file_done:task_001:state.msgpack``.
Every training of a task is counted in ``orders/trained.log``, and every order that is carried out in ``orders/done.log``, a line each.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clray.models.mlp import MLP
from clray.store import staging

MOST_MEMORY = 8 * 2**30
STEPS = ("open", "file_done", "publish", "_write_commit", "_sync_staging", "_rename")


class Net(MLP):
    """A plain MLP."""


def append(path: Path, line: str) -> None:
    """One line in one write, so that lines of several processes do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def take_order(root: Path, trial_id: str, moment: str) -> str:
    """The next order for this moment, or an empty text."""
    try:
        with open(root / trial_id / moment, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            first, *rest = file.read().splitlines() or [""]
            file.seek(0)
            file.truncate()
            file.write("\n".join(rest))
            return first
    except FileNotFoundError:
        return ""


def carry_out(root: Path, trial_id: str, moment: str) -> None:
    """Does what is ordered for this moment, if anything is."""
    order = take_order(root, trial_id, moment)
    if not order:
        return
    node = ""
    if os.environ.get("RAY_JOB_ID") or "RAY_RAYLET_PID" in os.environ:
        import ray

        node = ray.get_runtime_context().get_node_id()
    append(root / "done.log", f"{trial_id} {moment} {order} {os.getpid()} {node}")
    what, _, amount = order.partition(" ")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.2)  # the signal may reach another thread first
    elif what == "sleep":
        time.sleep(float(amount))
    elif what == "fill-device":
        import jax.numpy as jnp

        jnp.zeros(2**46, jnp.uint8).block_until_ready()
    elif what == "fill-host":
        held = []
        while sum(map(len, held)) < MOST_MEMORY:
            held.append(b"x" * 2**27)
            time.sleep(0.05)
        raise RuntimeError("nobody ended the worker")
    else:
        raise ValueError(order)


def wait_for_commit(folders: Any, task: int) -> None:
    """The flush of a task overlaps the training of the next one; an order for the next one means that alone."""
    marker = folders.trial.commit(f"task_{task:03d}" if task >= 0 else "initial")
    deadline = time.monotonic() + 60
    while not folders.storage.exists(marker) and time.monotonic() < deadline:
        time.sleep(0.01)


def orders_of(storage: Any) -> Path:
    """Beside the sweep's folder."""
    return Path(storage.root).parent / "orders"


def _watched(name: str) -> Callable[..., Any]:
    step = getattr(staging.LocalStaging, name)

    def passing(self: Any, *args: Any) -> Any:
        root = orders_of(self._storage)
        *_, trial_id, folder = self._final.split("/")
        file = f":{args[0]}" if name == "file_done" else ""
        carry_out(root, trial_id, f"before:{name}:{folder}{file}")
        result = step(self, *args)
        carry_out(root, trial_id, f"after:{name}:{folder}{file}")
        return result

    return passing


def _plant() -> None:
    from clray import experiment

    for name in STEPS:
        setattr(staging.LocalStaging, name, _watched(name))
    start = experiment._Sequence._start

    def counted(self: Any, states: Any, data: Any, task: int, horizon: int) -> Any:
        started = start(self, states, data, task, horizon)
        for member in self.members:
            root = orders_of(member.folders.storage)
            append(root / "trained.log", f"{member.folders.trial_id} {task} {member.folders.attempt}")
            if (root / member.folders.trial_id / f"train:{task}").exists():
                wait_for_commit(member.folders, task - 1)
            carry_out(root, member.folders.trial_id, f"train:{task}")
        return started

    experiment._Sequence._start = counted  # type: ignore[method-assign]


_plant()
