"""Weights & Biases: one run a trial, with the trial's id.

Online, the server says at which step a run goes on. Offline, each attempt leaves a file of its own, and what is in those files
says it: wandb writes them in the order of steps, a while after it was given the values, so a process that is killed leaves a
beginning of what it logged.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from clray.loggers.base import Point, TrialRun
from clray.options import LoggerOptions

BLOCK = 32768
PROMPT_SECONDS = 1
"""Where nobody is logged in, wandb asks on a terminal: not for longer than this."""


class WandB(LoggerOptions):
    """Options of the logger."""

    needs: ClassVar[tuple[str, ...]] = ("wandb",)

    project: str | None = Field(None, description="default: the name of the sweep")
    entity: str | None = Field(None, description="user or team; default: yours")
    mode: Literal["online", "offline"] | None = Field(None, description="default: $WANDB_MODE, else online")

    def build(self) -> WandBRun:
        return WandBRun(self)


class WandBRun:
    """See ``clray.loggers.base.Logger``."""

    def __init__(self, options: WandB):
        self._options = options

    def begin(self, run: TrialRun) -> int:
        import wandb

        options = self._options
        local = run.storage.root if run.storage.is_local and "WANDB_DIR" not in os.environ else None
        self._wandb: Any = wandb.init(
            id=run.trial_id,
            name=run.trial_id,
            project=options.project or run.sweep,
            entity=options.entity,
            tags=list(options.tags) or None,
            config=dict(run.config),
            dir=local,
            mode=options.mode,
            resume="allow",
            reinit="create_new",  # the trials of one program are logged side by side
            settings=wandb.Settings(silent=True, console="off", login_timeout=PROMPT_SECONDS),
        )
        if self._wandb.disabled and os.environ.get("WANDB_MODE") != "disabled":
            raise RuntimeError("nobody is logged in: run `wandb login`, set WANDB_API_KEY, or use mode: offline")
        offline = Path(self._wandb.settings.wandb_dir)
        self._first = next_step_offline(offline, run.trial_id) if self._wandb.offline else int(self._wandb.step)
        return max(self._first - 1, 0) // run.batches_per_task

    def log(self, task: int, points: Sequence[Point]) -> None:
        for point in points:
            if point.step >= self._first:
                self._wandb.log({**point.values, "task": task}, step=point.step, commit=True)

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        if metrics:
            self._wandb.summary.update({f"final/{key}": value for key, value in metrics.items()})
        self._wandb.finish(exit_code=0 if status in ("done", "diverged") else 1)


def next_step_offline(folder: Path, run_id: str) -> int:
    """The step after the last one that the offline runs of one id hold; 0 where there are none."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2
    step = -1
    for file in folder.glob(f"offline-run-*-{run_id}/*.wandb"):
        for data in log_records(file.read_bytes()):
            record = messages.Record()
            with contextlib.suppress(Exception):  # the last record of a process that was killed
                record.ParseFromString(data)
            if record.HasField("history"):
                step = max(step, record.history.step.num)
    return step + 1


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: a head of seven bytes, then LevelDB's log format.

    References: https://github.com/google/leveldb/blob/main/doc/log_format.md: blocks of 32 KiB with parts of records, each with
    checksum, length and kind in front.
    """
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4) and place <= len(data):  # whole, or the last part
            yield whole
            whole = b""
