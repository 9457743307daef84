"""``clray status --verify``: reads every committed file of a sweep, prints what is damaged, and sets it aside where asked to."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from clray.display import count, show_bytes
from clray.errors import HeldError
from clray.store.filesystem import Storage
from clray.store.integrity import WHOLE, Damage, check_parts, parts_of, set_damage_aside
from clray.store.layout import SweepLayout
from clray.trials.show_status import trial_ids
from clray.trials.status import FINISHED, is_alive
from clray.trials.table import read_rows

GONE = "is gone, though trials.parquet has it as finished: the command of the sweep runs it again"


def verify_sweep(folder: str, as_json: bool = False, repair: bool = False) -> int:
    """Checks a sweep's folder and prints the outcome.

    Args:
        as_json: print one JSON object instead of a table.
        repair: set damaged parts aside, so that the sweep's own command computes them again.

    Returns:
        The number of damaged folders and files.

    Raises:
        OutputError: there is no sweep in the folder, or it cannot be read.
        HeldError: to be set aside, while a driver works on the sweep.
    """
    storage = Storage.of(folder)
    ids = trial_ids(storage)
    if repair and is_alive(storage, SweepLayout()):
        raise HeldError(f"{storage.display}: a driver works on this sweep. Damaged files can be set aside once it has ended")
    found = _check(storage, ids)
    moved = _set_aside(storage, found["damaged"]) if repair else {}
    if as_json:
        print(json.dumps(_plain(found, moved), indent=1))
    else:
        _print(storage, found, moved, repair)
    return len(found["damaged"])


def _check(storage: Storage, ids: list[str]) -> dict[str, Any]:
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("looking", total=None)
        parts = [part for trial_id in ids for part in parts_of(storage, trial_id)]
        total = sum(part.n_bytes for part in parts)
        progress.update(bar, description="verifying", total=total)
        damaged = [
            damage for _, damage in check_parts(storage, parts, lambda n_bytes: progress.advance(bar, n_bytes)) if damage is not None
        ]
    there = set(storage.list_names(SweepLayout().trials))
    finished = [row["trial_id"] for row in read_rows(storage, SweepLayout()) if row["status"] in FINISHED]
    damaged += [Damage(trial_id, WHOLE, (GONE,)) for trial_id in finished if trial_id not in there]
    return {"trials": len(ids), "parts": len(parts), "bytes": total, "damaged": damaged}


def _set_aside(storage: Storage, damaged: list[Damage]) -> dict[str, list[str]]:
    by_trial = defaultdict(list)
    for damage in damaged:
        by_trial[damage.trial_id].append(damage)
    return {trial_id: set_damage_aside(storage, trial_id, parts) for trial_id, parts in by_trial.items()}


def _plain(found: Mapping[str, Any], moved: Mapping[str, list[str]]) -> dict[str, Any]:
    damaged = [{"trial_id": d.trial_id, "part": d.part, "problems": list(d.problems)} for d in found["damaged"]]
    return {**found, "damaged": damaged, "set_aside": dict(moved)}


def _print(storage: Storage, found: Mapping[str, Any], moved: Mapping[str, list[str]], repair: bool) -> None:
    console = Console(width=None if Console().is_terminal else 200)
    damaged: list[Damage] = found["damaged"]
    read = f"{found['parts']} folders and files of {count(found['trials'], 'trial')} checked"
    console.print(f"{storage.display}: {read}, {show_bytes(found['bytes'])}", highlight=False, markup=False, soft_wrap=True)
    if not damaged:
        console.print("everything is as it was written")
        return
    table = Table(box=None, pad_edge=False, header_style="bold red")
    for title in ("trial", "damaged", "what is wrong"):
        table.add_column(title, overflow="fold")
    for damage in damaged:
        table.add_row(escape(damage.trial_id), escape(damage.part), escape("\n".join(damage.problems)))
    console.print(table)
    if all(damage.problems == (GONE,) for damage in damaged):
        return
    trials = count(len({damage.trial_id for damage in damaged if damage.problems != (GONE,)}), "trial")
    if repair:
        console.print(
            f"set aside in {trials} under names that begin with .damaged-: give the command that ran this sweep again to compute them anew",
            highlight=False,
            soft_wrap=True,
        )
    else:
        console.print(
            f"{trials} damaged. To have them computed again: clray status --verify --set-aside {storage.display}, then give the command "
            "that ran this sweep again. What is not damaged is kept",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
