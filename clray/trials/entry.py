"""Plan, prepare the data, run: what the command line and the Python functions share."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from clray.errors import ConfigError, OutputError, ResourceError, UserError
from clray.process import width_by_hand
from clray.signals import kept_signals
from clray.store.filesystem import Storage
from clray.store.lease import Lease
from clray.trials.job import OnEvent
from clray.trials.plan import Plan, plan_run, plan_sweep
from clray.trials.runner_local import LocalRunner, Runner
from clray.trials.sweep import SweepResult, run_plan, sweep_root

if TYPE_CHECKING:
    from clray.config import Experiment, Resources
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
        HeldError: another driver works on the folder.
        UserError: see ``run_plan``.
    """
    if not local and output.startswith("memory:"):
        raise ConfigError("--output memory://: lives inside one process, and Ray's workers are others; use a folder, s3://, or --local")
    if not local and importlib.util.find_spec("ray") is None:
        raise ResourceError("Ray is not installed here: pip install ray, or give --local to run one trial after the other in this process")
    if not local and address is not None:
        check_address(address)
    width_by_hand()  # raises here, where nothing has started, and not in every trial
    if address is None:
        refuse_what_does_not_fit(plan)
    storage = checked_output(output, plan.name)
    with Lease.claim(storage, force) as lease:
        if local or address is None:
            prepare_data(plan)
        runner: Any = LocalRunner()
        here = True
        if not local:
            runner, here = on_ray(plan.sweep.resources, address), not address and not _connected()
        return run_plan(plan, storage, runner, on_event, lease, retry_failed, here)


@contextlib.contextmanager
def on_ray(resources: Resources, address: str | None) -> Iterator[Runner]:
    """A runner on Ray, which is imported only where there is something to run; without the signal handlers that it brings along."""
    from clray.trials.runner_ray import RayRunner

    with contextlib.ExitStack() as stack:
        with kept_signals():
            active = stack.enter_context(RayRunner(resources, address))
        yield active


def _connected() -> bool:
    """Whether this process is connected to a Ray already, which is used then."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


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
    """Asks whether a gRPC server, as Ray's are, answers at ``host:port``; Ray itself would ask for minutes.

    Raises:
        ResourceError: nothing does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("1", "true", "True") or _speaks_grpc(connection):
                return
        reason = "something else listens there"
    except (OSError, OverflowError) as error:
        reason = "no answer" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
    raise ResourceError(
        f"--address {address}: no Ray cluster answers there ({reason}). Start one with 'ray start --head', or leave --address out"
    )


def _speaks_grpc(connection: socket.socket) -> bool:
    """Opens HTTP/2, under every gRPC, and looks whether the answer begins with a SETTINGS frame as it must."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    head = b""
    while len(head) < 9:
        more = connection.recv(9 - len(head))
        if not more:
            return False
        head += more
    return head[3] == 4 and head[5:] == bytes(4)


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
    experiment: str | os.PathLike[str] | Mapping[str, Any] | Experiment,
    output: str,
    settings: Mapping[str, Any] | None,
    force: bool = False,
) -> SweepResults:
    """See ``clray.run``."""
    from clray.results import open_results

    source = os.fspath(experiment) if isinstance(experiment, os.PathLike) else experiment
    plan = plan_run(source, settings)
    result = execute(plan, output, quiet, local=True, retry_failed=True, force=force)
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
    force: bool = False,
) -> SweepResults:
    """See ``clray.sweep``."""
    from clray.results import open_results

    source = os.fspath(sweep) if isinstance(sweep, os.PathLike) else sweep
    plan = plan_sweep(source, settings)
    execute(plan, output, quiet, local=local, address=address, retry_failed=retry_failed, force=force)
    return open_results(sweep_root(output, plan.name).root)
