"""A study is swept over models and data sets on Ray, and plotted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import clray
from tests.study.tiny import tiny_study


@pytest.mark.ray
def test_a_study_is_a_ray_sweep_over_models_and_data_sets(ray_address: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for split, n in (("train", 40), ("test", 10)):
        np.save(data / f"X_{split}.npy", rng.integers(0, 256, (6 * n, 5, 5, 1)).astype(np.uint8))
        np.save(data / f"y_{split}.npy", np.arange(6 * n) % 6)
    memory = {"methods": ["random", "herding"], "fractions": [0.1, 1], "num_samples": 2}
    arrays = {"name": "arrays", "root": str(data)}
    base = tiny_study(memory=memory, downstream=None)
    sweep = {
        "name": "studies",
        "experiment": base,
        "cases": [{"dataset": base["dataset"]}, {"dataset": arrays}],
        "grid": {"model.hidden": [[8], [12]]},
    }
    results = clray.sweep(sweep, output=tmp_path / "ray", address=ray_address)
    assert results.trials["status"].tolist() == ["done"] * 4
    for trial_id in results.trial_ids:
        cosine = np.load(tmp_path / "ray" / "studies" / "trials" / trial_id / "similarity_random" / "similarity.cosine.npy")
        assert cosine.shape[:4] == (2, 2, 2, 2)
        assert np.abs(cosine[1] - 1.0).max() < 1e-5
