"""Runs jobs as Ray tasks, each pinned to its GPU. The only file that imports ray.

The driver owns retries: a worker or node that dies is a system failure and the job goes out again from its last commit;
an error of the program is not retried. Tasks return small dicts; tensors go straight to storage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clray.config import Resources
from clray.errors import OutputError, ResourceError
from clray.process import LANE_WIDTH, configure_jax, machine_bytes
from clray.process_tree import command_of, descendants, end_processes
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.trials.attempt import Outcome
from clray.trials.job import Job, OnEvent, run_job
from clray.trials.runner_local import MEMORY_SHARE, sort_outcomes
from clray.trials.status import read_json

POLL_SECONDS = 0.5
SILENCE_SECONDS = 10.0
"""Time that Ray has to report the tasks of a dead node by itself."""
TASKS_PER_SLOT = 2
PROBE_SECONDS = 60.0
SMALL_GPU_BYTES = 8 * 2**30
"""Taken where no GPU can be asked (all busy, or still to be started)."""

LEAN_VERSIONS = "2.59", "2.60"
"""Versions of Ray that are known to do without the services that a sweep does not use."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OUT_OF_HOST_MEMORY = (
    "out of memory on the host: Ray ended the worker before the node ran full. Lower resources.max_lanes, n_repeats or "
    "logging.n_subsamples, or raise resources.num_cpus so that fewer trials share a node"
)


class Board:
    """Collects progress messages of all workers for the driver. Losing it loses progress bars, nothing else."""

    def __init__(self) -> None:
        self._events: list[tuple[str, dict[str, Any]]] = []

    def post(self, trial_id: str, event: dict[str, Any]) -> None:
        self._events.append((trial_id, event))

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        events, self._events = self._events, []
        return events


def work(job: dict[str, Any], num_cpus: float, num_gpus: float, path: list[str], board: Any) -> list[dict[str, Any]]:
    """One job in a worker process."""
    sys.path.extend(entry for entry in path if entry not in sys.path)
    configure_jax(num_cpus, num_gpus)
    for trial in job["trials"]:
        board.post.remote(trial["trial_id"], {"event": "start", "attempt": trial["attempt"]})
    node = ray.get_runtime_context().get_node_id()
    outcomes = run_job(Job.from_plain(job), lambda trial_id, event: board.post.remote(trial_id, dict(event)), node)
    return [dataclasses.asdict(outcome) for outcome in outcomes]


def tasks_on(gpus: float, each: float) -> int:
    """Tasks of ``each`` GPUs that a node can run at once. Ray gives a task whole GPUs, or a part of one, and never parts of two."""
    return int(gpus) * whole(1 / each) if each < 1 else int(gpus / each)


def whole(ratio: float) -> int:
    """The integer below, where 1 / 0.1 is ten and 0.3 / 0.1 is three."""
    return int(ratio + 1e-9)


