"""trials.parquet: fixed columns, swept values as numbers where all are, rows of trials that are gone kept as long as their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clray.store.filesystem import Storage
from clray.store.layout import TRIALS_SCHEMA, SweepLayout
from clray.trials.status import TrialStatus
from clray.trials.table import METRICS, TrialsTable, read_rows, row_of, to_arrow

LAYOUT = SweepLayout()


def row(trial_id: str = "t_0000000000", **params: Any) -> dict[str, Any]:
    """A pending trial with swept values."""
    return row_of(trial_id, params, TrialStatus("pending"))


def param(*values: Any) -> tuple[pa.DataType, list[Any]]:
    """Type and content of the column of one swept key."""
    column = to_arrow([row(f"t_{i}", x=value) for i, value in enumerate(values)])["param.x"]
    return column.type, column.to_pylist()


@pytest.mark.parametrize(
    ("values", "kind", "column"),
    [
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        ([1, None], pa.float64(), [1.0, None]),
        ([1e-5, 1e-300], pa.float64(), [1e-5, 1e-300]),
        ([True, False], pa.string(), ["true", "false"]),
        ([1, True], pa.string(), ["1", "true"]),
        (["relu", "tanh"], pa.string(), ["relu", "tanh"]),
        ([5, "all"], pa.string(), ["5", "all"]),
        ([[32, 32], [8]], pa.string(), ["[32,32]", "[8]"]),
        ([{"name": "sgd", "learning_rate": 1e-5}], pa.string(), ['{"learning_rate":1e-05,"name":"sgd"}']),
    ],
    ids=str,
)
def test_a_swept_key_is_a_column_of_numbers_where_all_values_are(values: list[Any], kind: pa.DataType, column: list[Any]) -> None:
    assert param(*values) == (kind, column)


def test_counts_that_another_tool_made_floats_are_counts_again() -> None:
    rows = [{"trial_id": f"t_{i}", "status": "done", "attempts": 1.0, "n_diverged": given} for i, given in enumerate((2.0, None, 1))]
    assert to_arrow(rows)["n_diverged"].to_pylist() == [2, None, 1]


def test_columns_are_fixed_then_parameters_then_metrics() -> None:
    done = TrialStatus("done", 2, 1, result={"n_diverged": 1, "seconds": 2.5, "metrics": {"acc": {"mean": 0.5, "sem": None}}})
    table = to_arrow([row_of("t_1", {"b": 1, "a": "x"}, done), row("t_2", a="y")])
    assert table.column_names[: len(TRIALS_SCHEMA)] == TRIALS_SCHEMA.names
    assert table.column_names[len(TRIALS_SCHEMA) : len(TRIALS_SCHEMA) + 2] == ["param.a", "param.b"]
    expected = [f"{name}_{part}" for name in METRICS for part in ("mean", "sem")]
    assert table.column_names[len(TRIALS_SCHEMA) + 2 :] == expected
    first, second = table.to_pylist()
    assert (first["status"], first["n_diverged"], first["seconds"], first["acc_mean"], first["acc_sem"]) == ("done", 1, 2.5, 0.5, None)
    assert (second["status"], second["n_diverged"], second["param.b"], second["acc_mean"]) == ("pending", None, None, None)


def test_a_metric_of_ones_own_gets_columns_after_clrays() -> None:
    result = {"metrics": {"zeal": {"mean": 1.0, "sem": 0.1}, "acc": {"mean": 0.5, "sem": 0.2}}}
    names = to_arrow([row_of("t_1", {}, TrialStatus("done", result=result))]).column_names
    assert names.index("acc_mean") < names.index("learning_acc_sem") < names.index("zeal_mean")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A sweep's folder in which two trials have folders."""
    storage = Storage.of(tmp_path / "sweep")
    for trial_id in ("t_1", "t_2"):
        storage.replace_bytes(LAYOUT.trial(trial_id).config, b"{}")
    return storage


def test_rows_stay_while_their_folders_do(storage: Storage) -> None:
    first = TrialsTable(storage, LAYOUT)
    for trial_id, rate in (("t_1", 0.1), ("t_2", 0.2), ("t_3", 0.3)):
        first.rows[trial_id] = row(trial_id, rate=rate)
    first.write()
    second = TrialsTable(storage, LAYOUT)
    assert list(second.rows) == ["t_1", "t_2"]  # t_3 never began
    second.rows["t_2"] = row("t_2", rate=0.5)
    second.write()
    assert [(found["trial_id"], found["param.rate"]) for found in read_rows(storage, LAYOUT)] == [("t_1", 0.1), ("t_2", 0.5)]


def test_values_keep_their_text_when_the_table_is_written_again(storage: Storage) -> None:
    for _ in range(3):
        table = TrialsTable(storage, LAYOUT)
        table.rows.setdefault("t_1", row("t_1", x=[8, 8]))
        table.rows["t_2"] = row("t_2", x=[16])
        table.write()
    assert [found["param.x"] for found in read_rows(storage, LAYOUT)] == ["[8,8]", "[16]"]


def test_a_damaged_table_counts_as_none(storage: Storage) -> None:
    assert read_rows(storage, LAYOUT) == []
    storage.replace_bytes(LAYOUT.trials_table, b"PAR1 and then nothing")
    assert read_rows(storage, LAYOUT) == []
    TrialsTable(storage, LAYOUT).write()
    assert pq.read_table(Path(storage.root, "trials.parquet")).num_rows == 0


def test_what_is_written_in_all_does_not_grow_with_the_square_of_the_trials(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials end at a steady rate, and a write takes as long as the table is large: writes are 2% of the time at any size."""
    clock, written = 0.0, 0
    monkeypatch.setattr("clray.trials.table.time.monotonic", lambda: clock)

    def replace(path: str, data: bytes, new_folder: bool = True) -> None:
        nonlocal clock, written
        clock += len(table.rows) * 1e-3
        written += len(table.rows)

    monkeypatch.setattr(storage, "replace_bytes", replace)
    monkeypatch.setattr("clray.trials.table.to_arrow", lambda rows: pa.table({"n": [len(rows)]}))
    totals = {}
    for n_trials in (4000, 8000):
        table, clock, written = TrialsTable(storage, LAYOUT), 0.0, 0
        table.write()
        for number in range(n_trials):
            clock += 0.25
            table.put(row(f"t_{number}"))
        assert written * 1e-3 <= 0.025 * clock
        totals[n_trials] = written
    assert totals[8000] < 2.6 * totals[4000]  # four times as much, were it the square
