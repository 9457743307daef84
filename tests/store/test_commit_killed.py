"""A writer that dies by SIGKILL leaves the whole folder or nothing, and the next attempt gets through."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from clray.errors import AlreadyCommittedError
from clray.store.filesystem import Storage
from clray.store.layout import TrialLayout
from clray.store.reader import committed_folders, read_commit
from clray.store.upkeep import discard_uncommitted

PROGRAM = Path(__file__).with_name("killed_writer.py")
ROOT = Path(__file__).parents[2]

LOCAL_STEPS = {
    "after:open": False,
    "block": False,
    "after:file_done": False,
    "before:publish": False,
    "before:_write_commit": False,
    "after:_write_commit": False,
    "after:_sync_staging": False,
    "after:_rename": True,
}
OBJECT_STEPS = {
    "after:open": False,
    "block": False,
    "before:_put_file": False,
    "after:_put_file": False,
    "before:_check_put": False,
    "before:_create_commit": False,
    "after:_create_commit": True,
    "before:_remove_local": True,
}


def run_killed(base: str, steps: Iterable[str], temporary: Path) -> dict[str, Storage]:
    """One killed writer for each step, each on a storage of its own."""
    urls = {step: f"{base}/{number}" for number, step in enumerate(steps)}
    arguments = [argument for step, url in urls.items() for argument in (url, step)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], env=environment, timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {step: Storage.of(url) for step, url in urls.items()}


@pytest.fixture(scope="module")
def killed_on_disk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Storage]:
    folder = tmp_path_factory.mktemp("killed")
    return run_killed(str(folder / "results"), LOCAL_STEPS, folder)


@pytest.fixture(scope="module")
def killed_on_s3(s3_server: object, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Storage]:
    return run_killed("s3://results/killed", OBJECT_STEPS, tmp_path_factory.mktemp("killed"))


def check_and_rerun(storage: Storage, trial: TrialLayout, committed: bool, write: Callable, value_of: Callable) -> None:
    assert committed_folders(storage, trial) == (["task_000"] if committed else [])
    if committed:
        assert value_of(storage, trial, "task_000") == 1.0
        discard_uncommitted(storage, trial)
        with pytest.raises(AlreadyCommittedError):
            write(storage, trial, "task_000", "002-next", 2.0)
        assert value_of(storage, trial, "task_000") == 1.0
    else:
        assert read_commit(storage, trial, "task_000") is None
        discard_uncommitted(storage, trial)
        write(storage, trial, "task_000", "002-next", 2.0)
        assert value_of(storage, trial, "task_000") == 2.0
    discard_uncommitted(storage, trial)
    files = storage.list_files(trial.base)
    commit = read_commit(storage, trial, "task_000")
    assert commit is not None
    assert sorted(files) == sorted([f"task_000/{entry.key}" for entry in commit.files.values()] + ["task_000/COMMIT.json"])
    assert storage.list_names(trial.base) == ["task_000"]


@pytest.mark.parametrize(("step", "committed"), LOCAL_STEPS.items())
def test_killed_on_local_disk(
    killed_on_disk: dict[str, Storage], trial: TrialLayout, write: Callable, value_of: Callable, step: str, committed: bool
) -> None:
    check_and_rerun(killed_on_disk[step], trial, committed, write, value_of)


@pytest.mark.parametrize(("step", "committed"), OBJECT_STEPS.items())
def test_killed_on_object_store(
    killed_on_s3: dict[str, Storage], trial: TrialLayout, write: Callable, value_of: Callable, step: str, committed: bool
) -> None:
    check_and_rerun(killed_on_s3[step], trial, committed, write, value_of)
