"""What a sweep would do: its trials, how they are packed, and what they cost; from the file and what is finished already."""

from __future__ import annotations

import shutil
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clray.config import Experiment
from clray.display import count, short_names, show_age, show_bytes, show_value
from clray.memory import Estimate, estimate_if_built, lanes_that_fit
from clray.process import available_cpus, cpu_devices, gpus_here, machine_bytes
from clray.store.filesystem import Storage, existing_part
from clray.store.layout import SweepLayout
from clray.trials.expand import Trial
from clray.trials.pack import make_packs, program_of
from clray.trials.plan import Plan
from clray.trials.runner_local import MEMORY_SHARE
from clray.trials.status import FINISHED, read_status
from clray.trials.sweep import sweep_root
from clray.trials.table import read_rows

SHOWN = 40
SHOWN_KINDS = 6
SHOWN_NOTES = 2


TOLD_BYTES = 2**30
"""Representations that take more are named by themselves."""


def print_dry_run(plan: Plan, output: str, local: bool = False, address: str | None = None) -> None:
    """Prints trials, their packs, and estimates of disk, host and device memory, and of time once a trial is finished.

    Args:
        local: they would run in this process.
        address: of the Ray cluster that they would run on.
    """
    console = Console(width=None if Console().is_terminal else 200)
    storage = sweep_root(output, plan.name)
    storage.check_reachable()
    asked = plan.sweep.resources.num_gpus
    on_gpu = not address and gpus_here() if asked == "auto" else asked > 0
    needs = _needs(plan, on_gpu, local)
    console.print(_table(plan.trials[:SHOWN], needs))
    if len(plan.trials) > SHOWN:
        console.print(f"... and {len(plan.trials) - SHOWN} more", highlight=False)
    before = _before(plan, storage)
    merged = f" ({plan.n_points} points, equal ones merged)" if plan.n_points > len(plan.trials) else ""
    number = Counter(before.values())
    failed = f", {number['failed']} failed before (--retry-failed)" if number["failed"] else ""
    todo = [trial for trial in plan.trials if trial.trial_id not in before]
    by_program = dict(needs.values())
    console.print(
        f"{count(len(plan.trials), 'trial')}{merged}, {count(len(by_program), 'compiled program')} for all; "
        f"{number['finished']} finished before{failed}, {len(todo)} to run in {storage.display}/",
        highlight=False,
        soft_wrap=True,
    )
    if todo:
        console.print(_packs(plan, todo, by_program, on_gpu, local, address), highlight=False, soft_wrap=True)
    known = [need for _, need in needs.values() if need]
    if known:
        console.print(
            f"disk {show_bytes(sum(need.disk for need in known))} in all{_free(storage)}; of one trial at most: host "
            f"{show_bytes(max(need.host for need in known))} beside JAX itself, device {show_bytes(max(need.device for need in known))}",
            highlight=False,
        )
    if (dense := sum(need.representations for need in known)) > TOLD_BYTES:
        console.print(
            f"{show_bytes(dense)} of the disk are representations, which grow with tasks x evaluated tasks x log points. Fewer: "
            "logging.eval_tasks, logging.n_subsamples, a higher logging.log_frequency, or logging.representations: none",
            highlight=False,
            soft_wrap=True,
        )
    notes = {_logging_note(plan, trial) for trial in plan.trials} - {""}
    for note in sorted(notes)[:SHOWN_NOTES]:
        console.print(note, highlight=False, soft_wrap=True)
    _print_time(console, plan, storage, len(todo))
    if len(known) < len(needs):
        console.print(
            "? : not known: the data set is not prepared yet (clray data prepare), or the model or strategy fails while it is built",
            highlight=False,
        )


def _free(storage: Storage) -> str:
    if not storage.is_local:
        return ""
    return f" ({show_bytes(shutil.disk_usage(existing_part(storage.root)).free)} are free)"


