"""Measures of a trial equal the metrics computed directly from its arrays, and are kept while these do not change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clray.metrics import geometry, plasticity
from clray.metrics.similarity import linear_cka, procrustes_distance
from clray.report import measures as m
from clray.report.measure_store import MeasureStore
from clray.report.trial_files import TrialCurves, TrialFiles
from clray.results import TrialResults, open_results
from clray.store.filesystem import Storage
from tests.report.fake_sweep import DOCUMENT, EVERY, LOGS, write_sweep


def opened(folder: Path, index: int = 0) -> tuple[TrialFiles, TrialCurves, TrialResults]:
    results = open_results(str(folder))
    trial = TrialFiles(Storage.of(str(folder)), str(results.trials["trial_id"][index]))
    curves = trial.curves()
    assert curves is not None
    return trial, curves, results.trial(trial.trial_id)


@pytest.fixture(scope="module")
def measured(sweep_folder: Path) -> tuple[m.Measures, TrialCurves, TrialResults]:
    trial, curves, results = opened(sweep_folder)
    return m.measure(trial, curves, MeasureStore(trial.storage, writable=False), geometry.is_available(), lambda: None), curves, results


def test_plasticity_is_that_of_the_samples_of_all_tasks(measured: tuple[m.Measures, TrialCurves, TrialResults]) -> None:
    found, _, results = measured
    assert found.plasticity is not None
    assert len(found.plasticity) == 3 * LOGS * 3
    for row in found.plasticity.sample(6, random_state=0).to_dict("records"):
        hidden = results.representations(int(row["task"]))[row["step"] // EVERY - 1, row["repeat"]]
        pooled = hidden.reshape(-1, hidden.shape[-1])
        for name in ("dormant_ratio", "active_fraction", "stable_rank", "effective_rank", "feature_norm", "feature_variance"):
            assert row[name] == pytest.approx(getattr(plasticity, name)(pooled), rel=1e-5), name


def test_drift_is_measured_from_the_untrained_network_and_from_the_end_of_the_own_task(
    measured: tuple[m.Measures, TrialCurves, TrialResults],
) -> None:
    found, _, results = measured
    assert found.drift is not None
    assert len(found.drift) == 3 * LOGS * 3 * 3
    for row in found.drift.sample(12, random_state=0).to_dict("records"):
        log, repeat, task, evaluated = row["step"] // EVERY - 1, row["repeat"], row["task"], row["eval_task"]
        now = results.representations(int(task))[log, repeat, evaluated]
        untrained = results.representations("initial")[0, repeat, evaluated]
        assert row["cka_initial"] == pytest.approx(linear_cka(now, untrained), rel=1e-5)
        if evaluated > task:
            assert np.isnan(row["cka_own"])
        else:
            own = results.representations(int(evaluated))[-1, repeat, evaluated]
            assert row["cka_own"] == pytest.approx(linear_cka(now, own), rel=1e-5)
            assert row["procrustes_own"] == pytest.approx(procrustes_distance(now, own), rel=1e-4, abs=1e-4)


def test_weights_move_from_their_initial_value_and_from_the_start_of_the_task(
    measured: tuple[m.Measures, TrialCurves, TrialResults],
) -> None:
    found, _, results = measured
    assert found.weights is not None
    assert set(found.weights["parameter"]) == {"hidden.0.kernel", "hidden.0.bias", "head.kernel", "head.bias"}
    for row in found.weights.sample(12, random_state=0).to_dict("records"):
        log, repeat, task, name = row["step"] // EVERY - 1, row["repeat"], int(row["task"]), row["parameter"]
        now = results.weights(task)[name][log, repeat]
        initial = results.weights("initial")[name][0, repeat]
        start = results.weights(task - 1 if task else "initial")[name][-1, repeat]
        assert row["norm"] == pytest.approx(np.linalg.norm(now), rel=1e-5)
        assert row["from_initial"] == pytest.approx(np.linalg.norm(now - initial), rel=1e-5)
        assert row["from_task_start"] == pytest.approx(np.linalg.norm(now - start), rel=1e-5)
        assert row["mean_absolute"] == pytest.approx(np.abs(now).mean(), rel=1e-5)
        assert row["size"] == now.size


def test_moments_compare_every_two_ends_of_tasks(measured: tuple[m.Measures, TrialCurves, TrialResults]) -> None:
    found, _, results = measured
    assert found.moments is not None
    assert len(found.moments) == 3 * 10 * 3  # evaluated tasks, pairs of untrained and three ends, repeats
    for row in found.moments.sample(8, random_state=0).to_dict("records"):
        ends = [
            results.representations("initial" if moment < 0 else int(moment))[-1, row["repeat"], row["eval_task"]]
            for moment in (row["first"], row["second"])
        ]
        assert row["cka"] == pytest.approx(linear_cka(*ends), rel=1e-5)


@pytest.mark.skipif(not geometry.is_available(), reason="needs quadprog: pip install 'clray[geometry]'")
def test_geometry_is_that_of_all_classes_together(measured: tuple[m.Measures, TrialCurves, TrialResults]) -> None:
    found, _, results = measured
    assert found.geometry is not None
    hidden = results.representations(1)[-1, 2].astype(float)  # (E, S, H)
    clouds = [part for samples in hidden for part in np.split(samples, 2)]
    wanted = geometry.manifold_geometry(clouds)
    rows = found.geometry[(found.geometry["task"] == 1) & (found.geometry["repeat"] == 2)].sort_values("eval_task")
    np.testing.assert_allclose(rows["radius"], wanted.radius.reshape(3, 2).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(rows["capacity"], 2 / (1 / wanted.capacity).reshape(3, 2).sum(axis=1), rtol=1e-5)


def test_measures_of_a_running_trial_only_add_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01]}}
    write_sweep(str(tmp_path), document, ("running",))
    trial, curves, _ = opened(tmp_path)
    store = MeasureStore(trial.storage)
    calls: list[int] = []
    plain = m._drift
    monkeypatch.setattr(m, "_drift", lambda reading, task: calls.append(task) or plain(reading, task))
    first = m.measure(trial, curves, store, False, lambda: None)
    assert calls == [0, 1]
    again = m.measure(trial, curves, store, False, lambda: None)
    assert calls == [0, 1]
    assert first.drift is not None
    assert again.drift is not None
    pd.testing.assert_frame_equal(first.drift, again.drift)
    # Another commit of task 1: everything that looks at it is measured again, task 0 is not.
    commit = trial.commits["task_001"]
    object.__setattr__(commit, "nonce", "another")
    m.measure(trial, curves, store, False, lambda: None)
    assert calls == [0, 1, 1]


def test_every_array_is_read_once(sweep_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the table of moments, which is made at the end, when the tasks are let go again."""
    trial, curves, _ = opened(sweep_folder)
    read: list[tuple[str, str]] = []
    plain = TrialFiles.array
    monkeypatch.setattr(TrialFiles, "array", lambda self, folder, name: read.append((folder, name)) or plain(self, folder, name))
    monkeypatch.setattr(m, "_moments", lambda reading, store: None)
    monkeypatch.setattr(MeasureStore, "load", lambda self, path, key: None)
    m.measure(trial, curves, MeasureStore(trial.storage, writable=False), False, lambda: None)
    assert len(read) == len(set(read)) == 4 * 5  # untrained and three tasks; representations and four parameters


