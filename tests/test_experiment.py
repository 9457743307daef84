"""One experiment from its file to the files it leaves: names, columns, order of rows, shapes, dtypes and what the result says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

import clray
from clray.core.program import products_in
from clray.errors import UserError
from clray.results import SweepResults
from tests.core.tiny import table, tiny

T, R, E, L, C, S, H, D = 3, 4, 3, 3, 2, 6, 16, 64
PARAMETERS = {"hidden.0.kernel": (D, H), "hidden.0.bias": (H,), "head.kernel": (H, C), "head.bias": (C,)}
WEIGHTS = {f"weights.{name}.npy": shape for name, shape in PARAMETERS.items()}
EVALUATED = [("repeat", "int16"), ("eval_task", "int32"), ("accuracy", "float"), ("loss", "float")]
COLUMNS = {
    "metrics.parquet": [("step", "int32"), *EVALUATED],
    "end.parquet": EVALUATED,
    "train.parquet": [("step", "int32"), ("repeat", "int16"), ("accuracy", "float"), ("loss", "float")],
}
TASKS = ["task_000", "task_001", "task_002"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where results go."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def results(output: Path) -> SweepResults:
    """The tiny experiment, run as people run it."""
    return clray.run(tiny(), output=output)


@pytest.fixture(scope="module")
def folder(results: SweepResults, output: Path) -> Path:
    """The folder of its trial."""
    (trial_id,) = results.trial_ids
    return output / "tiny" / "trials" / trial_id


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_trial_folder_holds_what_the_design_names(folder: Path) -> None:
    assert names(folder) == {"config.yaml", "classes.npy", "eval_samples.npy", "attempts", "initial", *TASKS, "RESULT.json"}
    assert names(folder / "attempts") >= {"001.json", "log.txt"}
    assert "traceback.txt" not in names(folder / "attempts")
    common = {"metrics.parquet", "end.parquet", "representations.npy", "COMMIT.json", *WEIGHTS}
    assert names(folder / "initial") == common
    assert names(folder / "task_000") == common | {"train.parquet"}  # the state is kept for the last two tasks
    assert names(folder / "task_001") == names(folder / "task_002") == common | {"train.parquet", "state.msgpack"}


@pytest.mark.parametrize("name", list(COLUMNS))
def test_tables_have_these_columns_and_types(folder: Path, name: str) -> None:
    for part in TASKS + ([] if name == "train.parquet" else ["initial"]):
        schema = pq.read_schema(folder / part / name)
        assert [(field.name, str(field.type)) for field in schema] == COLUMNS[name]


def test_rows_are_in_the_order_of_the_axes(folder: Path) -> None:
    steps, repeats, tasks = (4, 8, 12), range(R), range(E)
    for part in TASKS:
        metrics, end, train = (table(folder / part, name) for name in COLUMNS)
        expected = [(step, repeat, task) for step in steps for repeat in repeats for task in tasks]
        assert list(zip(metrics["step"], metrics["repeat"], metrics["eval_task"], strict=True)) == expected
        assert list(zip(end["repeat"], end["eval_task"], strict=True)) == [(repeat, task) for repeat in repeats for task in tasks]
        assert list(zip(train["step"], train["repeat"], strict=True)) == [(step, repeat) for step in steps for repeat in repeats]
    initial = table(folder / "initial", "metrics.parquet")
    assert list(zip(initial["step"], initial["repeat"], initial["eval_task"], strict=True)) == [
        (0, repeat, task) for repeat in repeats for task in tasks
    ]


def test_tensors_have_these_shapes_and_are_float32_in_c_order(folder: Path) -> None:
    for part in ["initial", *TASKS]:
        n_logs = 1 if part == "initial" else L
        for name, shape in {"representations.npy": (E, S, H), **WEIGHTS}.items():
            array = np.load(folder / part / name, mmap_mode="r")
            assert (array.shape, array.dtype, array.flags.c_contiguous) == ((n_logs, R, *shape), np.float32, True), (part, name)


def test_classes_and_eval_samples_have_these_shapes_and_dtypes(folder: Path) -> None:
    classes, samples = (np.load(folder / name) for name in ("classes.npy", "eval_samples.npy"))
    assert (classes.shape, classes.dtype) == ((T, R, C), np.int32)
    assert (samples.shape, samples.dtype) == ((10, S // C), np.int64)
    for repeat in range(R):
        assert len(set(classes[:, repeat].ravel())) == T * C, "disjoint"


def test_batches_after_the_last_log_are_trained_and_the_end_is_evaluated_after_them(folder: Path) -> None:
    for part in TASKS:
        metrics, end = (table(folder / part, name)["loss"] for name in ("metrics.parquet", "end.parquet"))
        assert (metrics[-R * E :] != end).all()


def test_commit_names_every_file_with_its_shape_dtype_bytes_and_checksum(folder: Path) -> None:
    for part in ["initial", *TASKS]:
        record = json.loads((folder / part / "COMMIT.json").read_text())
        assert record["nonce"]
        assert len(record["config"]) == 64
        files = {entry["name"]: entry for entry in record["files"]} if isinstance(record["files"], list) else record["files"]
        assert set(files) - {"state.msgpack"} == names(folder / part) - {"COMMIT.json", "state.msgpack"}
        for name, entry in files.items():
            path = folder / part / name
            if not path.exists():
                continue
            assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
            assert path.stat().st_size in entry.values()
            if name.endswith(".npy"):
                array = np.load(path)
                assert (tuple(entry["shape"]), entry["dtype"]) == (array.shape, array.dtype.name)


def test_config_says_the_whole_experiment_defaults_included(folder: Path) -> None:
    config = YAML(typ="safe").load((folder / "config.yaml").read_text())
    assert config["training"] | {"epochs": 3, "batch_size": 16, "reset_optimizer": False} == config["training"]
    assert config["optimizer"] | {"learning_rate": 0.05, "momentum": 0.9, "nesterov": False} == config["optimizer"]
    assert clray.run(config, output=folder.parents[2]).trial_ids == [folder.name]


def final_metrics(folder: Path) -> dict[str, np.ndarray]:
    """(R,) each, by loops over end.parquet."""
    ends = [table(folder / part, "end.parquet")["accuracy"].astype(np.float64).reshape(R, E) for part in ("initial", *TASKS)]
    found: dict[str, list[float]] = {}
    for repeat in range(R):
        before, *after = ([end[repeat, task] for task in range(E)] for end in ends)
        values = {
            "acc": sum(after[2]) / 3,
            "learning_acc": sum(after[task][task] for task in range(3)) / 3,
            "bwt": sum(after[2][task] - after[task][task] for task in range(2)) / 2,
            "forgetting_from_first": sum(after[task][task] - after[2][task] for task in range(2)) / 2,
            "forgetting": sum(max(after[0][task], after[1][task]) - after[2][task] for task in range(2)) / 2,
            "fwt": sum(after[task - 1][task] - before[task] for task in (1, 2)) / 2,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in found.items()}


def test_result_holds_the_metrics_of_the_end_tables(folder: Path) -> None:
    result = json.loads((folder / "RESULT.json").read_text())
    expected = final_metrics(folder)
    assert (result["status"], result["n_tasks"], result["n_diverged"], result["diverged_repeats"]) == ("done", T, 0, [])
    assert set(result["metrics"]) == set(expected)
    for name, values in expected.items():
        found = result["metrics"][name]
        np.testing.assert_allclose(found["repeats"], values, rtol=1e-9, atol=1e-9, err_msg=name)
        assert found["mean"] == pytest.approx(values.mean(), abs=1e-9)
        assert found["sem"] == pytest.approx(values.std(ddof=1) / 2.0, abs=1e-9)


def test_trials_table_has_a_row_with_the_same_metrics(results: SweepResults, folder: Path) -> None:
    row = results.trials.iloc[0]
    assert (row["trial_id"], row["status"], row["attempts"], row["n_diverged"]) == (folder.name, "done", 1, 0)
    for name, values in final_metrics(folder).items():
        assert row[f"{name}_mean"] == pytest.approx(values.mean(), abs=1e-9)


def test_attempt_and_log_say_how_it_went(folder: Path) -> None:
    attempt = json.loads((folder / "attempts" / "001.json").read_text())
    assert (attempt["attempt"], attempt["outcome"]) == (1, "done")
    log = (folder / "attempts" / "log.txt").read_text()
    for task, part in enumerate(TASKS):
        seen = table(folder / part, "end.parquet")["accuracy"].astype(np.float64).reshape(R, E)[:, : task + 1].mean()
        assert f"task {task + 1} of {T} committed, accuracy on the tasks so far {seen:.4f}" in log


def test_trial_whose_repeats_all_diverge_is_finished_as_diverged(tmp_path: Path) -> None:
    experiment = tiny(optimizer={**tiny()["optimizer"], "learning_rate": 1e30})
    row = clray.run(experiment, output=tmp_path).trials.iloc[0]
    assert (row["status"], row["n_diverged"]) == ("diverged", R)
    assert np.isnan(row["acc_mean"])
    again = clray.run(experiment, output=tmp_path).trials.iloc[0]
    assert (again["status"], again["attempts"]) == ("diverged", 1), "it is finished and not run again"


def test_plain_data_file_and_validated_experiment_are_the_same_trial(results: SweepResults, output: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    with file.open("w") as text:
        YAML(typ="safe").dump(tiny(), text)
    (trial_id,) = results.trial_ids
    given: list[Any] = [file, str(file), results.trial(trial_id).experiment]
    for experiment in given:
        again = clray.run(experiment, output=output)
        assert again.trial_ids == [trial_id]
        assert again.trials.iloc[0]["attempts"] == 1, "what is committed is not run again"


def test_a_trained_model_computes_in_the_precision_of_its_experiment(
    results: SweepResults, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def recorded(precision: str) -> Any:
        asked.append(precision)
        return products_in(precision)

    monkeypatch.setattr("clray.inference.products_in", recorded)
    trial = results.trial(folder.name)
    trial.model(2)(np.zeros((1, D), np.float32))
    assert asked == ["float32"]


def test_numbers_that_count_from_the_end_and_those_that_are_not_there(results: SweepResults, folder: Path) -> None:
    trial = results.trial(folder.name)
    assert all(np.array_equal(array, trial.weights(2)[name]) for name, array in trial.weights(-1).items())
    np.testing.assert_array_equal(trial.representations(-3), trial.representations(0))
    images = np.ones((5, D), np.float32)
    logits, hidden = trial.model(-1, repeat=-1)(images)
    np.testing.assert_allclose(logits, trial.model(2)(images)[0][-1], rtol=1e-5)  # one network and all of them are two programs
    assert (logits.shape, hidden.shape) == ((5, C), (5, H))
    shaped = trial.model(2)(images.reshape(5, 8, 8))[0]
    assert np.array_equal(shaped, trial.model(2)(images)[0])
    for wrong, message in (
        (lambda: trial.model(2)(images.reshape(5, 4, 16, 1)), "images must be"),
        (lambda: trial.model(2)(images.reshape(5, 1, 8, 8)), "images must be"),
        (lambda: trial.weights(-4), "there is no task -4; 3 are committed"),
        (lambda: trial.weights(3), "task_003 is not committed"),
        (lambda: trial.model(2, repeat=9), "there is no repeat 9; repeat is 0 to"),
        (lambda: trial.model(2, log=-9), "there is no log -9; log is 0 to 2, or -3 to -1 from the end"),
        (lambda: trial.model(2)(np.ones((5, D + 1))), r"images must be \(n, 8, 8, 1\) or \(n, 64\), got \(5, 65\)"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()
