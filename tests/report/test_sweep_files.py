"""What a report reads is what was written, and what it computes over trials equals a loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clray.errors import UserError
from clray.metrics.accuracy import mean_and_sem
from clray.report.figures.sweep import compare_table, factor_table, grouped, ordered_values
from clray.report.labels import find_metric, metric, short_names, show_mean, show_value
from clray.report.measure_store import MeasureStore
from clray.report.sweep_files import SweepFiles, open_sweep, settings_of, with_metrics
from clray.report.trial_files import TrialFiles
from clray.results import open_results
from clray.store.filesystem import Storage
from tests.report.fake_sweep import DOCUMENT, write_sweep


@pytest.fixture(scope="module")
def sweep(sweep_folder: Path) -> SweepFiles:
    opened = open_sweep(str(sweep_folder))
    return with_metrics(opened, MeasureStore(opened.storage, writable=False))


def test_metrics_of_trials_are_those_of_trials_parquet(sweep: SweepFiles, sweep_folder: Path) -> None:
    """Computed anew from the files, over repeats that did not diverge."""
    for trial_id, rows in sweep.repeats.groupby("trial_id"):
        result = json.loads((sweep_folder / f"trials/{trial_id}/RESULT.json").read_text())
        for name, values in result["metrics"].items():
            wanted = [np.nan if value is None else value for value in values["repeats"]]
            np.testing.assert_allclose(rows[name].to_numpy(float), wanted, atol=1e-6, err_msg=f"{trial_id} {name}")


def test_new_metrics_have_mean_and_error_over_repeats(sweep: SweepFiles) -> None:
    assert {"stability_ratio", "learning_time", "largest_dip", "expert_transfer", "area_acc", "corrected_area_bwt"} <= set(sweep.metrics)
    for row in sweep.trials.to_dict("records"):
        values = sweep.repeats.loc[sweep.repeats["trial_id"] == row["trial_id"], "largest_dip"]
        wanted = mean_and_sem(values.to_numpy(float))
        np.testing.assert_allclose([row["largest_dip_mean"], row["largest_dip_sem"]], wanted)


def test_curves_are_those_of_clray_open(sweep_folder: Path) -> None:
    results = open_results(str(sweep_folder))
    trial = results.trial(str(results.trials["trial_id"][0]))
    curves = TrialFiles(Storage.of(str(sweep_folder)), trial.trial_id).curves()
    assert curves is not None
    np.testing.assert_array_equal(curves.logs["accuracy"], trial.accuracy())
    np.testing.assert_array_equal(curves.logs["loss"], trial.loss())
    np.testing.assert_array_equal(curves.end["accuracy"], trial.accuracy_matrix())
    assert curves.expert is not None
    assert curves.expert["accuracy"].shape == (3, 4, 3)
    assert curves.joint is not None
    assert curves.joint["accuracy"].shape == (3, 3)


def test_metrics_are_kept_and_computed_only_for_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01, 0.1]}}
    write_sweep(str(tmp_path), document, ("done", "running"))
    opened: list[str] = []
    read = TrialFiles.curves
    monkeypatch.setattr(TrialFiles, "curves", lambda self: opened.append(self.trial_id) or read(self))

    def metrics() -> pd.DataFrame:
        sweep = open_sweep(str(tmp_path))
        return with_metrics(sweep, MeasureStore(sweep.storage)).trials

    first = metrics()
    assert len(opened) == 1
    pd.testing.assert_frame_equal(metrics(), first)
    assert len(opened) == 1
    write_sweep(str(tmp_path), {**document, "grid": {"optimizer.learning_rate": [0.01, 1.0]}}, ("pending", "done"))
    assert metrics()["largest_dip_mean"].notna().sum() == 2
    assert len(opened) == 2


def test_metrics_are_computed_again_when_a_folder_was_committed_anew(tmp_path: Path) -> None:
    document = {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01]}}
    plan = write_sweep(str(tmp_path), document, ("done",))
    storage = Storage.of(str(tmp_path))
    before = TrialFiles(storage, plan.trials[0].trial_id).key()
    assert TrialFiles(storage, plan.trials[0].trial_id).key() == before
    storage.remove_tree("trials")
    write_sweep(str(tmp_path), document, ("done",))
    assert TrialFiles(storage, plan.trials[0].trial_id).key() != before


def test_a_damaged_computed_table_is_computed_again(tmp_path: Path) -> None:
    write_sweep(str(tmp_path), {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01]}}, ("done",))
    sweep = open_sweep(str(tmp_path))
    store = MeasureStore(sweep.storage)
    wanted = with_metrics(sweep, store).trials
    (tmp_path / "report/metrics/accuracy.parquet").write_bytes(b"PAR1 not really")
    pd.testing.assert_frame_equal(with_metrics(sweep, store).trials, wanted)


def test_a_damaged_trial_is_left_out_and_named(tmp_path: Path) -> None:
    plan = write_sweep(str(tmp_path), {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01]}}, ("done",))
    folder = tmp_path / "trials" / plan.trials[0].trial_id
    (folder / "task_001/COMMIT.json").write_text("{}")
    trial = TrialFiles(Storage.of(str(tmp_path)), plan.trials[0].trial_id)
    assert trial.tasks == [0]  # up to the gap
    assert "task_001/COMMIT.json is damaged" in trial.problems[0]
    (folder / "task_000/metrics.parquet").write_bytes(b"")
    assert TrialFiles(Storage.of(str(tmp_path)), plan.trials[0].trial_id).curves() is None


def plain_group(sweep: SweepFiles, ids: list[str], name: str) -> tuple[float, float]:
    """Mean over the trials for each repeat, then mean and standard error over repeats."""
    by_repeat = []
    for repeat in sorted(set(sweep.repeats["repeat"])):
        values = [
            row[name]
            for row in sweep.repeats.to_dict("records")
            if row["trial_id"] in ids and row["repeat"] == repeat and not np.isnan(row[name])
        ]
        if values:
            by_repeat.append(sum(values) / len(values))
    return mean_and_sem(np.array(by_repeat))


def test_means_over_trials_are_taken_for_each_repeat_first(sweep: SweepFiles) -> None:
    table = compare_table(sweep, ["optimizer.learning_rate"], ["acc", "forgetting"])
    for row in table.to_dict("records"):
        trials = sweep.finished[sweep.finished["param.optimizer.learning_rate"] == row["optimizer.learning_rate"]]
        assert row["trials"] == len(trials) == 2
        for name in ("acc", "forgetting"):
            wanted = plain_group(sweep, list(trials["trial_id"]), name)
            np.testing.assert_allclose([row[f"{name}_mean"], row[f"{name}_sem"]], wanted)


def test_one_trial_alone_has_its_own_mean_and_error(sweep: SweepFiles) -> None:
    table = compare_table(sweep, ["optimizer.learning_rate", "model.hidden"], ["acc"])
    merged = table.merge(sweep.finished, left_on=list(table.columns[:2]), right_on=[f"param.{key}" for key in table.columns[:2]])
    assert len(merged) == 4
    np.testing.assert_allclose(merged["acc_mean_x"], merged["acc_mean_y"])
    np.testing.assert_allclose(merged["acc_sem_x"], merged["acc_sem_y"])


def test_many_numbers_are_grouped_by_rank() -> None:
    n = 60
    rates = np.random.default_rng(0).permutation(np.logspace(-4, -1, n))
    trials = pd.DataFrame({"trial_id": [f"t{i}" for i in range(n)], "status": "done", "param.rate": rates})
    repeats = pd.DataFrame({"trial_id": np.repeat(trials["trial_id"], 2), "repeat": [0, 1] * n, "acc": np.repeat(np.log10(rates), 2)})
    sweep = SweepFiles(Storage.of("memory://x"), "x", {}, trials, {}, False, repeats)
    table = factor_table(sweep, "rate", ["acc"])
    assert list(table["trials"].between(7, 8)) == [True] * 8
    assert table["rate"].is_monotonic_increasing
    np.testing.assert_allclose(np.log10(table["rate"]), table["acc_mean"], atol=0.05)


def test_groups_leave_out_trials_without_one(sweep: SweepFiles) -> None:
    groups = pd.Series([0.0, np.nan, 0.0, 1.0], index=sweep.finished.index)
    assert list(grouped(sweep, groups, ["acc"])["trials"]) == [2, 1]


def test_settings_that_were_not_varied_come_from_the_experiments(sweep: SweepFiles) -> None:
    assert set(settings_of(sweep, "strategy.name").dropna()) == {"finetune"}
    assert set(settings_of(sweep, "sequence.n_tasks").dropna()) == {3}
    with pytest.raises(UserError, match=r"did you mean 'strategy\.name'"):
        settings_of(sweep, "strategy.nam")


def test_values_are_ordered_as_numbers_where_they_are_some() -> None:
    assert ordered_values(pd.Series([0.1, 0.01, np.nan, 1.0])) == [0.01, 0.1, 1.0]
    assert ordered_values(pd.Series(["b", None, "a", "b"])) == ["b", "a"]


def test_names_are_short_where_they_stay_clear() -> None:
    assert short_names(["optimizer.learning_rate", "strategy.name", "model.hidden"]) == ["learning_rate", "strategy.name", "hidden"]
    assert short_names(["a.b.c", "d.b.c"]) == ["a.b.c", "d.b.c"]
    assert short_names(["seed"]) == ["seed"]


def test_metrics_are_found_as_people_type_them() -> None:
    names = ["acc", "learning_acc", "largest_dip", "area_acc"]
    for given, wanted in (("ACC", "acc"), ("largest-dip", "largest_dip"), ("learning accuracy", "learning_acc"), ("acc_mean", "acc")):
        assert find_metric(given, names) == wanted
    with pytest.raises(UserError, match="valid: acc, area_acc"):
        find_metric("nothing", names)
    assert metric("corrected_area_forgetting").better == "low"
    assert metric("somebody_elses").title == "somebody elses"


def test_numbers_are_shown_short() -> None:
    assert show_mean(0.74321, 0.0351) == "0.743 ± 0.035"
    assert show_mean(0.5, float("nan")) == "0.500"
    assert show_mean(-0.0001, 0.001) == "0.000 ± 0.001"
    assert show_mean(float("nan")) == ""
    assert [show_value(value) for value in (1e-5, 0.1, 128, 12345.0, True, None, [32, 32], "adam")] == [
        "1e-05",
        "0.1",
        "128",
        "12345",
        "true",
        "",
        "[32,32]",
        "adam",
    ]


def test_chance_follows_the_outputs_that_there_are_to_choose_from(tmp_path: Path) -> None:
    plan = write_sweep(str(tmp_path), {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01]}}, ("done",))
    trial = TrialFiles(Storage.of(str(tmp_path)), plan.trials[0].trial_id)

    def chances(active: str = "all", **sequence: Any) -> list[float]:
        trial.config = {"sequence": {"n_tasks": 3, "classes_per_task": 2, **sequence}, "training": {"active_classes": active}}
        return [round(1 / chance) for chance in trial.chance_by_task]

    assert chances() == [2, 2, 2]
    assert chances(scenario="task") == [2, 2, 2]
    assert chances(scenario="class") == [6, 6, 6]
    assert chances("seen", scenario="class") == [2, 4, 6]
    assert chances("seen", scenario="class", classes=[[0, 1], [1, 2], [0, 2]]) == [2, 3, 3]


def test_corrected_metrics_take_the_chance_of_each_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrected(folder: str) -> float:
        write_sweep(str(tmp_path / folder), {**DOCUMENT, "grid": {"optimizer.learning_rate": [0.01]}}, ("done",))
        sweep = open_sweep(str(tmp_path / folder))
        return float(with_metrics(sweep, MeasureStore(sweep.storage)).trials["corrected_acc_mean"].iloc[0])

    at_half = corrected("half")
    monkeypatch.setattr(TrialFiles, "chance_by_task", property(lambda self: np.full(self.n_tasks, 0.25)))
    acc = 0.5 + 0.5 * at_half
    assert corrected("quarter") == pytest.approx((acc - 0.25) / 0.75)
