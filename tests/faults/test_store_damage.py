"""Damaged files of real runs: a resume notices, says so, and ends with the same files; finished trials by ``status --verify``."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from clray.cli import main
from tests.core.tiny import OneTrial, arrays_of, assert_same_bits, prepare, tiny
from tests.trials.sweeps import sweep, write

pytestmark = pytest.mark.faults


class Events:
    """A report callback that keeps what it is told, and stops the run after a task."""

    def __init__(self, stop_after: int | None = None):
        self.seen: list[Mapping[str, Any]] = []
        self.stop_after = stop_after

    def __call__(self, event: Mapping[str, Any]) -> None:
        self.seen.append(event)
        if self.stop_after is not None and event.get("task") == self.stop_after:
            raise KeyboardInterrupt


def flip(path: Path, where: float = 0.9) -> None:
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path: Path) -> None:
    path.unlink()


def nonces(folder: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["nonce"] for path in folder.glob("[!.]*/COMMIT.json")}


def visible(folder: Path) -> dict[str, Any]:
    """Arrays that readers look at. States are kept for the last two tasks that were written, which may be others."""
    return {name: array for name, array in arrays_of(folder).items() if not name.startswith(".") and "state.msgpack" not in name}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> OneTrial:
    (trial,) = prepare(tiny(sequence__n_tasks=4), folder=tmp_path_factory.mktemp("undisturbed"))
    trial.run()
    return trial


def stopped(folder: Path, after: int) -> Path:
    (trial,) = prepare(tiny(sequence__n_tasks=4), folder=folder, report=Events(after))
    with pytest.raises(KeyboardInterrupt):
        trial.run()
    return trial.folder


@pytest.mark.parametrize(
    ("damage", "name", "again"),
    [
        (flip, "task_002/state.msgpack", {"task_002"}),  # falls back to the state before
        (truncate, "task_002/state.msgpack", {"task_002"}),
        (flip, "task_002/COMMIT.json", {"task_002"}),
        (truncate, "task_002/weights.head.kernel.npy", {"task_002"}),
        (truncate, "task_000/weights.head.kernel.npy", {"task_000"}),  # its state is pruned: from the start
        (remove, "task_001/representations.npy", {"task_001"}),
        (flip, "task_000/end.parquet", {"task_000"}),
        (flip, "initial/end.parquet", {"initial"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_resume_sets_damage_aside_says_so_and_ends_with_the_same_files(
    tmp_path: Path, undisturbed: OneTrial, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], name: str, again: set[str]
) -> None:
    folder = stopped(tmp_path / "sweep", 2)
    before = nonces(folder)
    damaged = (folder / name).read_bytes()
    damage(folder / name)
    left = (folder / name).read_bytes() if (folder / name).exists() else None
    assert left != damaged
    events = Events()
    (trial,) = prepare(tiny(sequence__n_tasks=4), folder=tmp_path / "sweep", report=events)
    with caplog.at_level(logging.WARNING):
        trial.run()
    part, _, file = name.partition("/")
    aside = folder / f".damaged-{part}-1" / file
    assert (aside.read_bytes() if aside.exists() else None) == left
    after = nonces(folder)
    assert {key for key in before if after[key] != before[key]} == again
    told = [event["text"] for event in events.seen if event["event"] == "damaged"]
    assert any(part in text and "set aside" in text for text in told)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("clray.trial.")] == told
    assert_same_bits(visible(folder), visible(undisturbed.folder))


def test_without_any_intact_state_training_starts_again(tmp_path: Path, undisturbed: OneTrial) -> None:
    folder = stopped(tmp_path / "sweep", 2)
    before = nonces(folder)
    flip(folder / "task_001/state.msgpack")
    flip(folder / "task_002/state.msgpack")
    events = Events()
    (trial,) = prepare(tiny(sequence__n_tasks=4), folder=tmp_path / "sweep", report=events)
    trial.run()
    after = nonces(folder)
    assert {key for key in before if after[key] != before[key]} == {"task_001", "task_002"}
    assert any("training starts from the first task" in event["text"] for event in events.seen if event["event"] == "damaged")
    assert_same_bits(visible(folder), visible(undisturbed.folder))


Clray = Callable[..., tuple[int, str, str]]


@pytest.fixture
def clray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Clray:
    """A function that gives a command in a folder with one sweep file, and returns exit code, output and errors."""
    write(tmp_path / "small.yaml", sweep(grid={"seed": [1, 2]}))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clray", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return code, out.out, out.err

    return run


def test_damage_in_a_finished_sweep_is_found_and_mended_by_the_same_command(clray: Clray, tmp_path: Path) -> None:
    command = ("sweep", "small.yaml", "--local", "-o", "results")
    assert clray(*command)[0] == 0
    root = tmp_path / "results" / "small"
    first, second = sorted((root / "trials").iterdir())
    expected, others = {path: visible(path) for path in (first, second)}, nonces(second)
    results = {path: json.loads((path / "RESULT.json").read_text())["metrics"] for path in (first, second)}
    assert clray("status", str(root), "--verify")[0] == 0

    flip(first / "task_000" / "weights.head.kernel.npy")
    flip(first / "classes.npy")
    code, out, _ = clray("status", str(root), "--verify")
    assert code == 1
    assert "task_000" in out
    assert "weights.head.kernel.npy has another sha256" in out
    assert "classes.npy" in out
    assert second.name not in out
    assert clray(*command)[0] == 0  # sizes are right: a finished trial is taken as it is
    code, out, _ = clray("status", str(root), "--verify", "--set-aside", "--json")
    assert code == 1
    found = json.loads(out)
    assert {(d["trial_id"], d["part"]) for d in found["damaged"]} == {(first.name, "task_000"), (first.name, "classes.npy")}
    assert sorted(found["set_aside"][first.name]) == [".damaged-RESULT.json-1", ".damaged-classes.npy-1", ".damaged-task_000-1"]
    assert json.loads(clray("status", str(root), "--json")[1])["trials"][0]["status"] == "interrupted"

    assert clray(*command)[0] == 0
    assert clray("status", str(root), "--verify")[0] == 0
    for path in (first, second):
        assert_same_bits(visible(path), expected[path])
        assert json.loads((path / "RESULT.json").read_text())["metrics"] == results[path]
    assert nonces(second) == others


def test_a_damaged_result_is_written_again_from_what_is_committed(clray: Clray, tmp_path: Path) -> None:
    command = ("run", "small.yaml", "-o", "results", "-q")
    assert clray(*command)[0] == 0
    (trial,) = (tmp_path / "results" / "small" / "trials").iterdir()
    before, metrics = nonces(trial), json.loads((trial / "RESULT.json").read_text())["metrics"]
    flip(trial / "RESULT.json", 0.3)
    code, out, _ = clray("status", "results/small")
    assert code == 0
    assert "interrupted" in out
    assert "RESULT.json is damaged" in out
    assert clray(*command)[0] == 0
    assert nonces(trial) == before
    assert json.loads((trial / "RESULT.json").read_text())["metrics"] == metrics


def test_the_warning_is_on_the_terminal_and_in_the_log(clray: Clray, tmp_path: Path) -> None:
    command = ("run", "small.yaml", "-o", "results")
    assert clray(*command)[0] == 0
    (trial,) = (tmp_path / "results" / "small" / "trials").iterdir()
    (trial / "RESULT.json").unlink()
    flip(trial / "task_001" / "end.parquet")
    code, _, err = clray(*command, "--quiet")
    assert code == 0
    assert f"WARNING {trial.name}: task_001 is damaged and was set aside as .damaged-task_001-1" in err
    assert "task_001 is damaged and was set aside" in (trial / "attempts" / "log.txt").read_text()


def test_set_aside_needs_verify_and_nothing_is_set_aside_from_under_a_driver(clray: Clray, tmp_path: Path) -> None:
    code, _, err = clray("status", "results/small", "--set-aside")
    assert code == 2
    assert "--verify" in err
