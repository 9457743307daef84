"""What a sweep would do: its trials and what they need, from the file alone."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from clray.display import count, show_bytes, show_value
from clray.trials.estimate import Estimate, estimate
from clray.trials.plan import Plan
from clray.trials.status import FINISHED, read_status
from clray.trials.sweep import sweep_root

SHOWN = 40


def print_dry_run(plan: Plan, output: str) -> None:
    """Prints trials, their number, and estimates of disk, host and device memory."""
    console = Console(width=None if Console().is_terminal else 200)
    storage = sweep_root(output, plan.name)
    estimates: dict[object, Estimate] = {}
    needs: list[Estimate | None] = []
    for trial in plan.trials:
        sizes = plan.sizes[trial.trial_id]
        if sizes is None:
            needs.append(None)
            continue
        key = (trial.experiment.model, trial.experiment.optimizer.structure(), trial.experiment.strategy, trial.experiment.logging,
               trial.experiment.baselines, sizes)  # fmt: skip
        if key not in estimates:
            estimates[key] = estimate(trial.experiment, sizes)
        needs.append(estimates[key])
    there = set(storage.list_names("trials"))
    done = sum(_is_done(plan, storage, trial.trial_id) for trial in plan.trials if trial.trial_id in there)
    params = list(dict.fromkeys(key for trial in plan.trials for key in trial.params))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("trial", *params, "parameters", "disk", "host", "device"):
        table.add_column(title, justify="left" if title == "trial" else "right", no_wrap=True)
    for trial, need in list(zip(plan.trials, needs, strict=True))[:SHOWN]:
        shown = (f"{need.parameters:,}", *map(show_bytes, (need.disk, need.host, need.device))) if need else ("?",) * 4
        table.add_row(trial.trial_id, *(show_value(trial.params[key]) if key in trial.params else "" for key in params), *shown)
    console.print(table)
    if len(plan.trials) > SHOWN:
        console.print(f"... and {len(plan.trials) - SHOWN} more", highlight=False)
    known = [need for need in needs if need]
    merged = f" ({plan.n_points} points, equal ones merged)" if plan.n_points > len(plan.trials) else ""
    to_run = f"{done} finished before, {len(plan.trials) - done} to run in {storage.display}/"
    console.print(f"{count(len(plan.trials), 'trial')}{merged}, {to_run}", highlight=False, soft_wrap=True)
    if known:
        console.print(
            f"disk {show_bytes(sum(need.disk for need in known))} in all; of one trial at most: host "
            f"{show_bytes(max(need.host for need in known))} beside JAX itself, device {show_bytes(max(need.device for need in known))}",
            highlight=False,
        )
    if len(known) < len(needs):
        console.print("? : not known before the data set is prepared; see clray data prepare", highlight=False)


def _is_done(plan: Plan, storage, trial_id: str) -> bool:  # type: ignore[no-untyped-def]
    from clray.store.layout import SweepLayout

    return read_status(storage, SweepLayout().trial(trial_id), driver_alive=False, commits=False).status in FINISHED