def _needs(plan: Plan, on_gpu: bool, local: bool) -> dict[str, tuple[Experiment, Estimate | None]]:
    """Of every trial what tells its program, and an estimate. Trials of one program need the same."""
    by_program: dict[Experiment, tuple[Experiment, Estimate | None]] = {}
    n_devices, needs = cpu_devices(plan.sweep.resources.num_cpus, local), {}
    for trial in plan.trials:
        program = program_of(trial.experiment)
        if program not in by_program:
            by_program[program] = program, estimate_if_built(trial.experiment, plan.sizes[trial.trial_id], on_gpu, n_devices)
        needs[trial.trial_id] = by_program[program]
    return needs


def _logging_note(plan: Plan, trial: Trial) -> str:
    logging, sizes = trial.experiment.logging, plan.sizes[trial.trial_id]
    kept = logging.weights or logging.representations != "none"
    return sizes.after_the_last_log(logging.log_frequency) if sizes and kept else ""


def _packs(
    plan: Plan, todo: Sequence[Trial], needs: Mapping[Experiment, Estimate | None], on_gpu: bool, local: bool, address: str | None
) -> str:
    """How the trials to run are packed; only as far as it can be known before Ray is asked for its nodes."""
    resources = plan.sweep.resources
    if address or on_gpu:
        most = "as many as fit into memory" if resources.max_lanes == "auto" else f"at most {resources.max_lanes} lanes"
        return f"packs: {most}, and no fewer packs than the cluster has slots for"
    slots = 1 if local else max(1, int(available_cpus() / resources.num_cpus))
    memory = int(MEMORY_SHARE * machine_bytes() / slots)

    def fit(trial: Trial) -> int:
        need = needs[program_of(trial.experiment)]
        return 1 if need is None else lanes_that_fit(need, len(trial.experiment.repeat_numbers), memory, on_gpu)

    packs = make_packs(todo, slots, resources.max_lanes, fit, plan.sizes)
    kinds = Counter((len(pack), sum(len(trial.experiment.repeat_numbers) for trial in pack)) for pack in packs)
    shown = []
    for (trials, lanes), n in kinds.most_common(SHOWN_KINDS):
        shown.append(f"{n} x {count(trials, 'trial')} ({count(lanes, 'lane')}{' each' * (n > 1)})")
    more = f", {len(kinds) - SHOWN_KINDS} more kinds" if len(kinds) > SHOWN_KINDS else ""
    where = "in this process" if local else f"on the {count(available_cpus(), 'CPU')} of this machine"
    return f"{count(len(packs), 'pack')}: {', '.join(shown)}{more}; {slots} at a time {where}"


def _table(trials: Sequence[Trial], needs: Mapping[str, tuple[Experiment, Estimate | None]]) -> Table:
    params = list(dict.fromkeys(key for trial in trials for key in trial.params))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", no_wrap=True)
    for title in short_names(params):
        table.add_column(title, justify="right", overflow="fold")
    for title in ("parameters", "disk", "host", "device"):
        table.add_column(title, justify="right", no_wrap=True)
    for trial in trials:
        need = needs[trial.trial_id][1]
        shown = (f"{need.parameters:,}", *map(show_bytes, (need.disk, need.host, need.device))) if need else ("?",) * 4
        values = (escape(show_value(trial.params[key])) if key in trial.params else "" for key in params)
        table.add_row(trial.trial_id, *values, *shown)
    return table


def _before(plan: Plan, storage: Storage) -> dict[str, str]:
    """Trials that an earlier run finished, and those that failed and would not run again by themselves."""
    layout = SweepLayout()
    there = set(storage.list_names(layout.trials))
    begun = [trial.trial_id for trial in plan.trials if trial.trial_id in there]
    statuses = {name: read_status(storage, layout.trial(name), driver_alive=False, commits=False) for name in begun}
    kinds = {name: "finished" if s.status in FINISHED else "failed" if s.given_up else "" for name, s in statuses.items()}
    return {name: kind for name, kind in kinds.items() if kind}


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
