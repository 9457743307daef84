"""Sweeps that change under their own folder, folders that cannot be written or go away, and results of another version or experiment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import clray
from tests.faults.scene import CLRAY, Scene, sweep_of, until

OLD = [sys.executable, "-c", "import clray; clray.__version__ = '0.0.9'; from clray.cli import main; main()"]
"""An earlier version of clray."""


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that is mounted read-only, which holds back root as well."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a read-only file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_grid_that_was_edited_reuses_what_is_done_and_keeps_what_is_gone(scene: Callable[..., Scene]) -> None:
    s = scene(0, 1)
    assert s.run("--local").code == 0
    files = {path: path.read_bytes() for path in (s.root / "trials").rglob("*") if path.is_file()}
    s.write(sweep_of([1, 2]))
    again = s.run("--local")
    assert again.code == 0
    assert "2 trials: 1 to run, 1 finished before" in again.err
    assert "1 more trial with other settings in the same folder, kept" in again.out
    assert {path: path.read_bytes() for path in files} == files
    assert len(clray.open(s.root).trials) == 3
    s.assert_undisturbed({})


def test_an_edited_config_stops_its_trial_and_no_other(scene: Callable[..., Scene]) -> None:
    s = scene(0, 1)
    s.order(0, "train:1", "kill")
    first = s.start("--local")
    first.communicate()
    config = s.trial(0) / "config.yaml"
    told = config.read_text()
    config.write_text(told.replace("learning_rate: 0.05", "learning_rate: 0.5"))
    assert config.read_text() != told
    committed = {path: path.read_bytes() for path in s.trial(0).glob("*/COMMIT.json")}
    again = s.run("--local")
    assert again.code == 1
    assert f"{s.ids[0]}/config.yaml was edited or is damaged: it does not say what this trial's id stands for" in s.attempts(0)[-1]["error"]
    assert s.rows()[1]["status"] == "done"
    assert {path: path.read_bytes() for path in s.trial(0).glob("*/COMMIT.json")} == committed
    config.write_text(told)
    assert s.run("--local").code == 0
    s.assert_undisturbed({(0, 1): 2})


def test_folders_of_another_experiment_are_refused(scene: Callable[..., Scene]) -> None:
    """Copied by hand under another trial's name."""
    s = scene(0, 1)
    assert s.run("--local").code == 0
    right = s.folder / "right"
    shutil.move(s.trial(1), right)
    shutil.copytree(s.trial(0), s.trial(1))
    assert s.run("--local").code == 1
    assert "config.yaml was edited" in s.attempts(1)[-1]["error"]
    (s.trial(1) / "config.yaml").unlink()
    for name in ("classes.npy", "eval_samples.npy"):
        shutil.copyfile(right / name, s.trial(1) / name)
    assert s.run("--local").code == 1
    assert "was written for another experiment (config " in s.attempts(1)[-1]["error"]
    shutil.rmtree(s.trial(1))
    shutil.move(right, s.trial(1))
    assert s.run("--local").code == 0
    s.assert_undisturbed({})


def test_a_trial_that_another_version_began_is_refused_before_anything_runs(scene: Callable[..., Scene]) -> None:
    s = scene(0, 1)
    s.order(1, "train:1", "kill")
    first = s.start("--local", argv=OLD)
    first.communicate()
    assert (s.trial(0) / "RESULT.json").exists()
    before = {path: path.read_bytes() for path in s.root.rglob("*") if path.is_file() and ".lease" not in path.parts}
    refused = s.run("--local")
    assert refused.code == 2
    assert f"{s.ids[1]} was begun by clray 0.0.9, and this is {clray.__version__}: one trial never holds results of two" in refused.err
    assert {path: path.read_bytes() for path in before} == before
    assert s.run("--local", argv=OLD).code == 0
    s.assert_undisturbed({(1, 1): 2})
    s.write(sweep_of([0, 1, 2]))
    grown = s.run("--local")
    assert grown.code == 0
    assert "3 trials: 1 to run, 2 finished before (2 of them by clray 0.0.9)" in grown.err
    assert [row["clray"] for row in s.rows().values()] == ["0.0.9", "0.0.9", clray.__version__]
    assert {json.loads(path.read_text())["clray"] for path in s.trial(1).glob("*/COMMIT.json")} == {"0.0.9"}
    s.assert_undisturbed({(1, 1): 2})


def test_an_output_that_cannot_be_written_is_one_message_before_anything_runs(scene: Callable[..., Scene], read_only: Path) -> None:
    s = scene(0)
    for output in (str(read_only), "/proc/results"):
        for command in (["sweep"], ["sweep", "--local"], ["run"]):
            given = [CLRAY, *command, "s.yaml", "-o", output]
            done = subprocess.run(given, cwd=s.folder, env=os.environ | {"PYTHONPATH": str(Path.cwd())}, capture_output=True, text=True)
            assert done.returncode == 2, done.stderr
            lines = [line for line in done.stderr.splitlines() if "is a sweep: running its base" not in line]
            assert len(lines) == 1
            assert lines[0].startswith(f"clray: --output: cannot write to {output}/s")
    assert list(read_only.iterdir()) == []


@pytest.mark.parametrize("local", [True, False], ids=["in one process", "on Ray"])
def test_a_folder_removed_while_it_is_written_ends_the_sweep_with_one_message(scene: Callable[..., Scene], local: bool) -> None:
    """On Ray also between a trial's result and the record of its attempt: what is written late does not bring the folder back."""
    s = scene(0, 1)
    s.order(0, "train:1", "sleep 8" if local else "sleep 600")
    s.order(1, "end", "stop")
    driver = s.start(*(["--local"] if local else []))
    s.wait_for(0, "train:1")
    worker = 0 if local else int(s.wait_for(1, "end")[-2])
    s.root.rename(s.folder / "away")  # in one step: while it is removed file by file, new ones come
    if worker:
        assert (s.folder / "away" / "trials" / s.ids[1] / "RESULT.json").exists()
        os.kill(worker, signal.SIGCONT)
        until(lambda: s.ended_attempts(1), 30, "the end of the other trial")
    ended = s.end(driver, 60)
    assert ended.code == 1, ended.err
    assert "was removed or replaced while the sweep ran: its lease is gone" in ended.err
    assert [path for path in s.root.rglob("*") if path.is_file()] == []
    (s.orders / "trained.log").unlink()
    s.order(1, "end")
    assert s.run("--local").code == 0
    s.assert_undisturbed({})
