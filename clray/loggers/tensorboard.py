"""TensorBoard: an event file for every task, in ``tensorboard/<trial>/`` of the sweep's folder.

A file is written whole under a name that its task decides, on a disk or in a bucket, so a task is there once or not at all.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from clray.loggers.base import Point, TrialRun
from clray.options import LoggerOptions
from clray.store.filesystem import join_path

FOLDER = "tensorboard"
LAST = 9_999_999_999
"""Number of the file with the final metrics: TensorBoard reads the files of a run by name and does not turn back."""


class TensorBoard(LoggerOptions):
    """Options of the logger: none of its own."""

    needs: ClassVar[tuple[str, ...]] = ("tensorboard",)

    def build(self) -> EventFiles:
        return EventFiles(self)


class EventFiles:
    """See ``clray.loggers.base.Logger``."""

    def __init__(self, options: TensorBoard):
        self._options = options

    def begin(self, run: TrialRun) -> int:
        self._run = run
        there = set(run.storage.list_names(join_path(FOLDER, run.trial_id)))
        n_tasks = 0
        while _file(n_tasks) in there:
            n_tasks += 1
        return n_tasks

    def log(self, task: int, points: Sequence[Point]) -> None:
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        summaries = [(p.step, p.time, scalar_pb(key, value)) for p in points for key, value in p.values.items()]
        if task == 0:
            summaries = [(0, points[0].time, summary) for summary in self._about()] + summaries
        self._write(_file(task), summaries)

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        if metrics:
            step, now = self._run.n_batches, time.time()
            self._write(_file(LAST), [(step, now, scalar_pb(f"final/{key}", value)) for key, value in metrics.items()])

    def _about(self) -> list[Any]:
        """The settings as hyperparameters, by which TensorBoard compares runs, and the tags."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.summary_v2 import text_pb

        settings = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in flat(self._run.config)}
        found = [hparams_pb(settings, trial_id=self._run.trial_id)]
        return [*found, text_pb("tags", ", ".join(self._options.tags))] if self._options.tags else found

    def _write(self, name: str, summaries: Sequence[tuple[int, float, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        buffer = io.BytesIO()
        writer = RecordWriter(buffer)
        writer.write(Event(wall_time=summaries[0][1], file_version="brain.Event:2").SerializeToString())
        for step, when, summary in summaries:
            writer.write(Event(wall_time=when, step=step, summary=summary).SerializeToString())
        self._run.storage.replace_bytes(join_path(FOLDER, self._run.trial_id, name), buffer.getvalue())


def _file(number: int) -> str:
    return f"events.out.tfevents.{number:010d}.clray"


def flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values of nested tables; a list of tables by number."""
    found: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = value[0] if len(value) == 1 else dict(enumerate(value))
        found += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found
