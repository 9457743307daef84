"""Prints why trials failed: attempt, machine, the last lines of the log, and where the whole traceback is."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from rich.console import Console

from clray.display import count
from clray.errors import OutputError
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.trials.status import MAX_LOSSES, TrialStatus

SHOWN = 5
LINES = 5


def print_failures(console: Console, storage: Storage, layout: SweepLayout, failed: Mapping[str, TrialStatus]) -> None:
    """A paragraph for each of the first failed trials, then how to run them again."""
    for trial_id, status in list(failed.items())[:SHOWN]:
        trial = layout.trial(trial_id)
        where = status.host + (f" (node {status.node[:12]})" if status.node else "") or "an unknown machine"
        head = f"\n{trial_id} failed ({status.cause or 'unknown'}) in attempt {status.attempts} on {where}: {status.error}"
        _say(console, head)
        for line in _last_lines(storage, trial.log):
            _say(console, f"  {line}")
        with contextlib.suppress(OutputError):
            if storage.exists(trial.traceback):
                _say(console, f"  whole traceback: {storage.shown(trial.traceback)}")
    if len(failed) > SHOWN:
        _say(console, f"\n... and {count(len(failed) - SHOWN, 'more failed trial')}")
    if any(status.given_up for status in failed.values()):
        _say(
            console,
            f"\nFailures of the program, and trials that the system lost {MAX_LOSSES} times in a row, run again with --retry-failed; all "
            "others with the same command.",
        )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _last_lines(storage: Storage, path: str) -> list[str]:
    try:
        text = storage.read_bytes(path).decode(errors="replace")
    except (FileNotFoundError, OutputError):
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-LINES:]
