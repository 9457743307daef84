"""Runs a plan: what is finished stays, what is missing runs, and the sweep's own files tell the truth at every moment."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import math
import platform
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from clray import __version__
from clray.artifacts import other_version
from clray.config import Experiment
from clray.display import show_bytes
from clray.errors import OutputError
from clray.memory import check_fits, estimate_if_built, lanes_that_fit
from clray.process import cpu_devices, gpus_here, machine_bytes
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.store.lease import Lease
from clray.store.reader import committed_folders
from clray.trials.attempt import JobTrial, Outcome, close_interrupted
from clray.trials.expand import Trial
from clray.trials.job import Job, OnEvent
from clray.trials.pack import make_packs, program_of
from clray.trials.plan import Plan
from clray.trials.runner_local import LocalRunner, Runner
from clray.trials.settings import settings_of_config, told_apart
from clray.trials.status import FINISHED, TrialStatus, read_status
from clray.trials.table import TrialsTable, params_of, row_of

PACKAGES = ("clray", "jax", "jaxlib", "flax", "optax", "torch", "ray", "numpy")


@dataclass(frozen=True)
class SweepResult:
    """What a run of a sweep left behind.

    Attributes:
        root: the sweep's folder.
        rows: a row a trial of this sweep, as in trials.parquet.
        reused: trials that were finished before.
        kept: trial ids in the folder that this sweep does not ask for any more.
    """

    root: str
    rows: list[dict[str, Any]]
    reused: int = 0
    kept: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Rows of trials that did not finish."""
        return [row for row in self.rows if row["status"] not in FINISHED]


def sweep_root(output: str, name: str) -> Storage:
    """Where a sweep's files go."""
    return Storage.of(output).child(name)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results; without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def run_plan(
    plan: Plan,
    storage: Storage,
    runner: contextlib.AbstractContextManager[Runner] | Runner,
    on_event: OnEvent,
    lease: Lease,
    retry_failed: bool = False,
    here: bool = False,
) -> SweepResult:
    """Runs everything of ``plan`` that is not finished.

    Args:
        storage: the sweep's folder.
        runner: entered only if there is something to run.
        on_event: called with (trial id, event); events: planned, start, task, retry, end.
        lease: on the folder, held.
        retry_failed: also run trials again whose program failed, or that the system lost too often.
        here: whether the runner uses this machine and no other.

    Raises:
        OutputError: the folder cannot be written or has too little room, or holds trials that another version of clray began.
        LeaseLostError: another driver took over, or the folder was removed.
        ResourceError: the runner cannot start, or this machine has too little memory.
    """
    layout = SweepLayout()
    statuses = {t.trial_id: read_status(storage, layout.trial(t.trial_id), driver_alive=False, commits=False) for t in plan.trials}
    todo = [t for t in plan.trials if not _left_alone(statuses[t.trial_id], retry_failed)]
    refuse_other_version(storage, layout, {trial.trial_id: statuses[trial.trial_id] for trial in todo})
    fresh = [trial for trial in todo if not statuses[trial.trial_id].attempts]
    n_devices = cpu_devices(plan.sweep.resources.num_cpus, isinstance(runner, LocalRunner))
    refuse_what_cannot_fit(plan, fresh, storage, here, n_devices)
    _write_sweep_file(storage, layout, plan)
    table = TrialsTable(storage, layout)
    statuses |= {t.trial_id: _pending(storage, layout, t.trial_id, statuses[t.trial_id], retry_failed) for t in todo}
    params = _shown(plan, table, storage, layout, todo)
    for trial_id, status in statuses.items():
        table.rows[trial_id] = row_of(trial_id, params[trial_id], status)
    table.write()
    finished = [status for status in statuses.values() if status.status in FINISHED]
    others = Counter(status.clray for status in finished if status.clray not in ("", __version__))
    planned = {
        "jobs": len(todo),
        "reused": len(finished),
        "trials": len(plan.trials),
        "points": plan.n_points,
        "other_versions": dict(others),
    }
    on_event("", {"event": "planned", **planned})
    if todo:
        entered = runner if isinstance(runner, contextlib.AbstractContextManager) else contextlib.nullcontext(runner)
        with entered as active:
            if hasattr(active, "check_shared"):
                active.check_shared(storage.root)
            try:
                jobs = make_jobs(plan, todo, statuses, storage.root, active, lease.ticket)
                for outcome in active.run(jobs, on_event, lease.check):
                    if not lease.held():
                        lease.check()  # raises: the table belongs to somebody else, and what failed has failed because of that
                    _record(table, storage, layout, params, outcome, on_event)
            finally:
                if lease.held():
                    table.write()
    rows = [table.rows[trial.trial_id] for trial in plan.trials]
    return SweepResult(storage.display, rows, len(finished), sorted(set(table.rows) - set(statuses)))


def _shown(plan: Plan, table: TrialsTable, storage: Storage, layout: SweepLayout, todo: Sequence[Trial]) -> Mapping[str, Mapping[str, Any]]:
    """The settings each trial of the plan is shown with: what the sweep varies, and what sets it apart from trials that other
    commands left in the folder. The rows of the latter are completed in the same way."""
    params = {trial.trial_id: trial.params for trial in plan.trials}
    kept = table.rows.keys() - params.keys()
    if not kept:
        return params
    if not todo and params.keys() <= table.rows.keys():  # all rows were completed when the last of them was new
        return {trial_id: {**params_of(table.rows[trial_id]), **own} for trial_id, own in params.items()}
    configs = {trial.trial_id: travelling(trial.experiment) for trial in plan.trials}
    configs |= {trial_id: settings_of_config(storage, layout.trial(trial_id).config) for trial_id in kept}
    told = told_apart(params | {trial_id: params_of(table.rows[trial_id]) for trial_id in kept}, configs)
    for trial_id in kept:
        table.rows[trial_id] |= {f"param.{key}": value for key, value in told[trial_id].items()}
    return {trial_id: told[trial_id] for trial_id in params}


