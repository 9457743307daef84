"""Folders are committed in threads of their own, while what follows is written: order, failures, and what is told."""

from __future__ import annotations

import errno
import functools
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from clray.errors import OutputError
from clray.store.staging import LocalStaging
from tests.core.tiny import OneTrial, prepare, tiny

WAIT = 60.0
Hook = Callable[[str, str], None]


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Calls a function with (trial id, folder) before a step of every commit."""

    def hook(step: str, call: Hook, after_file: str = "") -> None:
        own = getattr(LocalStaging, step)

        def passing(self: Any, *args: Any) -> Any:
            *_, trial_id, folder = self._final.split("/")
            if not after_file or after_file == args[0]:
                call(trial_id, folder)
            return own(self, *args)

        monkeypatch.setattr(LocalStaging, step, passing)

    return hook


def folders(trial: OneTrial) -> list[str]:
    return sorted(path.name for path in trial.folder.iterdir() if path.is_dir() and path.name != "attempts")


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_files_of_a_task_are_written_while_the_one_before_waits_for_the_disk(tmp_path: Path, hooked: Any) -> None:
    written, waited = threading.Event(), []

    def sync(_: str, folder: str) -> None:
        if folder == "task_000":
            waited.append(written.wait(WAIT))

    hooked("file_done", lambda _, folder: written.set() if folder == "task_001" else None, after_file="state.msgpack")
    hooked("_sync_staging", sync)
    (trial,) = prepare(tiny(), folder=tmp_path / "sweep")
    assert trial.run()["status"] == "done"
    assert waited == [True]


def test_a_task_is_never_visible_before_the_one_that_was_trained_before_it(tmp_path: Path, hooked: Any) -> None:
    seen: list[str] = []

    def slowly(_: str, folder: str) -> None:
        time.sleep({"initial": 0.3, "task_000": 0.2, "task_001": 0.1}.get(folder, 0))
        seen.append(folder)

    hooked("_rename", slowly)
    (trial,) = prepare(tiny(), folder=tmp_path / "sweep")
    trial.run()
    assert seen == ["initial", "task_000", "task_001", "task_002"]


def test_after_a_commit_that_failed_nothing_more_of_that_trial_is_committed(tmp_path: Path, hooked: Any) -> None:
    left, right = prepare(tiny(), tiny(seed=12), folder=tmp_path / "sweep")
    failing, next_begun = left.member.folders.trial_id, threading.Event()

    def sync(trial_id: str, folder: str) -> None:
        if (trial_id, folder) == (failing, "task_001"):
            assert next_begun.wait(WAIT)
            no_space()

    hooked("file_done", lambda trial_id, folder: next_begun.set() if (trial_id, folder) == (failing, "task_002") else None)
    hooked("_sync_staging", sync)
    outcome, other = left.pack.run()
    assert isinstance(outcome, OutputError)
    assert "Free some space" in str(outcome)
    assert folders(left) == ["initial", "task_000"]
    assert isinstance(other, Mapping)
    assert other["status"] == "done"
    assert folders(right) == ["initial", "task_000", "task_001", "task_002"]


def test_what_was_written_whole_is_committed_where_the_next_task_cannot_be_written(tmp_path: Path, hooked: Any) -> None:
    trials = prepare(*(tiny(seed=seed) for seed in range(3)), folder=tmp_path / "sweep")
    member = trials[0].member
    failing, others = member.folders.trial_id, threading.Barrier(3)

    def write(trial_id: str, folder: str) -> None:
        if trial_id == failing and folder == "task_000":
            others.wait(WAIT)  # so that its commit has to wait until one of the others is done
        if trial_id == failing and folder == "task_001":
            no_space()

    def sync(trial_id: str, folder: str) -> None:
        if trial_id != failing and folder == "task_000":
            others.wait(WAIT)
            deadline = time.monotonic() + WAIT
            while not member.failed and time.monotonic() < deadline:
                time.sleep(0.01)

    hooked("file_done", write, after_file="state.msgpack")
    hooked("_sync_staging", sync)
    outcome, *_ = trials[0].pack.run()
    assert isinstance(outcome, OSError)
    assert folders(trials[0]) == ["initial", "task_000"]
    assert folders(trials[1]) == folders(trials[2]) == ["initial", "task_000", "task_001", "task_002"]


def test_a_slow_listener_keeps_no_commit_waiting(tmp_path: Path) -> None:
    trials = prepare(*(tiny(seed=seed) for seed in range(6)), folder=tmp_path / "sweep")
    all_there: list[bool] = []

    def listen(event: Mapping[str, Any]) -> None:
        if event["task"] == 2 and not all_there:
            deadline = time.monotonic() + WAIT / 4
            while not (there := all("task_002" in folders(trial) for trial in trials)) and time.monotonic() < deadline:
                time.sleep(0.01)
            all_there.append(there)

    for trial in trials:
        trial.member.report = listen
    trials[0].pack.run()
    assert all_there == [True]


def test_listeners_hear_one_trial_at_a_time_and_its_tasks_in_order(tmp_path: Path) -> None:
    talking, together = threading.Lock(), []
    heard: dict[int, list[int]] = {}

    def listen(number: int, event: Mapping[str, Any]) -> None:
        alone = talking.acquire(blocking=False)
        together.append(not alone)
        heard.setdefault(number, []).append(event["task"])
        time.sleep(0.05)
        if alone:
            talking.release()

    trials = prepare(*(tiny(seed=seed) for seed in range(4)), folder=tmp_path / "sweep")
    for number, trial in enumerate(trials):
        trial.member.report = functools.partial(listen, number)
    trials[0].pack.run()
    assert together == [False] * 12
    assert heard == {number: [0, 1, 2] for number in range(4)}
