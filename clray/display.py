"""What a person sees on the terminal while a sweep runs and when it ends."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from clray.config import canonical_json


def show_value(value: Any) -> str:
    """A parameter's value, short: ``0.1``, ``[64,64]``, ``er(memory_size=100)+l2``.

    Tables may come as the JSON text that they are in trials.parquet.
    """
    if isinstance(value, str):
        return show_value(tables) if (tables := _tables(value)) else value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping) and "name" in value:
        options = ", ".join(f"{key}={show_value(option)}" for key, option in value.items() if key != "name")
        return f"{value['name']}({options})" if options else str(value["name"])
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
        return "+".join(map(show_value, value))
    return canonical_json(value)


def _tables(text: str) -> Any:
    if not text.startswith(("{", "[{")):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def count(n: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def show_params(params: Mapping[str, Any]) -> str:
    """``learning_rate=0.1 hidden=[64]``: the last part of each dotted key is enough for a person."""
    return " ".join(f"{key.rsplit('.', 1)[-1]}={show_value(value)}" for key, value in params.items())


MOST_BARS = 16
"""Running trials with a bar of their own; those of a wide pack would not fit on a screen."""


def short_names(keys: Sequence[str]) -> list[str]:
    """The last parts of dotted keys, which is enough for a person, or the whole keys where that would be ambiguous."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return [part if last.count(part) == 1 else key for key, part in zip(keys, last, strict=True)]


class Display:
    """Progress of a sweep: a total and a bar a running trial on a terminal, a line an event elsewhere.

    Call it with (trial id, event); it is a context manager.
    """

    def __init__(self, params: Mapping[str, Mapping[str, Any]], quiet: bool = False, console: Console | None = None):
        self._params = params
        self._quiet = quiet
        self._console = console or Console(file=sys.stderr)
        self._bars: dict[str, TaskID] = {}
        self._started = time.monotonic()
        self._done = 0
        self._jobs = 0
        self._lock = threading.Lock()
        live = not quiet and self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not live,
            transient=True,
        )
        self._live = live
        self._total: TaskID | None = None

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def __call__(self, trial_id: str, event: Mapping[str, Any]) -> None:
        with self._lock:
            getattr(self, "_on_" + event["event"], lambda *_: None)(trial_id, event)

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _on_planned(self, trial_id: str, event: Mapping[str, Any]) -> None:
        self._jobs = event["jobs"]
        self._total = self._progress.add_task("all trials", total=event["jobs"], count=f"0/{event['jobs']} trials", note="")
        reused = f", {event['reused']} finished before" if event["reused"] else ""
        others = ", ".join(f"{n} of them by clray {version}" for version, n in event.get("other_versions", {}).items())
        reused += f" ({others})" if others else ""
        merged = f" ({event['points']} points, equal ones merged)" if event.get("points", 0) > event["trials"] else ""
        self._say(f"{count(event['trials'], 'trial')}{merged}: {event['jobs']} to run{reused}")

    def _on_start(self, trial_id: str, event: Mapping[str, Any]) -> None:
        label = f"{trial_id} {show_params(self._params.get(trial_id, {}))}".strip()
        if trial_id in self._bars:
            self._progress.remove_task(self._bars.pop(trial_id))
        note = "" if event["attempt"] == 1 else f"attempt {event['attempt']}"
        visible = sum(task.visible for task in self._progress.tasks) <= MOST_BARS
        self._bars[trial_id] = self._progress.add_task(label, total=None, count="", note=note or "compiling", visible=visible)
        if not self._live:
            self._say(f"{self._clock()} start {label}" + (f" ({note})" if note else ""))

    def _on_task(self, trial_id: str, event: Mapping[str, Any]) -> None:
        if trial_id in self._bars:
            done, total = event["task"] + 1, event["n_tasks"]
            note = f"accuracy {event['accuracy']:.3f}"
            self._progress.update(self._bars[trial_id], completed=done, total=total, count=f"task {done}/{total}", note=note)

    def _on_stage(self, trial_id: str, event: Mapping[str, Any]) -> None:
        if trial_id in self._bars:
            self._progress.update(self._bars[trial_id], note=event["stage"])

    def _on_retry(self, trial_id: str, event: Mapping[str, Any]) -> None:
        self._say(f"{self._clock()} {trial_id} lost ({event['error']}); attempt {event['attempt']} goes out")

    def _on_warning(self, trial_id: str, event: Mapping[str, Any]) -> None:
        self._say(f"{self._clock()} {trial_id} warning: {event['text']}")

    def _on_damaged(self, trial_id: str, event: Mapping[str, Any]) -> None:
        # With --quiet as well: files that somebody wrote are not what they were.
        self._console.print(f"{self._clock()} WARNING {trial_id}: {event['text']}", markup=False, highlight=False, soft_wrap=True)

    def _on_end(self, trial_id: str, event: Mapping[str, Any]) -> None:
        row = event["row"]
        self._done += 1
        if trial_id in self._bars:
            self._progress.remove_task(self._bars.pop(trial_id))
        if self._total is not None:
            self._progress.update(self._total, completed=self._done, count=f"{self._done}/{self._jobs} trials")
            self._show_waiting()
        lost = f", {count(row['n_diverged'], 'repeat')} diverged" if row.get("n_diverged") else ""
        if row["status"] == "failed":
            self._say(f"{self._clock()} {trial_id} failed: {row['error']}")
        elif not self._live:
            self._say(f"{self._clock()} {self._done}/{self._jobs} {trial_id} {row['status']}, accuracy {_with_sem(row, 'acc')}{lost}")

    def _show_waiting(self) -> None:
        """Gives the room of a finished trial to one whose bar did not fit before."""
        hidden = [task for task in self._progress.tasks if not task.visible]
        if hidden and len(self._progress.tasks) - len(hidden) <= MOST_BARS:
            self._progress.update(hidden[0].id, visible=True)

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"[{seconds // 60:d}:{seconds % 60:02d}]"


