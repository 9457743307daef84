"""A bug in a strategy of the user's own ends its trial, with a traceback in a file, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from clray.cli import app
from clray.trials.plan import plan_sweep
from tests.trials.sweeps import sweep, write

BROKEN = "tests.trials.broken_strategy:Broken"


@pytest.mark.parametrize("where", ["build", "init"])
def test_a_bug_fails_its_own_trial(where: str, tmp_path: Path) -> None:
    file = write(tmp_path / "s.yaml", sweep(cases=[{"strategy": {"name": BROKEN, "where": where}}, {"strategy": {"name": "finetune"}}]))
    broken, good = plan_sweep(file).trials
    shown = CliRunner().invoke(app, ["sweep", str(file), "--dry-run", "-o", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "the model or strategy fails while it is built" in shown.output

    ran = CliRunner().invoke(app, ["sweep", str(file), "--local", "-q", "-o", str(tmp_path)])
    assert ran.exit_code == 1, ran.output
    trials = tmp_path / "small" / "trials"
    assert (trials / good.trial_id / "RESULT.json").exists()
    assert not (trials / broken.trial_id / "RESULT.json").exists()
    assert f"a bug in {where}" in (trials / broken.trial_id / "attempts" / "traceback.txt").read_text()
