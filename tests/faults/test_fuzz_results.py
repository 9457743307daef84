"""Damaged result folders through ``clray status`` and ``clray.open``: never a traceback, never a hang; an error or a marked trial."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clray
from clray.errors import UserError
from clray.trials.entry import run_sweep
from tests.faults.in_process import command, time_limit
from tests.trials.sweeps import sweep

LIMIT_SECONDS = 60
EXAMPLES = 200
QUICK = 12
STATUSES = {"done", "diverged", "running", "failed", "interrupted", "pending"}

JSON_JUNK: list[Any] = [
    None, True, 0, -1, 10**400, 1.5, "", "text", [], {}, [[]], {"a": None}, [1, 2], "../../..", "t_0", {"mean": 1}, float("nan"),
    "2026-01-01",
    {"status": "done"}, {"x": {"x": {"x": 1}}},
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real sweep of two trials, one of them interrupted after its first task."""
    root = tmp_path_factory.mktemp("finished")
    run_sweep(sweep(grid={"seed": [1, 2]}), str(root), None, None, local=True)
    trial = sorted((root / "small" / "trials").iterdir())[0]
    shutil.rmtree(trial / "task_001")
    (trial / "RESULT.json").unlink()
    return root / "small"


def change_json(generator: random.Random, path: Path) -> None:
    """Replaces, removes or adds a value somewhere in a JSON file, whether or not it has a checksum."""
    try:
        document = json.loads(path.read_text())
    except (ValueError, OSError):
        return
    table, junk = document, generator.choice(JSON_JUNK)
    while isinstance(table, dict) and table:
        key = generator.choice(sorted(table))
        if isinstance(table[key], dict) and table[key] and generator.random() < 0.7:
            table = table[key]
        else:
            if generator.random() < 0.25:
                del table[key]
            else:
                table[key] = junk
            break
    if generator.random() < 0.5 and isinstance(document, dict):
        document.pop("checksum", None)
    path.write_text(json.dumps(junk if generator.random() < 0.15 else document))


def truncate(generator: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes()[: generator.randint(0, path.stat().st_size)])


def flip(generator: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(generator.randint(1, 4)):
        if content:
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def junk(generator: random.Random, path: Path) -> None:
    path.write_bytes(generator.choice([b"", b"{", b"[" * 100_000, b"\x80\x04K\x01.", b"PAR1", b"\x93NUMPY", generator.randbytes(200)]))


def other_file(generator: random.Random, path: Path) -> None:
    shutil.copyfile(generator.choice([p for p in path.parents[1].rglob("*") if p.is_file()]), path)


def folder_instead(generator: random.Random, path: Path) -> None:
    del generator
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def link_instead(generator: random.Random, path: Path) -> None:
    path.unlink()
    path.symlink_to(generator.choice([path.name, "nowhere", "/etc/passwd", "/dev/null", "..", "/", "../../../sweep.yaml"]))


def remove(generator: random.Random, path: Path) -> None:
    del generator
    path.unlink()


FILE_DAMAGE: list[Callable[[random.Random, Path], None]] = [remove, truncate, flip, junk, other_file, folder_instead, link_instead]


def damage(generator: random.Random, root: Path) -> str:
    """Does one thing to a result folder and says what."""
    paths = sorted(path for path in root.rglob("*") if not path.is_symlink())
    files, folders = [p for p in paths if p.is_file()], [p for p in paths if p.is_dir()]
    kind = generator.random()
    if kind < 0.3:
        path = generator.choice([path for path in files if path.suffix == ".json"] or files)
        change_json(generator, path)
        return f"change_json {path.relative_to(root)}"
    if kind < 0.85 or not folders:
        path, how = generator.choice(files), generator.choice(FILE_DAMAGE)
        how(generator, path)
        return f"{how.__name__} {path.relative_to(root)}"
    path = generator.choice(folders)
    how_folder = generator.choice(["remove", "rename", "file", "loop", "copy"])
    if how_folder == "copy":
        names = ["task_002", "task_9999", "t_00", ".x", "joint", "a b", "\u202e", "-rf", "t_copy"]
        with contextlib.suppress(FileExistsError, shutil.Error):
            shutil.copytree(path, path.with_name(generator.choice(names)), symlinks=True)
        return f"copy {path.relative_to(root)}"
    if how_folder == "rename":
        target = path.with_name(generator.choice(["task_007", "x", "initial.tmp-1", "t_other", "joint"]))
        if not target.exists():
            path.rename(target)
        return f"rename {path.relative_to(root)} {target.name}"
    shutil.rmtree(path)
    if how_folder == "file":
        path.write_text("text")
    elif how_folder == "loop":
        path.symlink_to(generator.choice([".", "..", path.name, "/proc/self", "/etc"]))
    return f"{how_folder} {path.relative_to(root)}"


def look_at_everything(root: Path) -> int:
    """Calls every accessor; returns how many said that something is wrong."""
    complaints = 0

    def tried(action: Callable[[], Any]) -> Any:
        nonlocal complaints
        try:
            return action()
        except UserError as error:
            assert str(error)
            complaints += 1

    results = tried(lambda: clray.open(root))
    if results is None:
        return complaints
    repr(results)
    tried(lambda: results.trials)
    for trial_id in tried(lambda: results.trial_ids) or []:
        trial = tried(functools.partial(results.trial, trial_id))
        if trial is None:
            continue
        status = tried(lambda trial=trial: trial.status)
        assert status is None or status.status in STATUSES
        for name in ("experiment", "result", "tasks", "classes", "eval_samples"):
            tried(functools.partial(getattr, trial, name))
        for name in ("metrics", "end", "train", "expert", "accuracy", "loss", "accuracy_matrix", "__repr__"):
            tried(lambda name=name, trial=trial: getattr(trial, name)())
        for task in ("initial", 0, 1, 7):
            for name in ("representations", "weights", "to_xarray"):
                if not (task == "initial" and name == "to_xarray"):
                    tried(lambda name=name, task=task, trial=trial: getattr(trial, name)(task))
    return complaints


def search(finished: Path, folder: Path, seeds: range) -> Counter[str]:
    """What the commands said of one damaged folder a seed."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        generator = random.Random(seed)
        root = folder / f"damaged{seed}"
        shutil.copytree(finished, root)
        done = [damage(generator, root) for _ in range(generator.choice([1, 1, 1, 2, 3]))]
        print(seed, done)  # shown when a test fails
        before = sorted(os.walk(root))
        with time_limit(LIMIT_SECONDS):
            for arguments in (("status", str(root)), ("status", str(root), "--json"), ("status", str(root), "--verify")):
                code, err = command(*arguments)
                assert code in (0, 2) if "--verify" not in arguments else code in (0, 1, 2), (done, arguments)
                assert "Traceback" not in err, (done, arguments, err)
                counts[f"{arguments[-1] if len(arguments) > 2 else 'status'} {code}"] += 1
            counts["complaints"] += look_at_everything(root) > 2  # expert() and task 7 are never there
        assert sorted(os.walk(root)) == before
        shutil.rmtree(root)
    return counts


def test_some_damaged_results_are_read_without_a_crash(finished: Path, tmp_path: Path) -> None:
    search(finished, tmp_path, range(QUICK))


@pytest.mark.faults
def test_200_damaged_results_are_read_without_a_crash(finished: Path, tmp_path: Path) -> None:
    counts = search(finished, tmp_path, range(1000, 1000 + EXAMPLES))
    assert counts["--verify 1"] > EXAMPLES // 3, counts
