"""Prints what became of a sweep's trials."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clray.display import short_names, show_age, show_value
from clray.errors import OutputError
from clray.store.filesystem import Storage, is_name
from clray.store.layout import SweepLayout
from clray.trials.show_failures import print_failures
from clray.trials.status import TrialStatus, driver_age, is_alive, read_status
from clray.trials.table import params_of, read_rows


def print_status(folder: str, as_json: bool = False) -> None:
    """One line a trial, then counts; or one JSON object.

    Raises:
        OutputError: there is no sweep in the folder.
    """
    storage, layout = Storage.of(folder), SweepLayout()
    ids = trial_ids(storage)
    rows = {row["trial_id"]: row for row in read_rows(storage, layout)}
    alive = is_alive(storage, layout)
    found = {trial_id: read_status(storage, layout.trial(trial_id), alive) for trial_id in ids}
    age = driver_age(storage, layout)
    if as_json:
        trials = [_plain(trial_id, status, rows.get(trial_id, {})) for trial_id, status in found.items()]
        print(json.dumps({"trials": trials, "driver_alive": alive, "driver_age_seconds": age}, indent=1, default=str))
        return
    console = Console(width=None if Console().is_terminal else 200)
    console.print(_table(found, rows))
    print_failures(console, storage, layout, {trial_id: status for trial_id, status in found.items() if status.status == "failed"})
    counts = Counter(status.status for status in found.values())
    driver = "no driver" if age is None else f"driver {'seen' if alive else 'gone, last seen'} {show_age(age)} ago"
    console.print(f"{', '.join(f'{n} {status}' for status, n in counts.most_common())}; {driver}", highlight=False)


def trial_ids(storage: Storage) -> list[str]:
    """Ids of the trials of a sweep: those of its table, then those that only have a folder.

    Raises:
        OutputError: there are none.
    """
    storage.check_reachable()
    layout = SweepLayout()
    rows = [row["trial_id"] for row in read_rows(storage, layout)]
    names = [name for name in storage.list_names(layout.trials) if is_name(name) and not name.startswith(".")]
    ids = list(dict.fromkeys([*rows, *names]))
    if not ids:
        raise OutputError(f"{storage.display}: no sweep here. Give the folder of one sweep, such as results/quickstart")
    return ids


def _table(found: Mapping[str, TrialStatus], rows: Mapping[str, Mapping[str, Any]]) -> Table:
    params = list(dict.fromkeys(key for row in rows.values() for key in row if key.startswith("param.")))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in (
        "trial",
        *short_names([key.removeprefix("param.") for key in params]),
        "status",
        "tasks",
        "attempts",
        "last commit",
        "error",
    ):
        table.add_column(escape(title))
    for trial_id, status in found.items():
        row = rows.get(trial_id, {})
        error = escape(f"{status.cause}: {status.error}") if status.error else ""
        shown = (escape(show_value(row[key])) if row.get(key) is not None else "" for key in params)
        table.add_row(trial_id, *shown, status.status, str(status.tasks), str(status.attempts), show_age(status.last_commit), error)
    return table


def _plain(trial_id: str, status: TrialStatus, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "params": params_of(row),
        "status": status.status,
        "tasks": status.tasks,
        "attempts": status.attempts,
        "last_commit_seconds": status.last_commit,
        "cause": status.cause,
        "error": status.error,
        "host": status.host,
    }
