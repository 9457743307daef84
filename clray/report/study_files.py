"""What a study's trial holds beside its ideal models, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from clray.errors import UserError, did_you_mean
from clray.report.trial_files import TrialFiles
from clray.store import layout as names

WHOLE = "all"
"""What stands for the whole gradient among the names of parameter arrays."""

METRICS = {
    "cosine": "cosine with gradient on all past data",
    "mse": "mean squared difference to gradient on all past data",
    "norm_ratio": "norm relative to gradient on all past data",
}


@dataclass(frozen=True)
class StudyResults:
    """A study at one moment.

    Attributes:
        methods: in the order of its file; those whose similarities are committed.
        metrics: that were asked for.
        similarity: a row a method, fraction, set, ideal model, task and parameter array.
        downstream: a row a method, fraction, repeat, task and evaluated task; None before it is committed or where it was not asked for.
        joined: see docs/memory.md; None as ``downstream``.
    """

    methods: Sequence[str]
    metrics: Sequence[str]
    similarity: pd.DataFrame
    downstream: pd.DataFrame | None
    joined: pd.DataFrame | None

    @property
    def parameters(self) -> list[str]:
        """Names of the parameter arrays from the input of the network to its head."""
        found = [name for name in dict.fromkeys(self.similarity["parameter"]) if name != WHOLE]
        return sorted(found, key=lambda name: (name.startswith("head"), name))

    def metric(self, asked: str) -> str:
        """The metric of this name; the first one for the default of other figures.

        Raises:
            UserError: there is none.
        """
        if asked == "acc":
            return self.metrics[0]
        if asked not in self.metrics:
            raise UserError(f"no metric {asked!r} in this study; {did_you_mean(asked, self.metrics)}")
        return asked


def read_study(trial: TrialFiles) -> StudyResults:
    """Reads the committed tables of a study.

    Raises:
        UserError: the trial is no study, or nothing is there yet.
    """
    memory = trial.config.get("memory")
    if "study" not in trial.config or not isinstance(memory, dict):
        raise UserError(f"{trial.trial_id} is no study (its file has no key study): see docs/memory.md")
    asked = [method.get("label") or str(method["name"]).rpartition(":")[2] for method in memory["methods"]]
    methods = [name for name in asked if trial.has(names.similarity_folder(name), "similarity.parquet")]
    if not methods:
        raise UserError(f"{trial.trial_id}: no similarities are committed yet; see clray status")

    def stacked(folder: str, name: str, those: Sequence[str]) -> pd.DataFrame:
        frames = [trial.table(f"{folder}_{method}", name).to_pandas().assign(method=method) for method in those]
        return pd.concat(frames, ignore_index=True)

    trained = [name for name in asked if trial.has(names.downstream_folder(name), "downstream.parquet")]
    return StudyResults(
        methods,
        list(trial.config["similarity"]),
        stacked("similarity", "similarity.parquet", methods),
        stacked("downstream", "downstream.parquet", trained) if trained else None,
        trial.table(names.JOINED, "joined.parquet").to_pandas() if names.JOINED in trial.commits else None,
    )
