"""Malformed sweep and experiment files through the commands: never a traceback, never a hang, exit code 2, or 0 where they are valid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import clray.cli
from tests.faults.in_process import command, time_limit
from tests.faults.malformed import EXPERIMENTS, SWEEPS, files

LIMIT_SECONDS = 30
EXAMPLES = 1000
QUICK = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, where ``clray run`` ends before it would train."""
    path = tmp_path_factory.mktemp("malformed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(clray.cli, "_execute", lambda *args, **options: None)
        patch.setattr(clray.cli, "_print_phases", lambda *args: None)
        yield path


def check(folder: Path, data: bytes, *arguments: str) -> int:
    """Reads one file by a command."""
    path = folder / "file.yaml"
    path.write_bytes(data)
    with time_limit(LIMIT_SECONDS):
        code, err = command(*arguments)
    assert code in (0, 2), err
    assert "Traceback" not in err
    if code == 2:
        assert err.startswith("clray: "), err
        assert 10 < len(err) < 20_000
    assert sorted(p.name for p in folder.iterdir()) == ["file.yaml"]
    return code


def search(folder: Path, n: int, documents: list[dict[str, Any]], *arguments: str) -> Counter[int]:
    """Exit codes of n examples; the same ones every time."""
    codes: Counter[int] = Counter()

    @settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(files(documents))
    def one(data: bytes) -> None:
        codes[check(folder, data, *arguments)] += 1

    one()
    return codes


RUN = ("run", "file.yaml")
DRY = ("sweep", "file.yaml", "--dry-run")


def test_some_malformed_files_are_refused(folder: Path) -> None:
    assert search(folder, QUICK // 2, EXPERIMENTS, *RUN)[2] > QUICK // 4
    assert search(folder, QUICK // 2, SWEEPS, *DRY)[2] > QUICK // 4


@pytest.mark.faults
@pytest.mark.parametrize(
    ("documents", "arguments"),
    [(EXPERIMENTS, RUN), (SWEEPS, DRY), (SWEEPS, RUN), (EXPERIMENTS, DRY)],
    ids=["run", "sweep", "run-sweep", "sweep-run"],
)
def test_1000_malformed_files_are_refused(folder: Path, documents: list[dict[str, Any]], arguments: tuple[str, ...]) -> None:
    n = EXAMPLES * 4 // 10 if (documents is EXPERIMENTS) == (arguments is RUN) else EXAMPLES // 10
    codes = search(folder, n, documents, *arguments)
    assert codes[2] > n // 2