def _left_alone(status: TrialStatus, retry_failed: bool) -> bool:
    return status.status in FINISHED or (status.given_up and not retry_failed)


def _pending(storage: Storage, layout: SweepLayout, trial_id: str, status: TrialStatus, retry_failed: bool) -> TrialStatus:
    """A trial that is about to run again; the record of an attempt that its driver left is closed."""
    if status.left_open:
        close_interrupted(storage, layout.trial(trial_id), status.attempts)
    return TrialStatus("pending", attempts=status.attempts, losses=0 if retry_failed else status.losses)


def refuse_other_version(storage: Storage, layout: SweepLayout, statuses: Mapping[str, TrialStatus]) -> None:
    """Refuses to go on with trials that another version of clray began; nothing is lost either way.

    Raises:
        OutputError: naming the trials and the version.
    """
    begun: dict[str, list[str]] = {}
    for trial_id, status in statuses.items():
        if status.clray not in ("", __version__) and committed_folders(storage, layout.trial(trial_id)):
            begun.setdefault(status.clray, []).append(trial_id)
    for version, trial_ids in begun.items():
        raise other_version(storage, trial_ids, version)


def refuse_what_cannot_fit(plan: Plan, fresh: Sequence[Trial], storage: Storage, here: bool, n_devices: int) -> None:
    """Refuses trials that would each fill a local disk or this machine's memory, before they do.

    Args:
        fresh: trials that have written nothing yet.
        here: whether they run on this machine.
        n_devices: CPU devices of a trial.

    Raises:
        OutputError, ResourceError: with the arithmetic.
    """
    free = shutil.disk_usage(storage.root).free if storage.is_local else math.inf
    on_cpu = plan.sweep.resources.num_gpus == 0 or not gpus_here()
    for trial in {program_of(trial.experiment): trial for trial in fresh}.values():
        sizes = plan.sizes[trial.trial_id]
        need = estimate_if_built(trial.experiment, sizes, n_devices=n_devices)
        if need is None or sizes is None:
            continue
        if here and on_cpu:
            check_fits(need, sizes, trial.trial_id, machine_bytes())
        if need.disk > 2 * free:  # what is nearly enough may be: tables are compressed, and space may be made while it runs
            raise OutputError(
                f"{trial.trial_id} would write {show_bytes(need.disk)} by estimate, and {show_bytes(free)} are free under "
                f"{storage.display}. Lower sequence.n_tasks or n_repeats, log less (logging: a higher log_frequency, fewer eval_tasks, "
                "representations: none, weights: false), or write to a larger disk (--output)"
            )


def make_jobs(
    plan: Plan, todo: Sequence[Trial], statuses: Mapping[str, TrialStatus], root: str, runner: Runner, ticket: tuple[int, str]
) -> list[Job]:
    """Packs of trials, ready to be sent out under a lease (see ``Lease.ticket``)."""
    memory, on_gpu = runner.memory_bytes(), runner.on_gpu()
    n_devices = cpu_devices(plan.sweep.resources.num_cpus, isinstance(runner, LocalRunner))

    def fit(trial: Trial) -> int:
        need = estimate_if_built(trial.experiment, plan.sizes[trial.trial_id], on_gpu, n_devices)
        return 1 if need is None else lanes_that_fit(need, len(trial.experiment.repeat_numbers), memory, on_gpu)

    def next_attempt(trial: Trial) -> JobTrial:
        before = statuses[trial.trial_id]
        return JobTrial(trial.trial_id, travelling(trial.experiment), before.attempts + 1, before.losses)

    packs = make_packs(todo, runner.slots(), plan.sweep.resources.max_lanes, fit, plan.sizes)
    return [Job(root, tuple(map(next_attempt, pack)), ticket) for pack in packs]


def travelling(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain data that means the same in another working directory."""
    plain = experiment.plain()
    if plain["dataset"].get("root"):
        plain["dataset"]["root"] = str(Path(plain["dataset"]["root"]).expanduser().absolute())
    if plain.get("ideal_models") and "://" not in plain["ideal_models"]:
        plain["ideal_models"] = str(Path(plain["ideal_models"]).expanduser().absolute())
    return plain


def _record(
    table: TrialsTable, storage: Storage, layout: SweepLayout, params: Mapping[str, Mapping[str, Any]], outcome: Outcome, on_event: OnEvent
) -> None:
    status = read_status(storage, layout.trial(outcome.trial_id), driver_alive=False, commits=False)
    if outcome.status == "failed" and status.status not in FINISHED:
        # Its record may say less, where even that could not be written.
        status = replace(status, status="failed", attempts=max(status.attempts, outcome.attempt), error=outcome.error, cause=outcome.cause)
    row = row_of(outcome.trial_id, params[outcome.trial_id], status)
    table.put(row)
    on_event(outcome.trial_id, {"event": "end", "row": row})


def _write_sweep_file(storage: Storage, layout: SweepLayout, plan: Plan) -> None:
    text = io.StringIO()
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump({**plan.document, "name": plan.name, "versions": versions()}, text)
    storage.replace_bytes(layout.sweep, text.getvalue().encode())
