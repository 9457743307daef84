"""The command on a cluster that is there already: failures of programs, of workers, and what workers are given."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import clray
from clray.errors import ResourceError
from clray.trials import entry, runner_ray
from tests.trials.sweeps import experiment, sweep, write

pytestmark = pytest.mark.ray

CLRAY = str(Path(sys.executable).with_name("clray"))

OWN_MODELS = '''
import json, os, pathlib, signal, time
import yaml
from clray.models.mlp import MLP, MLPModule

HERE = pathlib.Path(__file__).parent

class Told(MLP):
    """Does what a file named like its width says when training is traced, which happens in workers only."""

    def build(self, shape, n_outputs, rngs):
        return Module(self, shape[0], n_outputs, rngs)

class Module(MLPModule):
    def __init__(self, options, n_inputs, n_outputs, rngs):
        super().__init__(options, n_inputs, n_outputs, rngs)
        self.width = options.hidden[0]

    def __call__(self, x, train=False, rngs=None):
        told = HERE / f"width-{self.width}"
        if train and told.exists():
            order = told.read_text()
            if order == "raise":
                raise ArithmeticError(f"{self.width} units\\nare too many")
            told.unlink()
            if order == "die":
                configs = {path.parent: yaml.safe_load(path.read_text()) for path in HERE.glob("out/widths/trials/*/config.yaml")}
                (own,) = [folder for folder, config in configs.items() if config["model"]["hidden"] == [self.width]]
                while not (own / "initial" / "COMMIT.json").exists():  # the untrained networks are written beside
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            names = ("JAX_PLATFORMS", "PJRT_NPROC", "XLA_CLIENT_MEM_FRACTION")
            (HERE / "environment.json").write_text(json.dumps({name: os.environ.get(name) for name in names}))
        return super().__call__(x)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model of one's own and a sweep over its width."""
    (tmp_path / f"own_models_{tmp_path.name}.py").write_text(OWN_MODELS)
    base = experiment(model={"name": f"own_models_{tmp_path.name}:Told", "hidden": [4]})
    write(tmp_path / "widths.yaml", sweep("widths", base, grid={"model.hidden": [[4], [5], [6]]}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A real ``clray`` process in the working directory."""
    return subprocess.run([CLRAY, *arguments], capture_output=True, text=True, timeout=150)


def table(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of trials.parquet by width."""
    rows = pq.read_table(folder / "out" / "widths" / "trials.parquet").to_pylist()
    return {row["param.model.hidden"]: row for row in rows}


def attempts(folder: Path, trial_id: str) -> list[dict[str, Any]]:
    """The records of a trial's attempts."""
    return [json.loads(path.read_text()) for path in sorted((folder / "out" / "widths" / "trials" / trial_id / "attempts").glob("*.json"))]


def test_a_failing_trial_is_told_and_kept_and_retried_when_asked(ray_address: str, folder: Path) -> None:
    (folder / "width-5").write_text("raise")
    arguments = ("sweep", "widths.yaml", "-o", "out", "--address", ray_address)
    first = command(*arguments)
    assert first.returncode == 1, first.stderr
    rows = table(folder)
    assert {width: row["status"] for width, row in rows.items()} == {"[4]": "done", "[5]": "failed", "[6]": "done"}
    assert {width: row["acc_mean"] is None for width, row in rows.items()} == {"[4]": False, "[5]": True, "[6]": False}
    failed = rows["[5]"]
    assert failed["error"] == "ArithmeticError: 5 units"
    told = [line for line in first.stderr.splitlines() if failed["trial_id"] in line]
    assert told[-1].split(None, 2) == [failed["trial_id"], "1", "ArithmeticError: 5 units"]
    assert "--retry-failed" in first.stderr
    traceback = folder / "out" / "widths" / "trials" / failed["trial_id"] / "attempts" / "traceback.txt"
    assert "are too many" in traceback.read_text()

    again = command(*arguments)
    assert again.returncode == 1
    assert "3 trials: 0 to run, 2 finished before" in again.stderr
    assert len(attempts(folder, failed["trial_id"])) == 1

    (folder / "width-5").unlink()
    mended = command(*arguments, "--retry-failed")
    assert mended.returncode == 0, mended.stderr
    assert "3 trials: 1 to run, 2 finished before" in mended.stderr
    assert (table(folder)["[5]"]["status"], table(folder)["[5]"]["attempts"], table(folder)["[5]"]["error"]) == ("done", 2, None)
    assert [record["outcome"] for record in attempts(folder, failed["trial_id"])] == ["failed", "done"]


def test_a_worker_that_dies_is_a_system_failure_and_its_trial_goes_out_again(ray_address: str, folder: Path) -> None:
    (folder / "width-6").write_text("die")
    results = clray.sweep("widths.yaml", output="out")
    rows = table(folder)
    ended = {width: (row["status"], row["attempts"]) for width, row in rows.items()}
    assert ended == {"[4]": ("done", 1), "[5]": ("done", 1), "[6]": ("done", 2)}
    assert [record["attempt"] for record in attempts(folder, rows["[6]"]["trial_id"])] == [1, 2]
    # The first attempt had committed the state before training; the second one went on from there.
    commit = folder / "out" / "widths" / "trials" / rows["[6]"]["trial_id"] / "initial" / "COMMIT.json"
    assert json.loads(commit.read_text())["attempt"].startswith("001")
    assert results.trial(rows["[6]"]["trial_id"]).tasks == [0, 1]


def test_workers_without_a_gpu_see_cpus_only(ray_address: str, folder: Path) -> None:
    (folder / "width-4").write_text("report")
    clray.sweep(sweep("widths", json.loads((folder / "widths.yaml").read_text())["experiment"]), output="out")
    environment = json.loads((folder / "environment.json").read_text())
    assert environment == {"JAX_PLATFORMS": "cpu", "PJRT_NPROC": "1", "XLA_CLIENT_MEM_FRACTION": None}
    assert os.environ.get("JAX_PLATFORMS") in (None, "cpu")  # the driver's own is left as it was


def test_a_cluster_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    """Ray alone would ask for minutes, beyond the time limit of the command."""
    path = write(tmp_path / "s.yaml", sweep())
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        done = command("sweep", str(path), "-o", str(tmp_path / "out"), "--address", address)
        assert done.returncode == 2
        assert done.stderr.startswith(f"clray: --address {address}: no Ray cluster answers there (Connection refused). Start one with")
        assert not (tmp_path / "out" / "small" / "trials").exists()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "web server"])
def test_a_port_where_something_else_listens_is_refused_in_seconds(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(answer)
                if not answer:
                    time.sleep(2)

        thread = threading.Thread(target=serve)
        thread.start()
        reason = "something else listens there" if answer else "no answer"
        with pytest.raises(ResourceError, match=rf"no Ray cluster answers there \({reason}\)"):
            entry.check_address(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_a_real_cluster_is_known_by_its_first_bytes(ray_address: str) -> None:
    entry.check_address(ray_address)


@pytest.mark.parametrize(("version", "tried"), [("2.60.0", True), ("2.58.0", False), ("2.61.0", False), ("3.0.0.dev0", False)])
def test_a_ray_that_was_not_tried_without_its_services_starts_with_them(version: str, tried: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray._private.node import Node

    whole = Node.start_monitor
    monkeypatch.setattr(ray, "__version__", version)
    with runner_ray._without_services():
        assert (Node.start_monitor is not whole) == tried
    assert Node.start_monitor is whole


def test_attributes_of_ray_that_moved_are_left_alone() -> None:
    from ray._private.node import Node

    whole = Node.start_monitor
    with runner_ray._replaced(Node, start_monitor=None, start_something_else=None):
        assert Node.start_monitor is whole
