"""One sweep in every state, and the report of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from clray.report.build import build_report
from clray.report.sweep_files import open_sweep
from tests.report.fake_sweep import STATES, write_sweep


@pytest.fixture(scope="session")
def sweep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight trials: done, diverged in part and in full, running, failed, not begun. Nobody writes here but the report."""
    folder = tmp_path_factory.mktemp("results") / "fake"
    write_sweep(str(folder))
    return folder


@pytest.fixture(scope="session")
def report_folder(sweep_folder: Path) -> Path:
    """The report with a section for one trial in each state."""
    ids = list(open_sweep(str(sweep_folder)).trials["trial_id"])
    chosen = [trial_id for trial_id, state in zip(ids, STATES, strict=True) if state != "done"]
    build_report(str(sweep_folder), [ids[0], *chosen], quiet=True)
    return sweep_folder / "report"