def gpu_memory_bytes() -> int:
    """Memory of the GPU that the calling task was given."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "--id=" + os.environ["CUDA_VISIBLE_DEVICES"]]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return min(int(line) for line in text.split()) * 2**20


def read_marker(url: str, name: str) -> str:
    """The content of the marker file as this node sees it, or an empty text."""
    with contextlib.suppress(Exception):
        return Storage.of(url).read_bytes(name).decode()
    return ""


@contextlib.contextmanager
def _replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Other values for these attributes of ``owner``, or none where it does not have all of them."""
    has_all = all(hasattr(owner, name) for name in attributes)
    before = {name: getattr(owner, name) for name in attributes} if has_all else {}
    for name in before:
        setattr(owner, name, attributes[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """A cluster that is started meanwhile listens on loopback alone, which Ray does by itself on Windows and macOS only.

    On Linux its services would listen on all addresses of the machine. ``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1`` in the environment leaves
    it at that.
    """
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    if name in os.environ:  # somebody decided
        yield
        return
    os.environ[name] = "0"  # for Ray's processes
    try:
        # It was read from the environment when Ray was imported.
        with _replaced(getattr(ray._private, "ray_constants", None), ENABLE_RAY_CLUSTER=False):
            yield
    finally:
        os.environ.pop(name, None)


@contextlib.contextmanager
def _without_services() -> Iterator[None]:
    """A cluster that is started meanwhile has no autoscaler, no API server and no forwarding of logs.

    On one machine nothing of clray asks them, but Ray starts and ends one after the other: without them that takes little more than half
    the time, and the cluster 280 MiB less. Ray has no option for it. Versions that this was not tried with start as they do.
    """
    if ray.__version__.rpartition(".")[0] not in LEAN_VERSIONS:
        yield
        return
    private: Any = ray._private

    def nothing(node: Any) -> None:
        """Starts no process."""

    def no_server(node: Any, **options: Any) -> None:
        """Starts no process either, but says where it would be: a node's agent asks for that, again every second, for its events."""
        constants = private.ray_constants
        name, space = constants.DASHBOARD_ADDRESS.encode(), constants.KV_NAMESPACE_DASHBOARD
        node.get_gcs_client().internal_kv_put(name, b"127.0.0.1:0", True, space)

    with _replaced(private.node.Node, start_monitor=nothing, start_api_server=no_server, start_log_monitor=nothing):
        yield


class RayRunner:
    """A context manager around one connection to a Ray cluster.

    Args:
        resources: of one trial.
        address: of an existing cluster (``auto``, ``host:port``, ``ray://...``); None starts one on this machine.

    Raises:
        ResourceError: no cluster there, or none of its nodes can run a trial.
    """

    def __init__(self, resources: Resources, address: str | None = None):
        self._resources = resources
        self._address = address
        self._started = False
        self._loopback = contextlib.ExitStack()

    def __enter__(self) -> RayRunner:
        if not ray.is_initialized():
            if not self._address:
                self._loopback.enter_context(_on_loopback())
            self._connect()
            self._started = True
        try:
            self.num_cpus, self.num_gpus = self._preflight()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._started:
            ray.shutdown()
            self._started = False
        self._loopback.close()

    def _connect(self) -> None:
        # Ray would hand GPU visibility of the driver to tasks without GPUs; tasks say for themselves what they use.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        before = descendants()
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
        try:
            if self._address:
                ray.init(address=self._address, **quiet)
            else:
                with _without_services():
                    ray.init(address="local", include_dashboard=False, **quiet)
        except BaseException as error:
            # Half a cluster: its agents would look for their raylet for a minute before they end by themselves.
            end_processes({pid: born for pid, born in descendants().items() if pid not in before and "ray" in command_of(pid)})
            with contextlib.suppress(Exception):
                ray.shutdown()
            self._loopback.close()
            if not isinstance(error, (ConnectionError, RuntimeError, ValueError, RayError)):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            where = f"--address {self._address}: no Ray cluster answers there" if self._address else "Ray could not be started here"
            raise ResourceError(f"{where} ({reason}). Start one with 'ray start --head', or leave --address out") from None

    def _preflight(self) -> tuple[float, float]:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        num_cpus = self._resources.num_cpus
        asked = self._resources.num_gpus
        num_gpus = float(any(node.get("GPU", 0) >= 1 for node in nodes)) if asked == "auto" else float(asked)
        fits = [node for node in nodes if node.get("CPU", 0) >= num_cpus and node.get("GPU", 0) >= num_gpus]
        if not fits and not _autoscales():
            has = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes)
            raise ResourceError(
                f"resources: a trial asks for {num_cpus:g} CPU and {num_gpus:g} GPU, which no node of the cluster has "
                f"({len(nodes)} node{'s' * (len(nodes) != 1)}: {has}). Lower resources.num_gpus or resources.num_cpus"
            )
        return num_cpus, num_gpus

    def slots(self) -> int:
        """Trials that the cluster can run at once, as it is now."""
        total = 0
        for node in (node["Resources"] for node in ray.nodes() if node["Alive"]):
            by_cpu = whole(node.get("CPU", 0) / self.num_cpus)
            total += min(by_cpu, tasks_on(node.get("GPU", 0), self.num_gpus)) if self.num_gpus else by_cpu
        return max(total, 1)

    def check_shared(self, root: str) -> None:
        """Refuses a local path that some node of the cluster does not see.

        Raises:
            OutputError: naming the nodes.
        """
        storage = Storage.of(root)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if not storage.is_local or len(nodes) < 2:
            return
        name, token = f".seen-by-all-{secrets.token_hex(4)}", secrets.token_hex(8)
        storage.replace_bytes(name, token.encode())
        try:
            reader = ray.remote(num_cpus=0, max_retries=0)(read_marker)
            seen = {
                node["NodeManagerAddress"]: reader.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                ).remote(root, name)
                for node in nodes
            }
            blind = [address for address, ref in seen.items() if ray.get(ref, timeout=60) != token]
        finally:
            storage.remove_file(name)
        if blind:
            raise OutputError(
                f"--output: {storage.display} is a local path that these nodes of the cluster do not share: {', '.join(blind)}. "
                "Use a folder on a shared file system, or a URL such as s3://bucket/results"
            )

    def memory_bytes(self) -> int:
        """Memory that the lanes of one job may fill: of its part of a GPU, or of its share of a node's memory."""
        if self.num_gpus:
            probe = ray.remote(num_gpus=min(self.num_gpus, 1.0), num_cpus=0, max_calls=1, max_retries=0)(gpu_memory_bytes)
            try:
                return int(MEMORY_SHARE * self.num_gpus * ray.get(probe.remote(), timeout=PROBE_SECONDS))
            except (RayError, GetTimeoutError):
                return int(MEMORY_SHARE * self.num_gpus * SMALL_GPU_BYTES)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= self.num_cpus]
        shares = [node.get("memory", 0) * self.num_cpus / node["CPU"] for node in nodes]
        return int(MEMORY_SHARE * min(shares, default=machine_bytes()))

    def on_gpu(self) -> bool:
        return self.num_gpus > 0

    def run(self, jobs: Sequence[Job], on_event: OnEvent, check: Callable[[], None]) -> Iterator[Outcome]:
        """Yields an outcome a trial as jobs end. At most twice the slots are in flight."""
        remote = self._task()
        board: Any = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=_on_this_node()).remote()
        waiting = deque(jobs)
        running: dict[Any, Job] = {}
        dead, sendings = DeadNodes(), 0
        try:
            while waiting or running:
                check()
                while waiting and len(running) < TASKS_PER_SLOT * self.slots():
                    job = waiting.popleft()
                    running[remote.remote(job.plain(), self.num_cpus, self.num_gpus, sys.path, board)] = job
                ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
                self._relay(board, on_event)
                results = [(job := running.pop(ref), self._outcomes(ref, job)) for ref in ready]
                frozen = dead.jobs_of(running)
                if frozen:
                    # Ray asks once for a worker for tasks of one kind, and would wait for the frozen node to answer: be of another kind.
                    sendings += 1
                    remote = self._task(CLRAY_SENDING=str(sendings))
                for ref, job, node in frozen:
                    del running[ref]
                    with contextlib.suppress(Exception):
                        ray.cancel(ref, force=True)
                    if node is None:
                        waiting.append(job)
                    else:
                        results.append((job, _lost(job, f"node {node} stopped answering")))
                for job, outcomes in results:
                    ended, again = sort_outcomes(job, outcomes, on_event)
                    waiting.extend(again)
                    yield from ended
        finally:
            # A cluster of our own ends with its workers. Elsewhere they are told to: Ray 2.60 can abort the whole process when the
            # answer of a task arrives after its cancellation, so this is not done where it is not needed.
            for ref in () if self._started else running:
                with contextlib.suppress(Exception):
                    ray.cancel(ref, force=True)
            with contextlib.suppress(Exception):
                ray.kill(board)

    def _task(self, **env: str) -> Any:
        """Args:
        env: of its workers, beside what the driver was told by hand.
        """
        if (width := os.environ.get(LANE_WIDTH)) is not None:
            env[LANE_WIDTH] = width  # a cluster that was there before knows nothing of it
        options: dict[str, Any] = {"runtime_env": {"env_vars": env}} if env else {}
        if self.num_gpus:
            # A process that used a GPU keeps its memory until it exits, so every GPU task gets a process of its own.
            options |= {"num_gpus": self.num_gpus, "max_calls": 1}
        return ray.remote(num_cpus=self.num_cpus, max_retries=0, **options)(work)

    @staticmethod
    def _relay(board: Any, on_event: OnEvent) -> None:
        with contextlib.suppress(GetTimeoutError, RayError):
            for trial_id, event in ray.get(board.take.remote(), timeout=5):
                on_event(trial_id, event)

    @staticmethod
    def _outcomes(ref: Any, job: Job) -> list[Outcome]:
        try:
            return [Outcome(**outcome) for outcome in ray.get(ref)]
        except RayTaskError as error:
            cause, reason, text = "program", f"{type(error.cause).__name__}: {error.cause}", str(error)
        except OutOfMemoryError as error:
            cause, reason, text = "system", _OUT_OF_HOST_MEMORY, str(error)
        except RayError as error:
            cause, text = "system", str(error)
            reason = f"{type(error).__name__}: {text.strip().partition('. ')[0]}"
        reason, trace = (reason.splitlines() or [""])[0], _COLOUR.sub("", text)
        return [Outcome(trial.trial_id, "failed", cause, reason, trial.attempt, trace) for trial in job.trials]


