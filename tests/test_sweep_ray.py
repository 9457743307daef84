"""A real sweep on a real Ray: what runs, what fails alone, what runs again, and what an interrupt leaves behind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import clray
from clray.errors import OutputError, ResourceError
from tests.core.tiny import arrays_of, assert_same_bits, tiny

pytestmark = pytest.mark.ray

CLRAY = str(Path(sys.executable).with_name("clray"))

FAULTY = '''
from clray.models.mlp import MLP, MLPModule

class Faulty(MLP):
    """Raises at 9 hidden units outside the driver, as long as the file ``mended`` is not there."""

    def build(self, shape, n_outputs, rngs):
        import os, pathlib
        here = pathlib.Path(__file__).parent
        driver = int((here / "driver").read_text()) == os.getpid()
        if self.hidden == (9,) and not driver and not (here / "mended").exists():
            raise ArithmeticError("nine units are one too many")
        return MLPModule(self, shape[0], n_outputs, rngs)
'''


def sweep_of(*hidden: int, **changes: Any) -> dict[str, Any]:
    """The tiny experiment over widths."""
    return {"name": "widths", "experiment": tiny(**changes), "grid": {"model.hidden": [[width] for width in hidden]}}


def test_ray_and_one_process_write_the_same_bits(ray_address: str, tmp_path: Path) -> None:
    sweep = {**sweep_of(8, 16), "zip": {"optimizer.learning_rate": [0.02, 0.05], "seed": [1, 2]}}
    remote = clray.sweep(sweep, output=tmp_path / "ray")
    local = clray.sweep(sweep, output=tmp_path / "local", local=True)
    assert remote.trials.status.tolist() == ["done"] * 4
    assert remote.trial_ids == local.trial_ids
    for trial_id in remote.trial_ids:
        one, other = (tmp_path / side / "widths" / "trials" / trial_id for side in ("ray", "local"))
        assert_same_bits(arrays_of(one), arrays_of(other))


def test_a_failing_trial_stops_no_other_and_runs_again_only_when_asked(
    ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty_models.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(8, 9, model={"name": "faulty_models:Faulty", "hidden": [8]})
    (tmp_path / "driver").write_text(str(os.getpid()))
    results = clray.sweep(sweep, output=tmp_path / "out")
    failed = results.trials.set_index("param.model.hidden").loc["[9]"]
    assert sorted(results.trials.status) == ["done", "failed"]
    assert "nine units are one too many" in failed.error
    attempts = tmp_path / "out" / "widths" / "trials" / failed.trial_id / "attempts"
    assert "ArithmeticError" in (attempts / "traceback.txt").read_text()
    assert json.loads((attempts / "001.json").read_text())["outcome"] == "failed"
    assert results.trial(failed.trial_id).status.cause == "program"

    done = next((tmp_path / "out" / "widths" / "trials").glob("*/RESULT.json"))
    before = done.stat().st_mtime_ns
    clray.sweep(sweep, output=tmp_path / "out")
    assert not (attempts / "002.json").exists()
    (tmp_path / "mended").touch()
    again = clray.sweep(sweep, output=tmp_path / "out", retry_failed=True)
    assert again.trials.status.tolist() == ["done", "done"]
    assert done.stat().st_mtime_ns == before


def test_a_grown_grid_runs_only_what_is_new_and_keeps_what_is_gone(ray_address: str, tmp_path: Path) -> None:
    first = set(clray.sweep(sweep_of(8, 12), output=tmp_path).trial_ids)
    nonces = {path: path.read_bytes() for path in tmp_path.glob("widths/trials/*/*/COMMIT.json")}
    second = clray.sweep(sweep_of(12, 14), output=tmp_path)
    assert len(second.trials) == 3
    assert first < set(second.trial_ids)
    assert all(path.read_bytes() == content for path, content in nonces.items())
    table = pq.read_table(tmp_path / "widths" / "trials.parquet")
    assert table["param.model.hidden"].to_pylist() == ["[8]", "[12]", "[14]"]
    assert np.isfinite(table["acc_mean"].to_numpy()).all()


def test_a_gpu_that_no_node_has_is_refused_with_what_the_cluster_has(ray_address: str, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"1 CPU and 1 GPU, which no node .* \(1 node: 2 CPU, 0 GPU\)"):
        clray.sweep({**sweep_of(8), "resources": {"num_gpus": 1}}, output=tmp_path)


def test_a_local_path_that_another_node_does_not_see_is_refused(ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from clray.config import Resources
    from clray.trials.runner_ray import RayRunner

    (tmp_path / "here").mkdir()
    with RayRunner(Resources()) as runner:
        nodes = ray.nodes()
        monkeypatch.setattr(ray, "nodes", lambda: nodes * 2)
        runner.check_shared(str(tmp_path / "here"))
        # A node with another disk reads nothing where the driver wrote.
        monkeypatch.setattr("clray.trials.runner_ray.read_marker", lambda url, name: "")
        with pytest.raises(OutputError, match="local path that these nodes of the cluster do not share"):
            runner.check_shared(str(tmp_path / "here"))
    assert list((tmp_path / "here").iterdir()) == []


def test_a_width_by_hand_reaches_the_workers_of_a_cluster_that_was_there(
    ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def width() -> int:
        name = f"width-{os.environ.get('CLRAY_LANE_WIDTH')}"
        clray.sweep({**sweep_of(8), "name": name}, output=tmp_path)
        (commit,) = (tmp_path / name / "trials").glob("*/task_000/COMMIT.json")
        return int(json.loads(commit.read_text())["width"])

    assert width() == 2
    monkeypatch.setenv("CLRAY_LANE_WIDTH", "3")
    assert width() == 3
