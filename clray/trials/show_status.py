"""Prints what became of a sweep's trials."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clray.display import show_age, show_value
from clray.errors import OutputError
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.trials.show_failures import print_failures
from clray.trials.status import driver_age, is_alive, read_status
from clray.trials.table import read_rows


def print_status(folder: str) -> None:
    """One line a trial, then counts.

    Raises:
        OutputError: there is no sweep in the folder.
    """
    storage, layout = Storage.of(folder), SweepLayout()
    rows = {row["trial_id"]: row for row in read_rows(storage, layout)}
    ids = list(rows) + [name for name in storage.list_names(layout.trials) if name not in rows and not name.startswith(".")]
    if not ids:
        raise OutputError(f"{storage.display}: no sweep here. Give the folder of one sweep, such as results/quickstart")
    alive = is_alive(storage, layout)
    params = list(dict.fromkeys(key for row in rows.values() for key in row if key.startswith("param.")))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("trial", *(key.removeprefix("param.") for key in params), "status", "tasks", "attempts", "last commit", "error"):
        table.add_column(title)
    counts: Counter[str] = Counter()
    failed = {}
    for trial_id in ids:
        found = read_status(storage, layout.trial(trial_id), alive)
        counts[found.status] += 1
        if found.status == "failed":
            failed[trial_id] = found
        row = rows.get(trial_id, {})
        error = escape(f"{found.cause}: {found.error}") if found.error else ""
        shown = (escape(show_value(row[key])) if row.get(key) is not None else "" for key in params)
        table.add_row(trial_id, *shown, found.status, str(found.tasks), str(found.attempts), show_age(found.last_commit), error)
    console = Console(width=None if Console().is_terminal else 200)
    console.print(table)
    print_failures(console, storage, layout, failed)
    age = driver_age(storage, layout)
    driver = "no driver" if age is None else f"driver {'seen' if alive else 'gone, last seen'} {show_age(age)} ago"
    console.print(f"{', '.join(f'{n} {status}' for status, n in counts.most_common())}; {driver}", highlight=False)
