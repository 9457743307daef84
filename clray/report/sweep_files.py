"""A sweep as a report reads it: every trial with its settings, what became of it, and its metrics over repeats."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from clray.errors import OutputError, UserError, did_you_mean
from clray.metrics.accuracy import mean_and_sem
from clray.metrics.transfer import course_metrics
from clray.report.measure_store import MeasureStore
from clray.report.trial_files import TrialFiles
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.store.reader import read_plain_yaml
from clray.trials.settings import flattened
from clray.trials.status import FINISHED, is_alive, read_status
from clray.trials.table import read_rows, row_of, to_arrow

REMOTE_THREADS = 16
ACCURACY_TABLE = "accuracy.parquet"
ACCURACY_VERSION = "4"

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Advance = Callable[[], None]


@dataclass(frozen=True)
class SweepFiles:
    """A sweep at one moment.

    Attributes:
        trials: a row a trial: the columns of trials.parquet, ``tasks`` (committed, of unfinished trials), ``param.*`` with
            tables taken apart into their keys, and more metrics as ``<metric>_mean``, ``<metric>_sem``.
        repeats: a row a finished trial and repeat: trial_id, repeat, and every metric; NaN where the repeat diverged. Empty
            before ``with_metrics``.
        phases: seconds by phase of the finished trials, by trial id.
        document: sweep.yaml.
        alive: whether a driver works on it now.
    """

    storage: Storage
    name: str
    document: Mapping[str, Any]
    trials: pd.DataFrame
    phases: Mapping[str, Mapping[str, float]]
    alive: bool
    repeats: pd.DataFrame = dataclasses.field(default_factory=lambda: pd.DataFrame(columns=["trial_id", "repeat"]))

    @property
    def varied(self) -> list[str]:
        """Keys that differ between trials."""
        keys = [column.removeprefix("param.") for column in self.trials.columns if column.startswith("param.")]
        return [key for key in keys if self.trials[f"param.{key}"].astype(object).nunique(dropna=False) > 1]

    @property
    def factors(self) -> list[str]:
        """Keys with more than one value among finished trials; those that most of these have come first."""
        finished = self.finished
        return [key for key in self.by_coverage if finished[f"param.{key}"].dropna().nunique() > 1]

    @property
    def by_coverage(self) -> list[str]:
        """Keys that differ between trials and that some finished trial has; those that most of them have come first."""
        n_given = {key: int(self.finished[f"param.{key}"].notna().sum()) for key in self.varied}
        return sorted((key for key, n in n_given.items() if n), key=lambda key: -n_given[key])

    @property
    def metrics(self) -> list[str]:
        """Metrics that at least one trial has."""
        names = [column.removesuffix("_mean") for column in self.trials.columns if column.endswith("_mean")]
        return [name for name in names if self.trials[f"{name}_mean"].notna().any()]

    @property
    def finished(self) -> pd.DataFrame:
        """Rows of the trials with metrics."""
        return self.trials[self.trials["status"] == "done"]

    def trial(self, trial_id: str) -> TrialFiles:
        """The files of one trial. An unambiguous beginning of the id is enough.

        Raises:
            OutputError: no such trial; the message lists them.
        """
        ids = list(self.trials["trial_id"])
        found = [name for name in ids if name.startswith(trial_id)]
        if len(found) != 1:
            near = did_you_mean(trial_id, ids) if len(ids) <= 20 else f"{len(ids)} trials, such as {ids[0]}"
            raise OutputError(f"{self.storage.display}: {'no' if not found else 'more than one'} trial {trial_id!r}; {near}")
        return TrialFiles(self.storage, found[0])


def open_sweep(folder: str) -> SweepFiles:
    """Opens a sweep's folder or URL.

    Raises:
        OutputError: there is no sweep.
    """
    storage, layout = Storage.of(folder), SweepLayout()
    storage.check_reachable()
    document = read_plain_yaml(storage, layout.sweep)
    known = {row["trial_id"]: row for row in read_rows(storage, layout)}
    if not document and not known:
        raise OutputError(f"{storage.display}: no sweep here. Give the folder of one sweep, such as results/quickstart")
    ids = list(known) + [name for name in storage.list_names(layout.trials) if name not in known and name.startswith("t_")]
    alive = is_alive(storage, layout)
    statuses = list(mapped(storage, lambda trial_id: _status(storage, layout, trial_id, alive), ids))
    rows, phases = [], {}
    for trial_id, status in zip(ids, statuses, strict=True):
        row = row_of(trial_id, _settings(known.get(trial_id, {})), status)
        rows.append(row | {"tasks": None if status.status in FINISHED else status.tasks})
        phases[trial_id] = dict((status.result or {}).get("phases", {}))
    trials = to_arrow(rows).to_pandas()
    trials.insert(2, "tasks", pd.array([row["tasks"] for row in rows], dtype="Int64"))
    name = str(document.get("name") or storage.root.rstrip("/").rpartition("/")[2])
    return SweepFiles(storage, name, document, trials, phases, alive)


def mapped(storage: Storage, function: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Iterable[ResultT]:
    """``map`` that waits for many answers of an object store at once."""
    if storage.is_local:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(REMOTE_THREADS) as pool:
        yield from pool.map(function, items)


def with_metrics(sweep: SweepFiles, store: MeasureStore, advance: Advance = lambda: None) -> SweepFiles:
    """The sweep with every metric of ``clray.metrics.transfer`` for its finished trials.

    They are kept in ``report/metrics/accuracy.parquet``, a row a trial and repeat, and computed for what is new.

    Args:
        advance: called once a trial.
    """
    before = store.load(ACCURACY_TABLE, None)
    kept = {} if before is None else dict(iter(before.to_pandas().groupby("key", sort=False)))
    done = [row.trial_id for row in sweep.trials.itertuples() if row.status in FINISHED]
    frames = []
    for frame in mapped(sweep.storage, lambda trial_id: _trial_metrics(sweep.storage, trial_id, kept), done):
        frames.append(frame)
        advance()
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return sweep
    table = pd.concat(frames, ignore_index=True)
    if before is None or not table.equals(before.to_pandas()):
        store.save(ACCURACY_TABLE, ACCURACY_VERSION, pa.Table.from_pandas(table, preserve_index=False))
    return dataclasses.replace(sweep, trials=_joined(sweep.trials, table), repeats=table.drop(columns="key"))


def _trial_metrics(storage: Storage, trial_id: str, kept: Mapping[Any, pd.DataFrame]) -> pd.DataFrame:
    """(R rows) trial_id, key, repeat and metrics; no rows where the trial cannot be read."""
    trial = TrialFiles(storage, trial_id)
    key = f"{ACCURACY_VERSION} {trial_id} {trial.key()}"
    if key in kept:
        return kept[key]
    curves = trial.curves()
    if curves is None or not (curves.eval_tasks < curves.n_tasks).any():
        return pd.DataFrame()
    values = course_metrics(curves.course(), trial.chance_by_task)
    if curves.expert_end is not None:
        values["expert_acc"] = curves.expert_end["accuracy"].mean(axis=0, dtype=np.float64)
    if curves.joint is not None:
        values["joint_acc"] = curves.joint["accuracy"].mean(axis=0, dtype=np.float64)
    values = {name: np.where(curves.diverged, np.nan, metric) for name, metric in values.items()}
    return pd.DataFrame({"trial_id": trial_id, "key": key, "repeat": curves.repeats, **values})


def _joined(trials: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    names = [name for name in table.columns if name not in ("trial_id", "key", "repeat") and f"{name}_mean" not in trials.columns]
    rows = []
    for trial_id, group in table.groupby("trial_id", sort=False):
        row: dict[str, Any] = {"trial_id": trial_id}
        for name in names:
            row[f"{name}_mean"], row[f"{name}_sem"] = mean_and_sem(group[name].to_numpy())
        rows.append(row)
    return trials.merge(pd.DataFrame(rows), on="trial_id", how="left")


def _status(storage: Storage, layout: SweepLayout, trial_id: str, alive: bool) -> Any:
    return read_status(storage, layout.trial(trial_id), alive, commits=not storage.exists(layout.trial(trial_id).result))


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a row of trials.parquet; tables, which are JSON text there, taken apart into dotted keys."""
    settings: dict[str, Any] = {}
    for column, value in row.items():
        if column.startswith("param.") and value is not None:
            for key, part in flattened(column.removeprefix("param."), _parsed(value)):
                settings.setdefault(key, part)
    return settings


def settings_of(sweep: SweepFiles, key: str) -> pd.Series:
    """The value of a dotted key in every trial: a varied one, or one of config.yaml.

    Raises:
        UserError: no trial has it; the message lists the keys.
    """
    if f"param.{key}" in sweep.trials.columns:
        return sweep.trials[f"param.{key}"]
    ids = list(sweep.trials["trial_id"])
    configs = [dict(flattened("", TrialFiles(sweep.storage, trial_id).config)) for trial_id in ids]
    if not any(key in config for config in configs):
        valid = {name for config in configs for name in config} | set(sweep.varied)
        raise UserError(f"no trial has the key {key!r}; {did_you_mean(key, valid)}")
    return pd.Series([_cell(config.get(key)) for config in configs], index=sweep.trials.index)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _parsed(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in "{[":
        try:
            parsed = json.loads(value)
        except ValueError:
            return value
        is_table = isinstance(parsed, dict) or (isinstance(parsed, list) and parsed and all(isinstance(item, dict) for item in parsed))
        return parsed if is_table else value
    return value
