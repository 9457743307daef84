"""Plan, prepare the data, run: what the command line and the Python functions share."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from clray.errors import ConfigError, HeldError, OutputError, ResourceError, UserError
from clray.signals import kept_signals
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.trials.job import OnEvent
from clray.trials.plan import Plan, plan_run, plan_sweep
from clray.trials.runner_local import LocalRunner, Runner
from clray.trials.status import is_alive, read_json
from clray.trials.sweep import SweepResult, run_plan, sweep_root

if TYPE_CHECKING:
    from clray.config import Experiment
    from clray.results import SweepResults

CONNECT_SECONDS = 5.0


def quiet(trial_id: str, event: Mapping[str, Any]) -> None:
    """Shows nothing."""


def execute(
    plan: Plan, output: str, on_event: OnEvent, *, local: bool, address: str | None = None, retry_failed: bool = False, force: bool = False
) -> SweepResult:
    """Runs a plan in this process or on Ray.

    Data that this machine will need is prepared first, so that missing files are one clear error before anything starts.

    Raises:
        UserError: see ``run_plan``.
    """
    if address is None:
        refuse_what_does_not_fit(plan)
    storage = checked_output(output, plan.name)
    refuse_second_driver(storage, force)
    runner: Any
    if local:
        prepare_data(plan)
        runner = LocalRunner()
    else:
        if storage.root.startswith("memory:"):
            raise ConfigError("--output memory://: lives inside one process, and Ray's workers are others; use a folder, s3://, or --local")
        if address is None:
            prepare_data(plan)
        else:
            check_address(address)
        from clray.trials.runner_ray import RayRunner

        runner = connected(RayRunner(plan.sweep.resources, address))
    return run_plan(plan, storage, runner, on_event, retry_failed)


@contextlib.contextmanager
def connected(runner: AbstractContextManager[Runner]) -> Iterator[Runner]:
    """The runner, entered without the signal handlers that it brings along."""
    with contextlib.ExitStack() as stack:
        with kept_signals():
            active = stack.enter_context(runner)
        yield active


def checked_output(output: str, name: str) -> Storage:
    """Where the sweep's files go, known to be writable.

    Raises:
        OutputError: it is not.
    """
    try:
        storage = sweep_root(output, name)
        storage.check_writable()
    except OutputError as error:
        raise OutputError(f"--output: {error}") from None
    return storage


def check_address(address: str) -> None:
    """Asks whether anything listens at ``host:port``; Ray itself would ask for minutes.

    Raises:
        ResourceError: nothing does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ResourceError(
            f"--address {address}: no Ray cluster answers there ({reason}). Start one with 'ray start --head', or leave --address out"
        ) from None


def refuse_second_driver(storage: Storage, force: bool) -> None:
    """Refuses a folder that another driver works on.

    Raises:
        HeldError: naming the driver.
    """
    lease = None if force else read_json(storage, SweepLayout().lease)
    if lease and is_alive(storage, SweepLayout()):
        raise HeldError(
            f"{storage.display} is driven by process {lease.get('pid')} on {lease.get('host')} since {lease.get('start')}. Wait for it, "
            "choose another --output, or take over with --force if you know that it is gone"
        )


def refuse_what_does_not_fit(plan: Plan) -> None:
    """Refuses trials that this machine, where they are to run, cannot hold.

    Raises:
        ResourceError: with the arithmetic.
    """
    from clray.sizes import check_host

    for sizes in plan.sizes.values():
        if sizes is not None:
            check_host(sizes)


def prepare_data(plan: Plan) -> None:
    """Prepares every data set of a plan on this machine, then checks sizes that were not known before."""
    from clray.data.cache import open_dataset
    from clray.sizes import sizes_of

    infos = {trial.experiment.dataset: None for trial in plan.trials}
    opened = {options: open_dataset(options).info for options in infos}
    for trial in plan.trials:
        sizes_of(trial.experiment, opened[trial.experiment.dataset])


def run_experiment(
    experiment: str | os.PathLike[str] | Mapping[str, Any] | Experiment, output: str, settings: Mapping[str, Any] | None
) -> SweepResults:
    """See ``clray.run``."""
    from clray.results import open_results

    source = os.fspath(experiment) if isinstance(experiment, os.PathLike) else experiment
    plan = plan_run(source, settings)
    result = execute(plan, output, quiet, local=True, retry_failed=True)
    if result.failed:
        raise UserError(f"{plan.trials[0].trial_id} failed: {result.failed[0]['error']} (traceback in {result.root}/trials)")
    return open_results(sweep_root(output, plan.name).root)


def run_sweep(
    sweep: str | os.PathLike[str] | Mapping[str, Any],
    output: str,
    settings: Mapping[str, Any] | None,
    address: str | None,
    local: bool,
    retry_failed: bool = False,
) -> SweepResults:
    """See ``clray.sweep``."""
    from clray.results import open_results

    source = os.fspath(sweep) if isinstance(sweep, os.PathLike) else sweep
    plan = plan_sweep(source, settings)
    execute(plan, output, quiet, local=local, address=address, retry_failed=retry_failed)
    return open_results(sweep_root(output, plan.name).root)
