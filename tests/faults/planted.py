"""Faults inside real workers. A sweep of these tests names its model here, so whoever runs the sweep imports this module, wherever
it runs; clray itself knows nothing of it.

Orders lie beside the sweep's folder, or in ``$CLRAY_TEST_ORDERS``: ``orders/<trial id>/<moment>`` holds one order a line, and each
time a worker passes that moment it takes the first one. Moments are

- ``train:<task>``: this task's training has been started, and nothing of the tasks before is under way any more;
- ``before:`` or ``after:`` a step of a commit and its folder: ``before:open:task_001``, ``after:file_done:task_001:state.msgpack``;
- ``log:<task>``: the loggers are about to be given a task;
- ``end``: everything is done but the attempt's own record.

``orders/any/passing`` holds numbers: each process takes one and dies when it passes its so-manieth moment, of the trials' or a
write of any other file. Every training of a task is counted in ``orders/trained.log``, every order that is carried out in
``orders/done.log``, every attempt that came to its end in ``orders/ended.log``, a line each.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clray.models.mlp import MLP
from clray.store import staging
from clray.store.disk import LocalStorage
from clray.trials.attempt import Attempt

MOST_MEMORY = 8 * 2**30
STEPS = {
    staging.LocalStaging: ("open", "file_done", "publish", "_write_commit", "_sync_staging", "_rename"),
    staging.ObjectStaging: ("open", "file_done", "publish", "_create_commit"),
}
WRITES = ("replace_bytes", "create_bytes", "append_bytes", "remove_file")
_passed = itertools.count(1)


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
    pass_by(root)
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


@functools.cache
def last_passing(root: Path) -> int:
    """The number of the moment at which this process dies; 0: at none."""
    return int(take_order(root, "any", "passing") or 0)


def pass_by(root: Path) -> None:
    """Counts a moment."""
    number = next(_passed)
    if number == last_passing(root):
        append(root / "done.log", f"any passing {number} {os.getpid()}")
        os.kill(os.getpid(), signal.SIGKILL)


def orders_of(storage: Any) -> Path:
    """Beside the sweep's folder, unless the environment says where."""
    return Path(os.environ.get("CLRAY_TEST_ORDERS") or Path(storage.root).parent / "orders")


def _watched(kind: type, name: str) -> Callable[..., Any]:
    step = getattr(kind, name)

    def passing(self: Any, *args: Any) -> Any:
        root = orders_of(self._storage)
        *_, trial_id, folder = self._final.split("/")
        file = f":{args[0]}" if name == "file_done" else ""
        carry_out(root, trial_id, f"before:{name}:{folder}{file}")
        result = step(self, *args)
        carry_out(root, trial_id, f"after:{name}:{folder}{file}")
        return result

    return passing


def _counted(name: str) -> Callable[..., Any]:
    write = getattr(LocalStorage, name)

    def passing(self: Any, path: str, *args: Any, **options: Any) -> Any:
        if path.startswith(".lease"):
            return write(self, path, *args, **options)  # written by the clock
        pass_by(orders_of(self))
        result = write(self, path, *args, **options)
        pass_by(orders_of(self))
        return result

    return passing


def _plant_training(sequence: Any) -> None:
    """The flush of a task overlaps the training of the next one; an order for the next one means that alone."""
    start, flush = sequence._start, sequence._flush
    flushed = threading.Condition()

    def flushing(self: Any, task: int, *args: Any) -> None:
        try:
            flush(self, task, *args)
        finally:
            with flushed:
                self.flushed = task
                flushed.notify_all()

    def starting(self: Any, states: Any, data: Any, task: int, horizon: int) -> Any:
        started = start(self, states, data, task, horizon)
        self.begun = getattr(self, "begun", task)
        for member in self.members:
            root = orders_of(member.folders.storage)
            append(root / "trained.log", f"{member.folders.trial_id} {task} {member.folders.attempt}")
            if task > self.begun and (root / member.folders.trial_id / f"train:{task}").exists():
                with flushed:
                    flushed.wait_for(lambda: getattr(self, "flushed", -1) >= task - 1, 60)
                self.folders.wait()
            carry_out(root, member.folders.trial_id, f"train:{task}")
        return started

    sequence._start, sequence._flush = starting, flushing


def _plant() -> None:
    from clray import experiment
    from clray.loggers import emit

    for kind, names in STEPS.items():
        for name in names:
            setattr(kind, name, _watched(kind, name))
    for name in WRITES:
        setattr(LocalStorage, name, _counted(name))
    _plant_training(experiment._Sequence)
    points_of, end = emit.points_of, Attempt.end

    def logging(storage: Any, trial_id: str, task: int, *args: Any) -> Any:
        points = points_of(storage, trial_id, task, *args)
        carry_out(orders_of(storage), trial_id, f"log:{task}")
        return points

    def ending(self: Any, result: Any) -> Any:
        root = orders_of(self._storage)
        carry_out(root, self._trial.trial_id, "end")
        outcome = end(self, result)
        append(root / "ended.log", f"{self._trial.trial_id} {self._trial.attempt} {outcome.status} {outcome.cause or '-'}")
        return outcome

    emit.points_of = logging
    Attempt.end = ending  # type: ignore[method-assign]


_plant()
