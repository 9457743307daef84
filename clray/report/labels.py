"""Names that people read: metrics with their units and which end is better, parameters, values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from clray.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: as in trials.parquet, without ``_mean``.
        title: short, for a column or an axis.
        meaning: half a sentence.
        better: "high", "low", or "" where neither is.
        unit: of an axis; empty for a plain number.
    """

    name: str
    title: str
    meaning: str
    better: str = "high"
    unit: str = ""

    @property
    def axis(self) -> str:
        """Label of an axis."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


_ACCURACY = "fraction correct"
_BASE = [
    Metric("acc", "ACC", "accuracy after the last task, mean over tasks", unit=_ACCURACY),
    Metric("forgetting", "forgetting", "best earlier accuracy minus the final one", "low", "accuracy lost"),
    Metric("forgetting_from_first", "forgetting from own end", "accuracy after the own task minus the final one", "low", "accuracy lost"),
    Metric("bwt", "BWT", "final accuracy minus the one after the own task", unit="accuracy gained"),
    Metric("fwt", "FWT", "accuracy just before a task minus that of the untrained network", unit="accuracy gained"),
    Metric("learning_acc", "learning accuracy", "accuracy just after the own task", unit=_ACCURACY),
    Metric("zero_shot", "zero-shot accuracy", "accuracy on tasks not yet trained", unit=_ACCURACY),
    Metric("anytime_acc", "anytime accuracy", "accuracy on the tasks seen so far, mean over the sequence", unit=_ACCURACY),
    Metric("forgetting_slope", "forgetting slope", "change of a task's accuracy for each later task", unit="accuracy per task"),
    Metric("stability_ratio", "stability ratio", "relative change from the own end to the end, -1 to 1"),
    Metric("learning_time", "learning time", "effective time to learn a task", "low", "batches"),
    Metric("largest_dip", "largest dip", "largest drop at any time after the own task", "low", "accuracy lost"),
    Metric("expert_transfer", "transfer vs expert", "learning speed against a fresh network: 0 as fast, negative slower"),
    Metric("expert_acc", "expert ACC", "a fresh network for each task", "", _ACCURACY),
    Metric("joint_acc", "joint ACC", "one network on all tasks at once", "", _ACCURACY),
]
METRICS = {metric.name: metric for metric in _BASE}
SHOWN_FIRST = ("acc", "forgetting", "learning_acc", "bwt", "fwt", "expert_acc", "joint_acc")
"""Metrics whose columns of the trials table are visible before anyone chooses."""

_VARIANTS = {
    "corrected_area_": ("chance-corrected area: ", "under the curve, corrected for chance"),
    "corrected_": ("chance-corrected: ", "0 is guessing, 1 is perfect"),
    "area_": ("area: ", "average over the batches of a task instead of its end"),
}


def metric(name: str) -> Metric:
    """What is known of a metric; variants and metrics of others included."""
    for prefix, (title, meaning) in _VARIANTS.items():
        if name.startswith(prefix):
            base = metric(name.removeprefix(prefix))
            return Metric(name, title + base.title, f"{base.meaning}; {meaning}", base.better, base.unit)
    return METRICS.get(name, Metric(name, name.replace("_", " "), "", ""))


def find_metric(given: str, available: Iterable[str]) -> str:
    """The name of a metric from what a person typed: any case, with - or spaces for _.

    Raises:
        UserError: there is no such metric; the message lists them.
    """
    names = list(available)
    wanted = given.strip().lower().replace("-", "_").replace(" ", "_").removesuffix("_mean")
    if wanted in names:
        return wanted
    by_title = {metric(name).title.lower().replace(" ", "_").replace("-", "_"): name for name in names}
    if wanted in by_title:
        return by_title[wanted]
    raise UserError(f"no metric {given!r} in these results; {did_you_mean(wanted, names)}")


def short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each dotted key, or as many more as it takes to be unambiguous and to say what is named."""
    short = []
    for key in keys:
        parts = key.split(".")
        n = next(
            (n for n in range(1, len(parts)) if parts[-n] not in ("name", "n") and sum(_ends_with(k, parts[-n:]) for k in keys) == 1),
            len(parts),
        )
        short.append(".".join(parts[-n:]))
    return short


def _ends_with(key: str, parts: Sequence[str]) -> bool:
    return key.split(".")[-len(parts) :] == list(parts)


def show_value(value: Any) -> str:
    """A parameter's value, short; empty for a missing one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:.4g}" if abs(value) < 1e4 or value != int(value) else f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def show_mean(mean: Any, sem: Any = None, digits: int = 3) -> str:
    """``0.743 ± 0.035``; an empty string for no value."""
    if mean is None or math.isnan(mean):
        return ""
    digits = digits if abs(mean) < 10 else 1
    text = f"{mean:z.{digits}f}"
    return text if sem is None or math.isnan(sem) else f"{text} ± {sem:.{digits}f}"


def show_settings(keys: Sequence[str], values: Sequence[Any]) -> str:
    """``learning_rate 0.1, hidden [64]``."""
    shown = [f"{name} {text}" for name, value in zip(short_names(keys), values, strict=True) if (text := show_value(value))]
    return ", ".join(shown)


def count(n: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
