"""Hands committed tasks to the loggers of their trials, in a thread of its own: training waits for no network.

What is logged comes from committed files, so it does not matter which attempt made them. How far each logger got stands in a
note beside the trial (``.logged.json``), written after the logger has kept a task, or in the backend itself where that can be
asked. An attempt that goes on with a trial therefore logs what an earlier one left out, and nothing again.

A worker whose trial was given to somebody else logs nothing more and does not end the run, which goes on elsewhere: the trial's
owner is asked for before each call. A call that was under way at that moment arrives all the same, as a late commit may.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from clray.config import Experiment, digest
from clray.errors import LeaseLostError
from clray.loggers.base import Logger, TrialRun
from clray.loggers.points import points_of
from clray.options import LoggerOptions
from clray.plugins import raised_at
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout

WAIT_SECONDS = 60.0
"""How long the end of a program waits for slow loggers."""
INTERRUPTED_SECONDS = 3.0

Warn = Callable[[str, str], None]
Check = Callable[[], None]


def _ours() -> None:
    """For trials that nobody else can own."""


class Emitter:
    """The loggers of all trials of one program.

    Args:
        storage: the sweep's folder.
        experiments: by trial id.
        batches_per_task: of these trials.
        warn: called with (trial id, text) the first time that a logger fails, from another thread.
        checks: by trial id: raises ``LeaseLostError`` where the trial belongs to somebody else by now.
    """

    def __init__(
        self,
        storage: Storage,
        experiments: Mapping[str, Experiment],
        batches_per_task: int,
        warn: Warn,
        checks: Mapping[str, Check] | None = None,
    ):
        checks = checks or {}
        self._channels = {
            trial_id: [_Channel(storage, trial_id, e, options, batches_per_task, checks.get(trial_id, _ours)) for options in e.loggers]
            for trial_id, e in experiments.items()
        }
        self._warn = warn
        self._warned: set[str] = set()
        self._committed: dict[str, int] = {}
        self._ended: dict[str, tuple[str, dict[str, float]]] = {}
        self._changed = threading.Condition()
        self._busy = False
        self._slow = False
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="clray-loggers", daemon=True)
        self._thread.start()

    def committed(self, trial_id: str, task: int, last: bool) -> None:
        """Says that a task is committed. After the last one it waits, so that a trial is not called complete before it is logged."""
        with self._changed:
            self._committed[trial_id] = task + 1
            self._changed.notify_all()
        if last:
            self._drain(WAIT_SECONDS)

    def end(self, results: Mapping[str, Mapping[str, Any] | Exception | None]) -> None:
        """Ends the runs, with RESULT.json of the trials that are complete, the exception of those that failed, None of others."""
        with self._changed:
            for trial_id, result in results.items():
                if isinstance(result, Mapping):
                    self._committed[trial_id] = result["n_tasks"]
                    means = {name: values["mean"] for name, values in result["metrics"].items()}
                    self._ended[trial_id] = result["status"], {name: mean for name, mean in means.items() if mean is not None}
                else:
                    self._ended[trial_id] = ("interrupted" if result is None else "failed"), {}
            self._changed.notify_all()
        self._drain(INTERRUPTED_SECONDS if any(result is None for result in results.values()) else WAIT_SECONDS)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _drain(self, seconds: float) -> None:
        """Waits until all is logged. A logger that was too slow once is not waited for again."""
        with self._changed:
            done = self._changed.wait_for(lambda: not self._busy and not self._committed and not self._ended, 0 if self._slow else seconds)
            if not done and not self._slow:
                self._slow = True
                behind = next(iter(self._channels))
                self._tell(behind, "loggers", f"loggers did not keep up within {seconds:g} s; training goes on without waiting for them")

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._committed or self._ended or self._closed)
                if self._closed:
                    return
                trial_id = next(iter(self._committed or self._ended))
                n_tasks = self._committed.pop(trial_id, 0)
                ended = self._ended.pop(trial_id, None)
                self._busy = True
            for channel in self._channels[trial_id]:
                try:
                    channel.catch_up(n_tasks)
                    if ended:
                        channel.finish(*ended)
                except LeaseLostError:
                    channel.leave()
                except (Exception, SystemExit) as error:  # whatever the backend does, the trial goes on
                    channel.drop()
                    reason = (str(error).strip().splitlines() or [""])[0]
                    where = raised_at(error, channel.name.partition(":")[0]) if ":" in channel.name else ""
                    self._tell(trial_id, channel.name, f"logger {channel.name} failed: {type(error).__name__}: {reason}{where}")

    def _tell(self, trial_id: str, name: str, text: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            with contextlib.suppress(Exception):
                self._warn(trial_id, text)


class _Channel:
    """One trial in one backend."""

    def __init__(
        self, storage: Storage, trial_id: str, experiment: Experiment, options: LoggerOptions, batches_per_task: int, check: Check
    ):
        self.name = options.name
        self._storage = storage
        self._trial = SweepLayout().trial(trial_id)
        self._experiment = experiment
        self._options = options
        self._check = check
        self._run = TrialRun(
            trial_id,
            storage.root.rstrip("/").rpartition("/")[2],
            storage,
            experiment.canonical(),
            experiment.sequence.n_tasks,
            batches_per_task,
        )
        place = {key: value for key, value in options.plain().items() if key != "tags"}
        self._key = f"{options.name}-{digest(place)[:10]}"
        self._logger: Logger | None = None
        self._next = 0

    def catch_up(self, n_tasks: int) -> None:
        """Logs the tasks below ``n_tasks`` that are not logged yet."""
        if self._logger is None and n_tasks == 0:
            return  # nothing to show of an attempt that committed nothing
        if self._logger is None:
            logger: Logger = self._options.build()
            self._check()
            held = logger.begin(self._run)
            self._logger = logger
            self._next = self._noted().get(self._key, 0) if held is None else held
        while self._next < n_tasks:
            tasks = self._experiment.eval_task_numbers
            points = points_of(self._storage, self._run.trial_id, self._next, tasks, self._run.batches_per_task)
            self._check()
            self._logger.log(self._next, points)
            self._next += 1
            noted = self._noted()
            # Never back: whoever took the trial over meanwhile may have got further.
            note = {**noted, self._key: max(self._next, noted.get(self._key, 0))}
            self._storage.replace_bytes(self._trial.logged, json.dumps(note).encode(), new_folder=False)

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Ends the run, where one began."""
        logger, self._logger = self._logger, None
        if logger is not None:
            self._check()
            logger.finish(status, metrics)

    def leave(self) -> None:
        """Lets go of a run that somebody else goes on with: it is not ended."""
        self._logger = None

    def drop(self) -> None:
        """Lets go of a logger that failed: another begins at the next commit, and asks the backend how far this one got."""
        with contextlib.suppress(Exception):
            self.finish("interrupted", {})

    def _noted(self) -> dict[str, int]:
        try:
            noted = json.loads(self._storage.read_bytes(self._trial.logged))
        except (FileNotFoundError, ValueError):
            return {}
        return {key: value for key, value in noted.items() if type(value) is int} if isinstance(noted, dict) else {}
