"""Drivers that are interrupted, killed, frozen or doubled: the same command finishes the sweep, and nobody else's work is touched."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from clray.process_tree import command_of, descendants
from clray.store.filesystem import Storage
from clray.store.lease import read_holder
from tests.faults.scene import Scene, gone, until


def named(name: str, family: dict[int, int]) -> dict[int, int]:
    """Those of some processes whose program's name holds this."""
    return {pid: born for pid, born in family.items() if name in command_of(pid).partition(" ")[0]}


@pytest.mark.parametrize("moment", ["training", "connecting"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_driver_ends_in_time_and_leaves_no_process(scene: Callable[..., Scene], number: int, code: int, moment: str) -> None:
    s = scene(0, 1)
    s.order(0, "train:1", "sleep 600")
    driver = s.start()
    if moment == "training":
        s.wait_for(0, "train:1")
    else:
        until(lambda: named("raylet", descendants(driver.pid)), 60, "a raylet")  # started, which is long before connected
    family = descendants(driver.pid)
    assert len(family) > 2
    driver.send_signal(number)
    ended = s.end(driver, 15)
    assert ended.seconds < 10
    assert ended.code == code, ended.err
    assert "To go on: clray sweep s.yaml -o out" in ended.err
    until(lambda: gone(family), 3, "processes of the driver")
    if moment == "training":
        assert f"{s.ids[0]}  0     interrupted" in s.status()
        assert s.status().splitlines()[-1].endswith("; no driver")
    s.order(0, "train:1")
    again = s.run("--local")
    assert again.code == 0, again.err
    s.assert_undisturbed({(0, 1): 2} if moment == "training" else {})


def test_a_driver_that_was_killed_is_taken_over_by_the_next_start(scene: Callable[..., Scene]) -> None:
    s = scene(0, 1)
    s.order(0, "train:1", "sleep 600")
    driver = s.start()
    s.wait_for(0, "train:1")
    until(lambda: (s.trial(1) / "RESULT.json").exists(), 60, "the other trial")
    workers = named("ray::work", descendants(driver.pid))
    assert workers
    driver.kill()
    driver.communicate()
    again = s.run("--local")
    assert again.code == 0, again.err
    assert "2 trials: 1 to run, 1 finished before" in again.err
    holder = read_holder(Storage.of(s.root))
    assert holder is not None
    assert (holder.epoch, holder.released) == (2, True)
    assert [record["outcome"] for record in s.attempts(0)] == ["interrupted", "done"]
    s.assert_undisturbed({(0, 1): 2})
    until(lambda: gone(workers), 10, "workers of the killed driver")


def test_a_run_killed_at_any_moment_ends_with_the_same_files(scene: Callable[..., Scene]) -> None:
    s = scene(0, 1, 2)
    moments = random.Random(0)
    log = s.orders / "trained.log"
    kills = 0
    for _ in range(20):
        before = len(s.trainings())
        driver = s.start("--local")
        until(lambda before=before, driver=driver: len(s.trainings()) > before or driver.poll() is not None, 90, "a training")  # type: ignore[misc]
        time.sleep(moments.uniform(0, 0.25))
        if driver.poll() is None:
            driver.kill()
        driver.communicate()
        kills += driver.returncode == -signal.SIGKILL
        if driver.returncode == 0:
            break
    assert driver.returncode == 0
    assert kills >= 3
    assert log.exists()
    s.assert_undisturbed()


def test_a_second_driver_is_refused_and_with_force_the_first_one_stops(scene: Callable[..., Scene]) -> None:
    s = scene(0, 1)
    s.order(0, "train:1", "sleep 600")
    first = s.start()
    s.wait_for(0, "train:1")
    files = {path: path.stat().st_mtime_ns for path in s.root.rglob("*") if path.is_file() and ".lease" not in path.parts}
    second = s.run("--local")
    assert second.code == 1
    assert f"is driven by process {first.pid} on {os.uname().nodename} since 20" in second.err
    assert "--force" in second.err
    assert {path: path.stat().st_mtime_ns for path in files} == files
    family = descendants(first.pid)
    forced = s.start("--local", "--force")
    ended = s.end(first, 60)
    assert ended.code == 1
    assert f"was taken over by process {forced.pid} on {os.uname().nodename} since 20" in ended.err
    until(lambda: gone(family), 10, "processes of the first driver")
    assert s.end(forced).code == 0
    s.assert_undisturbed({(0, 1): 2})


@pytest.mark.parametrize("moment", ["train:1", "before:_write_commit:task_001", "before:_rename:task_001"])
def test_a_frozen_driver_that_wakes_up_after_it_was_replaced_commits_nothing(scene: Callable[..., Scene], moment: str) -> None:
    """Also between its look at the lease and the renaming of its folder: then the rules of a commit hold it back."""
    s = scene(0)
    s.order(0, moment, "stop")
    frozen = s.start("--local")
    s.wait_for(0, moment)
    forced = s.run("--local", "--force")
    assert forced.code == 0, forced.err
    # A line that was under way to the log when the driver froze may still arrive.
    files = [path for path in s.root.rglob("*") if path.is_file() and path.name != "log.txt"]
    before = {path: path.read_bytes() for path in files}
    frozen.send_signal(signal.SIGCONT)
    ended = s.end(frozen, 60)
    assert ended.code == 1, ended.err
    assert "was taken over by process" in ended.err
    assert {path: path.read_bytes() for path in s.root.rglob("*") if path.is_file() and path.name != "log.txt"} == before
    s.assert_undisturbed(orphan="001")
    # It notices at the latest when it would commit, and trains no further than the task that it had begun by then.
    assert [task for _, task, attempt in s.trainings() if attempt.startswith("001")] in (["0", "1"], ["0", "1", "2"])