def test_progress_is_told_once_a_task_and_measure(sweep_folder: Path) -> None:
    trial, curves, _ = opened(sweep_folder)
    told: list[int] = []
    m.measure(trial, curves, MeasureStore(trial.storage, writable=False), False, lambda: told.append(1))
    assert len(told) == m.N_KINDS * curves.n_tasks


def test_what_was_not_logged_is_not_measured(tmp_path: Path) -> None:
    write_sweep(str(tmp_path), {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01]}}, ("done",))
    for commit in tmp_path.glob("trials/*/task_*/COMMIT.json"):
        without = json.loads(commit.read_text())
        assert "representations.npy" in without["files"]
    trial, curves, _ = opened(tmp_path)
    for commit in trial.commits.values():
        for name in [name for name in commit.files if name.endswith(".npy")]:
            dict.pop(commit.files, name)  # type: ignore[arg-type]
    found = m.measure(trial, curves, MeasureStore(trial.storage), True, lambda: None)
    assert (found.plasticity, found.weights, found.drift, found.moments, found.geometry) == (None,) * 5


@pytest.mark.parametrize(
    ("n_tasks", "n_logs", "wanted"), [(5, 10, list(range(10))), (100, 10, [9]), (20, 10, [0, 2, 5, 7, 9]), (1000, 1, [0])]
)
def test_moments_of_long_sequences_are_thinned_and_the_last_is_kept(n_tasks: int, n_logs: int, wanted: list[int]) -> None:
    curves = TrialCurves(
        np.arange(1, n_logs + 1), np.arange(1), np.arange(1), {}, {"accuracy": np.zeros((n_tasks, 1, 1))}, {}, None, None, None
    )
    assert m.measured_logs(curves) == wanted
