"""Runs a plan: what is finished stays, what is missing runs, and the sweep's own files tell the truth at every moment."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import platform
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from clray.config import Experiment
from clray.errors import OutputError
from clray.memory import estimate
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.trials.expand import Trial
from clray.trials.job import Job, JobTrial, OnEvent, Outcome, now
from clray.trials.pack import make_packs
from clray.trials.plan import Plan
from clray.trials.runner_local import Runner
from clray.trials.status import FINISHED, TrialStatus, read_json, read_status
from clray.trials.table import TrialsTable, row_of

RENEW_SECONDS = 5.0
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
    plan: Plan, storage: Storage, runner: contextlib.AbstractContextManager[Runner] | Runner, on_event: OnEvent, retry_failed: bool = False
) -> SweepResult:
    """Runs everything of ``plan`` that is not finished.

    Args:
        storage: the sweep's folder.
        runner: entered only if there is something to run.
        on_event: called with (trial id, event); events: planned, start, task, retry, end.
        retry_failed: also run trials again whose program failed.

    Raises:
        OutputError: the folder cannot be written.
        ResourceError: the runner cannot start.
    """
    layout = SweepLayout()
    storage.check_writable()
    _write_sweep_file(storage, layout, plan)
    table = TrialsTable(storage, layout)
    statuses = {t.trial_id: read_status(storage, layout.trial(t.trial_id), driver_alive=False, commits=False) for t in plan.trials}
    todo = []
    for trial in plan.trials:
        status = statuses[trial.trial_id]
        if status.status in FINISHED or (status.status == "failed" and status.cause == "program" and not retry_failed):
            continue
        statuses[trial.trial_id] = TrialStatus("pending", attempts=status.attempts)
        todo.append(trial)
    params = {trial.trial_id: trial.params for trial in plan.trials}
    for trial_id, status in statuses.items():
        table.rows[trial_id] = row_of(trial_id, params[trial_id], status)
    table.write()
    reused = sum(status.status in FINISHED for status in statuses.values())
    on_event("", {"event": "planned", "jobs": len(todo), "reused": reused, "trials": len(plan.trials)})
    if todo:
        with _lease(storage, layout):
            entered = runner if isinstance(runner, contextlib.AbstractContextManager) else contextlib.nullcontext(runner)
            with entered as active:
                if hasattr(active, "check_shared"):
                    active.check_shared(storage.root)
                try:
                    jobs = make_jobs(plan, todo, statuses, storage.root, active)
                    for outcome in active.run(jobs, on_event):
                        _record(table, storage, layout, params, outcome, on_event)
                finally:
                    table.write()
    rows = [table.rows[trial.trial_id] for trial in plan.trials]
    return SweepResult(storage.display, rows, reused, sorted(set(table.rows) - set(params)))


def make_jobs(plan: Plan, todo: Sequence[Trial], statuses: Mapping[str, TrialStatus], root: str, runner: Runner) -> list[Job]:
    """Packs of trials, ready to be sent out."""
    memory = runner.memory_bytes()

    def lanes_that_fit(trial: Trial) -> int:
        sizes = plan.sizes[trial.trial_id]
        if sizes is None:
            return 1
        need = estimate(trial.experiment, sizes)
        return memory * sizes.n_repeats // max(need.device, need.host)

    return [
        Job(root, tuple(JobTrial(t.trial_id, travelling(t.experiment), statuses[t.trial_id].attempts + 1) for t in pack))
        for pack in make_packs(todo, runner.slots(), plan.sweep.resources.max_lanes, lanes_that_fit)
    ]


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
    if outcome.status == "failed":
        # The worker may have died before it could write how its attempt ended.
        status = TrialStatus("failed", attempts=max(status.attempts, outcome.attempt), error=outcome.error, cause=outcome.cause)
        with contextlib.suppress(OutputError):
            path = layout.trial(outcome.trial_id).attempt(outcome.attempt)
            known = read_json(storage, path) or {}
            ended = {"end": now(), "outcome": "failed", "cause": outcome.cause, "error": outcome.error}
            storage.replace_bytes(path, json.dumps({**known, **ended}, indent=1).encode())
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


@contextlib.contextmanager
def _lease(storage: Storage, layout: SweepLayout) -> Iterator[None]:
    """Renews a small file that says who drives the sweep, so that ``clray status`` can tell running from interrupted."""
    record = {"host": socket.gethostname(), "pid": os.getpid(), "start": now()}
    stop = threading.Event()

    def renew() -> None:
        with contextlib.suppress(OutputError, OSError):
            storage.replace_bytes(layout.lease, json.dumps({**record, "renewed": now()}).encode())

    def loop() -> None:
        while not stop.wait(RENEW_SECONDS):
            renew()

    renew()
    thread = threading.Thread(target=loop, name="clray-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(OutputError, OSError):
            storage.remove_file(layout.lease)
