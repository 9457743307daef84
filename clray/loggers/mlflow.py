"""MLflow: one run a trial, found again by its tag ``clray.trial``, in the experiment named after the project."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from clray.loggers.base import Point, TrialRun
from clray.loggers.tensorboard import flat
from clray.options import LoggerOptions

TRIAL_TAG = "clray.trial"
TASKS_TAG = "clray.tasks"
METRICS_A_CALL = 1000
PARAMS_A_CALL = 100
STATUS = {"done": "FINISHED", "diverged": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MLflow(LoggerOptions):
    """Options of the logger."""

    needs: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy")

    project: str | None = Field(None, description="name of the MLflow experiment; default: the name of the sweep")
    tracking_uri: str | None = Field(None, description="default: $MLFLOW_TRACKING_URI, else mlflow.db in the sweep's folder")

    def build(self) -> MLflowRun:
        return MLflowRun(self)


class MLflowRun:
    """See ``clray.loggers.base.Logger``."""

    def __init__(self, options: MLflow):
        self._options = options

    def begin(self, run: TrialRun) -> int:
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._run = run
        self._client = MlflowClient(tracking_uri=tracking_uri(self._options.tracking_uri, run))
        experiment = self._experiment(self._options.project or run.sweep)
        found = self._client.search_runs([experiment], f"tags.`{TRIAL_TAG}` = '{run.trial_id}'", max_results=1)
        self._doubtful = bool(found)  # what comes next may be there in part
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return int(found[0].data.tags.get(TASKS_TAG, "0"))
        tags = dict(tag.partition("=")[::2] for tag in self._options.tags)
        self._id = self._client.create_run(experiment, tags={**tags, TRIAL_TAG: run.trial_id}, run_name=run.trial_id).info.run_id
        self._log_params(run.config)
        return 0

    def log(self, task: int, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric, RunTag

        known: dict[str, set[int]] = {}
        if self._doubtful:
            keys = {key for point in points for key in point.values}
            known = {key: {metric.step for metric in self._client.get_metric_history(self._id, key)} for key in keys}
            self._doubtful = False
        metrics = [
            Metric(key, value, int(point.time * 1000), point.step)
            for point in points
            for key, value in point.values.items()
            if point.step not in known.get(key, ())
        ]
        for start in range(0, len(metrics), METRICS_A_CALL):
            self._client.log_batch(self._id, metrics=metrics[start : start + METRICS_A_CALL], synchronous=True)
        self._client.log_batch(self._id, tags=[RunTag(TASKS_TAG, str(task + 1))], synchronous=True)

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if metrics:
            now = int(time.time() * 1000)
            final = [Metric(f"final/{key}", value, now, self._run.n_batches) for key, value in metrics.items()]
            self._client.log_batch(self._id, metrics=final, synchronous=True)
        self._client.set_terminated(self._id, status=STATUS[status])

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # another worker was faster
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _log_params(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)) for key, value in flat(config)]
        for start in range(0, len(params), PARAMS_A_CALL):
            self._client.log_batch(self._id, params=params[start : start + PARAMS_A_CALL], synchronous=True)


def tracking_uri(given: str | None, run: TrialRun) -> str:
    """Where the run goes; None in the options leaves it to MLflow's own variable, then to a file beside the results."""
    found = given or os.environ.get("MLFLOW_TRACKING_URI")
    if found:
        return found
    if not run.storage.is_local:
        raise RuntimeError(f"{run.storage.display} cannot hold a database: give tracking_uri, or set MLFLOW_TRACKING_URI")
    return f"sqlite:///{run.storage.local_path('mlflow.db')}"
