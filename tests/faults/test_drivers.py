"""Drivers that are interrupted, killed, frozen or doubled: the same command finishes the sweep, and nobody else's work is touched."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clray.process_tree import command_of, descendants
from clray.store.filesystem import Storage
from clray.store.lease import read_holder
from tests.faults.scene import WITH_QUICK_LEASES, Scene, gone, sweep_of, until
from tests.loggers.backends import calls_in

KILLS = 6


def named(name: str, family: dict[int, int]) -> dict[int, int]:
    """Those of some processes whose program's name holds this."""
    return {pid: born for pid, born in family.items() if name in command_of(pid).partition(" ")[0]}


def contents(s: Scene) -> dict[Path, bytes]:
    """Every file of a sweep's folder, logs and records included."""
    return {path: path.read_bytes() for path in s.root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("moment", ["training", "connecting"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_driver_ends_in_time_and_leaves_no_process(scene: Callable[..., Scene], number: int, code: int, moment: str) -> None:
    s = scene(0, 1)
    for seed in (0, 1):
        s.order(seed, "train:1", "sleep 600")
    driver = s.start()
    if moment == "training":
        s.wait_for(0, "train:1")
        s.wait_for(1, "train:1")
    else:
        until(lambda: named("raylet", descendants(driver.pid)), 60, "a raylet")  # started, which is long before connected
    family = descendants(driver.pid)
    assert named("raylet", family)
    assert named("gcs_server", family)
    driver.send_signal(number)
    ended = s.end(driver, 15)
    assert ended.seconds < 10
    assert ended.code == code, ended.err
    assert "To go on: clray sweep s.yaml -o out" in ended.err
    until(lambda: gone(family), 3, "processes of the driver")
    if moment == "training":
        assert f"{s.ids[0]}  0     interrupted" in s.status()
        assert s.status().splitlines()[-1].endswith("; no driver")
    for seed in (0, 1):
        s.order(seed, "train:1")
    again = s.run("--local")
    assert again.code == 0, again.err
    s.assert_undisturbed({(0, 1): 2, (1, 1): 2} if moment == "training" else {})


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
    """Moments are counted, not timed: before and after each step of a commit and each write of another file, wherever it is."""
    s = scene(0, 1, 2)
    generator = random.Random(0)
    # An undisturbed run passes more moments than these together, so it cannot be done before the last of them.
    moments = sorted(generator.sample(range(1, 100), KILLS), reverse=True)
    s.order(None, "passing", *map(str, moments))
    for number in moments:
        driver = s.start("--local")
        driver.communicate()
        assert driver.returncode == -signal.SIGKILL
        assert s.carried_out()[-1][1:3] == ["passing", str(number)]
    done = s.run("--local")
    assert done.code == 0, done.err
    s.assert_undisturbed()


def test_a_second_driver_is_refused_and_with_force_the_first_one_stops(scene: Callable[..., Scene]) -> None:
    s = scene(0, 1)
    for seed in (0, 1):  # no file changes by itself any more
        s.order(seed, "train:1", "sleep 600")
    first = s.start()
    for seed in (0, 1):
        s.wait_for(seed, "train:1")
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
    s.assert_undisturbed({(0, 1): 2, (1, 1): 2})


@pytest.mark.parametrize("moment", ["train:1", "before:_write_commit:task_001", "before:_rename:task_001"])
def test_a_frozen_driver_that_wakes_up_after_it_was_replaced_commits_nothing(scene: Callable[..., Scene], moment: str) -> None:
    """Also between its look at the lease and the renaming of its folder: then the rules of a commit hold it back."""
    s = scene(0)
    s.order(0, moment, "stop")
    frozen = s.start("--local")
    s.wait_for(0, moment)
    forced = s.run("--local", "--force")
    assert forced.code == 0, forced.err
    before = contents(s)
    frozen.send_signal(signal.SIGCONT)
    ended = s.end(frozen, 60)
    assert ended.code == 1, ended.err
    assert "was taken over by process" in ended.err
    assert contents(s) == before
    s.assert_undisturbed(orphan="001")
    # It notices at the latest when it would commit, and trains no further than the task that it had begun by then.
    assert [task for _, task, attempt in s.trainings() if attempt.startswith("001")] in (["0", "1"], ["0", "1", "2"])


def test_a_worker_whose_driver_was_replaced_writes_neither_results_nor_logs(cluster: Any, scene: Callable[..., Scene]) -> None:
    """Driver and worker freeze, the worker between a commit and its loggers; both wake up when the sweep is done."""
    s = scene(0)
    sweep = sweep_of([0])
    sweep["experiment"]["loggers"] = [{"name": "tests.loggers.backends:Lines", "folder": str(s.folder)}, "tensorboard"]
    s.write(sweep)
    s.beside = frozenset({".logged.json"})
    s.order(0, "log:0", "stop")
    driver = s.start("--address", cluster.address, argv=WITH_QUICK_LEASES)
    worker = int(s.wait_for(0, "log:0")[-2])
    os.kill(driver.pid, signal.SIGSTOP)
    until(lambda: (holder := read_holder(Storage.of(s.root))) is not None and holder.age > 1, 10, "a stale lease")
    taker = s.run("--local", argv=WITH_QUICK_LEASES)
    assert taker.code == 0, taker.err
    lines = s.folder / f"{s.ids[0]}.jsonl"
    before, told = contents(s), calls_in(lines)
    assert [value for call, value in told if call == "log"] == [0, 1, 2]
    assert [path for path in before if "tensorboard" in path.parts] != []
    os.kill(worker, signal.SIGCONT)
    until(lambda: ["1", "failed", "lease"] in s.ended_attempts(0), 60, "the end of the first attempt")
    driver.send_signal(signal.SIGCONT)
    ended = s.end(driver, 60)
    assert ended.code == 1, ended.err
    assert "was taken over by process" in ended.err
    assert calls_in(lines) == told
    assert contents(s) == before
    s.assert_undisturbed(orphan="001")
