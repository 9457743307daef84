"""The records of attempts: what a worker writes, what the driver writes in its place, and when a trial goes out again."""

from __future__ import annotations

import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from clray.errors import AlreadyCommittedError, LeaseLostError, OutputError
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.store.lease import Lease
from clray.trials.attempt import Attempt, JobTrial, Outcome, cause_of, close_attempt, close_interrupted
from clray.trials.device_memory import explain, is_out_of_memory
from clray.trials.job import Job, run_job
from tests.trials.sweeps import experiment

TRIAL = SweepLayout().trial("t_1")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """An empty sweep's folder."""
    return Storage.of(tmp_path)


def trial(attempt: int = 1, losses: int = 0) -> JobTrial:
    """An attempt at the small experiment."""
    return JobTrial("t_1", experiment(name="small"), attempt, losses)


def record(storage: Storage, attempt: int) -> dict[str, Any]:
    """What the record of an attempt says."""
    return json.loads(storage.read_bytes(TRIAL.attempt(attempt)))


def lost(attempt: int) -> Outcome:
    """A worker that died."""
    return Outcome("t_1", "failed", "system", "WorkerCrashedError: gone", attempt, "WorkerCrashedError: gone\nall of it")


def test_the_driver_closes_the_record_of_a_lost_worker_and_counts(storage: Storage) -> None:
    Attempt(storage, trial(), node="n1").begin()
    again = close_attempt(storage, trial(), lost(1))
    assert again == trial(attempt=2, losses=1)
    first = record(storage, 1)
    assert {key: first[key] for key in ("outcome", "cause", "error", "losses", "node")} == {
        "outcome": "failed",
        "cause": "system",
        "error": "WorkerCrashedError: gone",
        "losses": 1,
        "node": "n1",
    }
    assert storage.read_bytes(TRIAL.traceback) == b"WorkerCrashedError: gone\nall of it"
    assert close_attempt(storage, trial(2, 1), lost(2)) == trial(attempt=3, losses=2)
    assert close_attempt(storage, trial(3, 2), lost(3)) is None  # though this worker never wrote a record
    assert record(storage, 3)["losses"] == 3


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("x"), "program"),
        (OutputError("x"), "storage"),
        (OSError("x"), "storage"),
        (AlreadyCommittedError("x"), "system"),
        (LeaseLostError("x"), "lease"),
    ],
)
def test_only_what_the_system_lost_goes_out_again(storage: Storage, error: Exception, cause: str) -> None:
    assert cause_of(error) == cause
    again = close_attempt(storage, trial(), Outcome("t_1", "failed", cause, "x"))
    assert (again is not None) == (cause == "system")


def test_an_attempt_that_its_driver_left_is_closed_by_the_next_one(storage: Storage) -> None:
    Attempt(storage, trial()).begin()
    close_interrupted(storage, TRIAL, 1)
    assert record(storage, 1)["outcome"] == "interrupted"
    assert record(storage, 1)["pid"] > 0


def test_the_log_is_on_disk_before_the_attempt_ends(storage: Storage) -> None:
    attempt = Attempt(storage, trial())
    attempt.begin()
    with attempt.captured_log():
        logging.getLogger("clray.trial.t_1").info("so far")
        logging.getLogger("clray.trial.t_2").info("of somebody else")
        attempt.keep_log()
        assert storage.read_bytes(TRIAL.log).decode().endswith(" INFO so far\n")
        attempt.end({"status": "done"})
    assert storage.read_bytes(TRIAL.log).decode().count("so far") == 1


def test_lines_that_are_logged_while_the_log_is_kept_are_there_once(storage: Storage) -> None:
    attempt = Attempt(storage, trial())
    attempt.begin()
    logger = logging.getLogger("clray.trial.t_1")
    with attempt.captured_log(), ThreadPoolExecutor(4) as pool:
        talking = [pool.submit(lambda own=own: [logger.info("line %d", own + i) for i in range(500)]) for own in range(0, 2000, 500)]
        while not all(each.done() for each in talking):
            attempt.keep_log()
        attempt.end({"status": "done"})
    logged = [int(line.rpartition(" ")[2]) for line in storage.read_bytes(TRIAL.log).decode().splitlines()]
    assert sorted(logged) == list(range(2000))


def test_a_job_under_a_lease_that_was_taken_over_writes_nothing(storage: Storage) -> None:
    ticket = Lease.claim(storage).ticket
    Lease.claim(storage, force=True)
    (outcome,) = run_job(Job(storage.root, (trial(),), ticket))
    assert (outcome.status, outcome.cause) == ("failed", "lease")
    assert storage.list_names("trials") == []


def test_a_device_out_of_memory_is_explained_and_other_errors_are_not() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError) as found:
        jnp.zeros(2**46, jnp.uint8).block_until_ready()
    assert is_out_of_memory(found.value)
    explained = explain(found.value, [trial(), trial()])
    assert str(explained).startswith("out of memory on the device (cpu")
    assert ": 2 trials in one program need about " in str(explained)
    assert "MiB by estimate" in str(explained) or "KiB by estimate" in str(explained)
    assert explained.__cause__ is found.value
    assert not is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))


def test_an_attempt_whose_trial_was_taken_over_leaves_log_and_records_alone(storage: Storage) -> None:
    def taken() -> None:
        raise LeaseLostError("taken over")

    attempt = Attempt(storage, trial(), check=taken)
    attempt.begin()
    before = storage.list_files("")
    with attempt.captured_log():
        logging.getLogger("clray.trial.t_1").warning("late")
        attempt.keep_log()
        attempt.interrupted()
    assert attempt.end({"status": "done"}).status == "done"  # its result was there before
    assert storage.list_files("") == before
    assert record(storage, 1)["outcome"] == "running"


def test_what_an_attempt_writes_late_does_not_bring_a_removed_folder_back(storage: Storage, tmp_path: Path) -> None:
    attempt = Attempt(storage, trial())
    attempt.begin()
    shutil.rmtree(tmp_path / "trials")
    with attempt.captured_log():
        logging.getLogger("clray.trial.t_1").warning("late")
        attempt.keep_log()
        attempt.interrupted()
    attempt.end({"status": "done"})
    assert list(tmp_path.iterdir()) == []