def _lost(job: Job, reason: str) -> list[Outcome]:
    return [Outcome(trial.trial_id, "failed", "system", reason, trial.attempt, reason) for trial in job.trials]


class DeadNodes:
    """Finds jobs of nodes that froze. Ray reports those of a node whose connections broke; where a machine hangs, they stay open, and
    Ray waits for its tasks, and for tasks that it was about to send there, for many minutes or for ever."""

    def __init__(self) -> None:
        self._died: dict[str, float] = {}
        self._settled = {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
        self._sent: dict[Any, float] = {}

    def jobs_of(self, running: Mapping[Any, Job]) -> list[tuple[Any, Job, str | None]]:
        """Jobs that will not end by themselves: reference, job, and the node it ran on, None where it may never have begun."""
        now = time.monotonic()
        self._sent = {ref: self._sent.get(ref, now) for ref in running}
        for node in ray.nodes():
            if not node["Alive"]:
                self._died.setdefault(node["NodeID"], now)
        due = {node: at for node, at in self._died.items() if node not in self._settled and now - at > SILENCE_SECONDS}
        self._settled |= set(due)
        found: list[tuple[Any, Job, str | None]] = []
        for ref, job in running.items() if due else ():
            node = _node_of(job)
            if node in due:
                found.append((ref, job, node))
            elif node is None and self._sent[ref] <= max(due.values()):
                found.append((ref, job, None))
        return found


def _node_of(job: Job) -> str | None:
    """Where a job runs by the record of its attempt, None where it has not begun."""
    trial = job.trials[0]
    with contextlib.suppress(OutputError):
        record = read_json(Storage.of(job.root), SweepLayout().trial(trial.trial_id).attempt(trial.attempt))
        return record.get("node") if record else None
    return None


def _on_this_node() -> Any:
    """The driver's own node, which is there as long as the driver; a driver outside the cluster takes any."""
    with contextlib.suppress(Exception):
        return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return "DEFAULT"


def _autoscales() -> bool:
    """Whether nodes can still be added: then a request that no node meets today may be met by one tomorrow.

    A cluster without node types of its own names each node's type after the node.
    """
    from ray.autoscaler.v2.sdk import get_cluster_status

    with contextlib.suppress(Exception):
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        nodes = [*status.active_nodes, *status.idle_nodes]
        return any(node.ray_node_type_name != f"node_{node.node_id}" for node in nodes)
    return False