def trials_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The closing table: trial, swept values, ACC and forgetting with SEM over repeats, seconds."""
    params = list(dict.fromkeys(key for row in rows for key in row if key.startswith("param.") and row[key] is not None))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", no_wrap=True)
    for title in short_names([key.removeprefix("param.") for key in params]):
        table.add_column(title, justify="right", overflow="fold")
    failures = any(row["status"] not in ("done",) for row in rows)
    if failures:
        table.add_column("status")
    diverged = any(row.get("n_diverged") for row in rows)
    if diverged:
        table.add_column("diverged repeats", justify="right")  # left out of the means
    for title in ("ACC ± SEM", "forgetting ± SEM", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        cells = [row["trial_id"], *(escape(show_value(row.get(key))) for key in params)]
        if failures:
            cells.append(row["status"])
        if diverged:
            cells.append(str(row.get("n_diverged") or 0))
        seconds = "" if row.get("seconds") is None else f"{row['seconds']:.1f}"
        table.add_row(*cells, _with_sem(row, "acc"), _with_sem(row, "forgetting"), seconds)
    return table


def failures_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Trials that failed, with the reason."""
    table = Table(box=None, pad_edge=False, header_style="bold red")
    for title in ("failed trial", "attempts", "error"):
        table.add_column(title)
    for row in rows:
        table.add_row(row["trial_id"], str(row["attempts"]), escape(row["error"] or row["status"]))
    return table


def _with_sem(row: Mapping[str, Any], name: str) -> str:
    mean, sem = row.get(f"{name}_mean"), row.get(f"{name}_sem")
    if mean is None or math.isnan(mean):
        return "-"
    return f"{mean:z.4f}" if sem is None or math.isnan(sem) else f"{mean:z.4f} ± {sem:.4f}"


def show_bytes(n: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def show_age(seconds: float | None) -> str:
    """Seconds for people: ``42 s``, ``3 min``, ``2.0 h``."""
    if seconds is None or math.isinf(seconds):
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
