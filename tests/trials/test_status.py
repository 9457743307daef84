"""What became of each trial, from its files alone."""

from __future__ import annotations

import datetime
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clray.errors import OutputError
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.store.lease import STALE_SECONDS, Holder, this_machine
from clray.trials.show_status import print_status
from clray.trials.status import TrialStatus, is_alive, read_status
from clray.trials.table import TrialsTable, row_of

LAYOUT = SweepLayout()
TRIAL = LAYOUT.trial("t_1")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """An empty sweep's folder."""
    return Storage.of(tmp_path)


def ago(seconds: float) -> str:
    """A time in UTC."""
    return (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)).isoformat()


def write(storage: Storage, path: str, **content: Any) -> None:
    """A JSON file."""
    storage.replace_bytes(path, json.dumps(content).encode())


def hold(storage: Storage, pid: int, machine: str | None = None, seconds: float = 1.0, **more: Any) -> None:
    """A driver's lease, renewed so many seconds ago."""
    machine = this_machine() if machine is None else machine
    holder = Holder(1, "n", socket.gethostname(), pid, machine, start=ago(99), renewed=ago(seconds), **more)
    storage.replace_bytes(LAYOUT.lease(1), holder.to_bytes())


@pytest.fixture(scope="module")
def dead_pid() -> int:
    """Of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_trial_without_files_is_pending(storage: Storage) -> None:
    assert read_status(storage, TRIAL, driver_alive=True) == TrialStatus("pending")


@pytest.mark.parametrize(("alive", "status"), [(True, "running"), (False, "interrupted")])
def test_a_running_attempt_is_interrupted_once_its_driver_is_gone(storage: Storage, alive: bool, status: str) -> None:
    write(storage, TRIAL.attempt(1), outcome="failed", cause="system", error="gone")
    write(storage, TRIAL.attempt(2), outcome="running")
    found = read_status(storage, TRIAL, driver_alive=alive)
    assert (found.status, found.attempts, found.error) == (status, 2, "")


def test_commits_are_counted_and_the_newest_one_dated(storage: Storage) -> None:
    write(storage, TRIAL.attempt(1), outcome="running")
    for folder, seconds in (("initial", 300), ("task_000", 200), ("task_001", 100)):
        write(storage, TRIAL.commit(folder), time=ago(seconds))
    storage.replace_bytes(TRIAL.file("task_002", "metrics.parquet"), b"not committed")
    found = read_status(storage, TRIAL, driver_alive=True)
    assert found.tasks == 2
    assert found.last_commit == pytest.approx(100, abs=20)


def test_a_failure_keeps_its_cause_and_message(storage: Storage) -> None:
    write(storage, TRIAL.attempt(1), outcome="failed", cause="program", error="ValueError: no")
    found = read_status(storage, TRIAL, driver_alive=False)
    assert (found.status, found.cause, found.error) == ("failed", "program", "ValueError: no")


@pytest.mark.parametrize("status", ["done", "diverged"])
def test_a_result_is_the_last_word(storage: Storage, status: str) -> None:
    write(storage, TRIAL.attempt(1), outcome="running")
    write(storage, TRIAL.result, status=status, n_tasks=3, attempts=1)
    assert read_status(storage, TRIAL, driver_alive=True).status == status
    assert read_status(storage, TRIAL, driver_alive=False, commits=False).tasks == 3


@pytest.mark.parametrize(
    "content", [{}, {"status": "done"}, {"status": 3, "n_tasks": 1, "attempts": 1}, {"status": "done", "n_tasks": "1", "attempts": 1}]
)
def test_a_result_that_says_nothing_is_damaged(storage: Storage, content: dict[str, Any]) -> None:
    write(storage, TRIAL.result, **content)
    found = read_status(storage, TRIAL, driver_alive=False, commits=False)
    assert found.status == "interrupted"  # runs again
    assert "RESULT.json is damaged" in found.error


def test_a_trial_whose_result_was_lost_runs_again(storage: Storage) -> None:
    write(storage, TRIAL.attempt(1), outcome="done")
    assert read_status(storage, TRIAL, driver_alive=True).status == "interrupted"


def test_a_driver_is_alive_while_it_renews_its_lease(storage: Storage, dead_pid: int) -> None:
    assert not is_alive(storage, LAYOUT)
    hold(storage, os.getpid())
    assert is_alive(storage, LAYOUT)
    hold(storage, os.getpid(), seconds=STALE_SECONDS + 1)
    assert not is_alive(storage, LAYOUT)
    hold(storage, dead_pid)
    assert not is_alive(storage, LAYOUT)  # killed on this machine: no need to wait for the lease
    hold(storage, dead_pid, machine="another one")
    assert is_alive(storage, LAYOUT)  # its process ids say nothing here
    hold(storage, os.getpid(), born=1)
    assert not is_alive(storage, LAYOUT)  # the number belongs to a later process by now
    hold(storage, os.getpid(), released=True)
    assert not is_alive(storage, LAYOUT)
    storage.replace_bytes(LAYOUT.lease(2), b"{}")
    assert not is_alive(storage, LAYOUT)


def test_the_printed_table_has_a_line_a_trial_and_counts(storage: Storage, dead_pid: int, capsys: pytest.CaptureFixture[str]) -> None:
    table = TrialsTable(storage, LAYOUT)
    for number in range(4):
        table.rows[f"t_{number}"] = row_of(f"t_{number}", {"model.hidden": [number, 8]}, TrialStatus("pending"))
    table.write()
    failed = LAYOUT.trial("t_1")
    write(storage, failed.attempt(1), outcome="failed", cause="program", error="ValueError: shape [/4, 3]", host="far", node="n1")
    storage.replace_bytes(failed.log, "".join(f"line {number}\n" for number in range(7)).encode())
    storage.replace_bytes(failed.traceback, b"Traceback ...")
    write(storage, LAYOUT.trial("t_2").result, status="done", n_tasks=5, attempts=2)
    write(storage, LAYOUT.trial("t_3").attempt(1), outcome="running")
    write(storage, LAYOUT.trial("t_old").result, status="done", n_tasks=1, attempts=1)
    hold(storage, dead_pid)
    print_status(storage.root)
    out = capsys.readouterr().out
    table_of_trials, failure, *_, counts = out.strip().split("\n\n")
    lines = {line.split()[0]: line.split(None, 1)[1] for line in table_of_trials.splitlines()}
    assert lines["t_0"].split() == ["[0,8]", "pending", "0", "0", "-"]
    assert lines["t_1"].split(None, 5) == ["[1,8]", "failed", "0", "1", "-", "program: ValueError: shape [/4, 3]"]
    assert lines["t_2"].split() == ["[2,8]", "done", "0", "2", "-"]
    assert lines["t_3"].split() == ["[3,8]", "interrupted", "0", "1", "-"]
    assert lines["t_old"].split() == ["done", "0", "1", "-"]  # in the folder, though no sweep asks for it any more
    assert failure.splitlines() == [
        "t_1 failed (program) in attempt 1 on far (node n1): ValueError: shape [/4, 3]",
        *(f"  line {number}" for number in range(2, 7)),
        f"  whole traceback: {storage.root}/trials/t_1/attempts/traceback.txt",
    ]
    assert counts.splitlines()[-1] == "2 done, 1 pending, 1 failed, 1 interrupted; driver gone, last seen 1 s ago"
    assert "run again with --retry-failed" in counts
    hold(storage, os.getpid())
    print_status(storage.root)
    out = capsys.readouterr().out
    assert "running" in out
    assert out.splitlines()[-1].endswith("driver seen 1 s ago")


def test_a_folder_without_a_sweep_is_said_to_be_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not" / "there"):
        with pytest.raises(OutputError, match="no sweep here"):
            print_status(str(folder))
