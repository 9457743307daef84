"""A disk that is really full: the trial that meets it fails and says so, everything else goes on, and later it all fits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clray.errors import OutputError
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.store.reader import committed_folders
from clray.trials.status import TrialStatus
from clray.trials.table import TrialsTable, read_rows, row_of
from tests.core.tiny import arrays_of, assert_same_bits
from tests.faults.small_disk import SmallDisk, mounted
from tests.trials.sweeps import experiment, sweep
from tests.trials.sweeps import write as write_file

pytestmark = pytest.mark.faults
REPOSITORY = Path(__file__).parents[2]
TRIAL = SweepLayout().trial("t_0123456789")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with mounted(tmp_path / "disk", 1400) as small:
        yield small


def clray(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    program = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from clray.cli import main; main()"
    return subprocess.run([sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def nonces(folder: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["nonce"] for path in folder.glob("[!.]*/COMMIT.json")}


def visible(folder: Path) -> dict[str, Any]:
    return {name: array for name, array in arrays_of(folder).items() if not name.startswith(".")}


def test_a_full_disk_fails_one_trial_and_after_space_is_freed_the_same_command_finishes(disk: SmallDisk, tmp_path: Path) -> None:
    """A task of the wide network takes 630 kB with its state, the whole trial of the narrow one 230 kB."""
    small = sweep(base=experiment(sequence={"n_tasks": 3}), grid={"model.hidden": [[512], [8]]})
    write_file(tmp_path / "small.yaml", small)
    command = ("sweep", "small.yaml", "--local", "-o")
    assert clray(*command, "undisturbed", folder=tmp_path).returncode == 0

    done = clray(*command, "disk/results", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    root = disk.path / "results" / "small"
    failure = re.search(r"cannot write (\S+): no space left \((\d+) bytes free", done.stderr.replace("\n", " "))
    assert failure, done.stderr
    assert failure.group(1).startswith(("disk/results/small/trials/t_", str(root / "trials")))
    assert int(failure.group(2)) < 600_000
    trials = {json.loads(path.read_text())["status"]: path.parent for path in (root / "trials").glob("*/RESULT.json")}
    assert list(trials) == ["done"]
    (failed,) = (path for path in (root / "trials").iterdir() if path != trials["done"])
    before = nonces(failed)
    assert sorted(before) == ["initial", "task_000"]
    assert clray("status", str(root), "--verify", folder=tmp_path).returncode == 0  # what is committed is whole
    assert [path.name for path in failed.iterdir() if ".tmp-" in path.name] == []

    disk.resize(20_000)
    done = clray(*command, "disk/results", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    after = nonces(failed)
    assert {name: after[name] for name in before} == before
    for path in (root / "trials").iterdir():
        assert_same_bits(visible(path), visible(tmp_path / "undisturbed" / "small" / "trials" / path.name))


@pytest.mark.parametrize("leave", [0, 4, 8, 12, 16, 24, 32])
def test_wherever_space_ends_a_folder_is_committed_whole_or_not_at_all(
    disk: SmallDisk, write: Callable, value_of: Callable, leave: int
) -> None:
    storage = Storage.of(disk.path / "digits")
    write(storage, TRIAL, "task_000", "001-a")
    ballast = disk.fill(leave_kilobytes=leave)
    try:
        write(storage, TRIAL, "task_001", "001-a", 2.0)
    except OutputError as error:
        assert "no space left" in str(error)
        assert "bytes free" in str(error)
        assert str(disk.path) in str(error)
        assert committed_folders(storage, TRIAL) == ["task_000"]
        assert storage.list_names(TRIAL.base) == ["task_000"]
        ballast.unlink()
        write(storage, TRIAL, "task_001", "002-b", 2.0)
    assert value_of(storage, TRIAL, "task_000") == 1.0
    assert value_of(storage, TRIAL, "task_001") == 2.0


def test_a_disk_that_is_full_before_anything_runs_is_one_message(disk: SmallDisk, tmp_path: Path) -> None:
    write_file(tmp_path / "small.yaml", sweep(grid={"seed": [1]}))
    disk.fill()
    done = clray("sweep", "small.yaml", "--local", "-o", "disk/results", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("clray: --output: cannot write")
    assert "no space left (0 bytes free" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_table_of_a_running_sweep_waits_for_space(disk: SmallDisk) -> None:
    storage = Storage.of(disk.path / "digits")
    table = TrialsTable(storage, SweepLayout())
    table.rows["t_1"] = row_of("t_1", {}, TrialStatus("pending"))
    table.write()
    ballast = disk.fill()
    table.rows["t_1"] = row_of("t_1", {}, TrialStatus("failed"))
    table.write()
    assert [row["status"] for row in read_rows(storage, SweepLayout())] == ["pending"]
    ballast.unlink()
    table.write()
    assert [row["status"] for row in read_rows(storage, SweepLayout())] == ["failed"]
    disk.fill()
    with pytest.raises(OutputError, match="no space left"):
        TrialsTable(storage, SweepLayout()).write()
