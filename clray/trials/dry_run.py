"""What a sweep would do: its trials, how many programs they need, and what they cost; from the file and what is finished already."""

from __future__ import annotations

import shutil
import statistics
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clray.config import Experiment
from clray.display import count, short_names, show_age, show_bytes, show_value
from clray.memory import Estimate, estimate_if_built
from clray.store.filesystem import Storage, existing_part
from clray.store.layout import SweepLayout
from clray.trials.expand import Trial
from clray.trials.pack import program_of
from clray.trials.plan import Plan
from clray.trials.status import FINISHED, read_status
from clray.trials.sweep import sweep_root
from clray.trials.table import read_rows

SHOWN = 40


def print_dry_run(plan: Plan, output: str) -> None:
    """Prints trials, their number, and estimates of disk, host and device memory, and of time once a trial is finished."""
    console = Console(width=None if Console().is_terminal else 200)
    storage = sweep_root(output, plan.name)
    storage.check_reachable()
    programs, needs = _needs(plan)
    console.print(_table(plan.trials[:SHOWN], needs))
    if len(plan.trials) > SHOWN:
        console.print(f"... and {len(plan.trials) - SHOWN} more", highlight=False)
    before = _before(plan, storage)
    merged = f" ({plan.n_points} points, equal ones merged)" if plan.n_points > len(plan.trials) else ""
    failed = f", {before['failed']} failed before (--retry-failed)" if before["failed"] else ""
    left = len(plan.trials) - before["finished"] - before["failed"]
    console.print(
        f"{count(len(plan.trials), 'trial')}{merged}, {count(programs, 'compiled program')} for all; "
        f"{before['finished']} finished before{failed}, {left} to run in {storage.display}/",
        highlight=False,
        soft_wrap=True,
    )
    known = [need for need in needs if need]
    if known:
        console.print(
            f"disk {show_bytes(sum(need.disk for need in known))} in all{_free(storage)}; of one trial at most: host "
            f"{show_bytes(max(need.host for need in known))} beside JAX itself, device {show_bytes(max(need.device for need in known))}",
            highlight=False,
        )
    _print_time(console, plan, storage, left)
    if len(known) < len(needs):
        console.print(
            "? : not known: the data set is not prepared yet (clray data prepare), or the model or strategy fails while it is built",
            highlight=False,
        )


def _free(storage: Storage) -> str:
    if not storage.is_local:
        return ""
    return f" ({show_bytes(shutil.disk_usage(existing_part(storage.root)).free)} are free)"


def _needs(plan: Plan) -> tuple[int, list[Estimate | None]]:
    """The number of different programs, and an estimate a trial. Trials of one program need the same."""
    by_program: dict[Experiment, Estimate | None] = {}
    on_gpu, needs = plan.sweep.resources.num_gpus not in ("auto", 0.0), []
    for trial in plan.trials:
        program = program_of(trial.experiment)
        if program not in by_program:
            by_program[program] = estimate_if_built(trial.experiment, plan.sizes[trial.trial_id], on_gpu)
        needs.append(by_program[program])
    return len(by_program), needs


def _table(trials: Sequence[Trial], needs: Sequence[Estimate | None]) -> Table:
    params = list(dict.fromkeys(key for trial in trials for key in trial.params))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", no_wrap=True)
    for title in short_names(params):
        table.add_column(title, justify="right", overflow="fold")
    for title in ("parameters", "disk", "host", "device"):
        table.add_column(title, justify="right", no_wrap=True)
    for trial, need in zip(trials, needs, strict=False):
        shown = (f"{need.parameters:,}", *map(show_bytes, (need.disk, need.host, need.device))) if need else ("?",) * 4
        values = (escape(show_value(trial.params[key])) if key in trial.params else "" for key in params)
        table.add_row(trial.trial_id, *values, *shown)
    return table


def _before(plan: Plan, storage: Storage) -> Counter[str]:
    """How many trials an earlier run finished, and how many of them failed and would not run again by themselves."""
    layout = SweepLayout()
    there = set(storage.list_names(layout.trials))
    begun = [trial.trial_id for trial in plan.trials if trial.trial_id in there]
    statuses = [read_status(storage, layout.trial(name), driver_alive=False, commits=False) for name in begun]
    return Counter("finished" if s.status in FINISHED else "failed" for s in statuses if s.status in FINISHED or s.given_up)


def _print_time(console: Console, plan: Plan, storage: Storage, left: int) -> None:
    """By the trials that are finished; nothing before the first."""
    ids = {trial.trial_id for trial in plan.trials}
    seconds = [row["seconds"] for row in read_rows(storage, SweepLayout()) if row["trial_id"] in ids and row["seconds"]]
    if seconds and left:
        each = statistics.median(seconds)
        console.print(
            f"time {show_age(each * left)} on one slot: {count(left, 'trial')} at {each:.1f} s, the median of {len(seconds)} finished",
            highlight=False,
        )
