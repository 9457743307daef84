"""From a sweep or experiment file to a checked plan: every trial validated, its sizes known, nothing started yet."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clray.config import Experiment, Sweep
from clray.data.cache import check, describe
from clray.data.source import DatasetInfo
from clray.documents import parse_experiment, parse_sweep, parse_value, read_sweep, read_yaml
from clray.errors import ConfigError
from clray.options import LoggerOptions
from clray.places import Document, join_place
from clray.sizes import Sizes, sizes_of
from clray.study.config import Study
from clray.trials.expand import Trial, axis_place, count_points, expand, fingerprint_at, reaches_into, swept_keys


@dataclass(frozen=True)
class Plan:
    """What a command is about to do.

    Attributes:
        sweep: the sweep; one point without axes for ``clray run``.
        document: the sweep as resolved (overrides applied, experiment in place), plain data for sweep.yaml.
        trials: in the order of expansion.
        sizes: trial id to sizes; None where the data set says nothing before it is prepared, or the model cannot be built.
        source: file name for messages and for the command that resumes.
    """

    sweep: Sweep
    document: dict[str, Any]
    trials: tuple[Trial, ...]
    sizes: Mapping[str, Sizes | None]
    source: str

    @property
    def name(self) -> str:
        """Name of the sweep and of its folder."""
        return self.sweep.name

    @property
    def n_points(self) -> int:
        """Points of the sweep, before equal ones are merged."""
        return count_points(self.sweep)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``["a.b=1", ...]`` to ``{"a.b": 1}``; values are YAML.

    Raises:
        ConfigError: an item has no ``=``.
    """
    values = {}
    for item in settings:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item!r}: expected dotted.key=value, such as optimizer.learning_rate=0.03")
        values[key.strip()] = parse_value(text, f"--set {item}")
    return values


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """What a plan is made of stays, and looking for garbage in ten thousand trials again and again takes a sixth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@_no_garbage()
def plan_sweep(source: str | Path | Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> Plan:
    """Plans a sweep from a file, or from plain data of the same form.

    Raises:
        ConfigError: anything about the file, the overrides or any point is not valid.
        DataError: local data files are missing or damaged.
    """
    document, base = _read(source)
    document, base = _override(document, base, settings or {})
    sweep = parse_sweep(document)
    for key in settings or {}:
        swept = next((axis for axis in swept_keys(sweep) if reaches_into(key, axis)), None)
        if swept:
            raise ConfigError(f"--set {key}: the sweep varies {swept} itself; take it out of the sweep or leave --set away")
    trials = tuple(expand(sweep, base, fingerprint, document))
    return Plan(sweep, document.data, trials, _sizes(trials, base, document), document.source)


def plan_run(source: str | Path | Mapping[str, Any] | Experiment, settings: Mapping[str, Any] | None = None) -> Plan:
    """Plans one experiment as a sweep of one point. Of a sweep file, its base experiment is taken without the axes."""
    if isinstance(source, Experiment):
        base = Document("<Experiment>", source.plain())
    elif isinstance(source, (str, Path)):
        base = read_yaml(source)
        if "experiment" in base.data:
            outer, base = read_sweep(source)
            if "name" not in base.data and "name" in outer.data:
                base = base.override({"name": outer.data["name"]}, outer.where(("name",)))
        if "name" not in base.data:
            base = base.override({"name": Path(source).stem}, f"{source}: file name")
    else:
        base = Document("<experiment>", dict(source))
    base = base.override(settings or {}, {key: f"--set {key}" for key in settings or {}})
    experiment = parse_experiment(base)
    trial = Trial(experiment.trial_id(fingerprint_at(base, fingerprint, experiment.dataset)), {}, experiment)
    sweep = Sweep(name=experiment.name, experiment=base.data)
    resolved = {"name": experiment.name, "experiment": base.data}
    return Plan(sweep, resolved, (trial,), _sizes((trial,), base, base), base.source)


def fingerprint(options: Any) -> str | None:
    """The data set's own fingerprint, where it reads files that people own."""
    from clray.data.cache import asked

    return asked(options, "fingerprint", (str, type(None)))


def _read(source: str | Path | Mapping[str, Any]) -> tuple[Document, Document]:
    if isinstance(source, (str, Path)):
        return read_sweep(source)
    data = dict(source)
    if isinstance(data.get("experiment"), str):
        data["experiment"] = read_yaml(data["experiment"]).data
    if not isinstance(data.get("experiment"), dict):
        raise ConfigError("<sweep>: experiment: must be a table or the path of an experiment file")
    document = Document("<sweep>", data)
    return document, document.inner("experiment")


def _override(document: Document, base: Document, settings: Mapping[str, Any]) -> tuple[Document, Document]:
    base = base.override(settings, {key: f"--set {key}" for key in settings})
    return dataclasses.replace(document, data=document.data | {"experiment": base.data}), base


def _sizes(trials: Sequence[Trial], base: Document, document: Document) -> dict[str, Sizes | None]:
    for trial in trials:
        for logger in trial.experiment.loggers:
            if missing := missing_package(logger):
                raise _located(ConfigError(f"loggers: {missing}"), base, document, trial)
    infos: dict[Any, DatasetInfo | None] = {}
    sizes: dict[str, Sizes | None] = {}
    checked: dict[Any, bool] = {}
    for trial in trials:
        options = trial.experiment.dataset
        try:
            if options not in infos:
                check(options)
                infos[options] = describe(options)
            if isinstance(trial.experiment, Study) and trial.experiment.ideal_models:
                from clray.study.adopt import find_ideal_models

                find_ideal_models(trial.experiment)
            info = infos[options]
            found = sizes_of(trial.experiment, info) if info else None
            sizes[trial.trial_id] = found if found and _can_be_built(trial.experiment, found, checked) else None
        except ConfigError as error:
            raise _located(error, base, document, trial) from None
    return sizes


@functools.cache
def missing_package(options: LoggerOptions) -> str | None:
    """What to install for a logger, None where all is there."""
    missing = [name for name in options.needs if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    install = f"; pip install 'clray[{options.name}]', or take it out" if ":" not in options.name else ""
    return f"{options.name} needs {', '.join(missing)}, not installed here{install}"


def _can_be_built(experiment: Experiment, sizes: Sizes, checked: dict[Any, bool]) -> bool:
    """Whether the model can be built for images of this shape, which takes shapes alone; False where it fails inside.

    clray's own models are looked at once for each shape, since nothing else can be wrong with them.

    Raises:
        ConfigError: the model says that it does not take such images.
    """
    options = experiment.model.structure()
    key = options if ":" in options.name else type(options), sizes.input_shape, sizes.n_outputs if ":" in options.name else 0
    if key not in checked:
        from clray.models.pure import pure_model

        try:
            pure_model(options, sizes.input_shape, sizes.n_outputs)
            checked[key] = True
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith("model.") else f"model: {text}") from None
        except Exception:  # a bug in a model of the user's own: its trial will fail, with a traceback, and stop no other
            checked[key] = False
    return checked[key]


def _located(error: ConfigError, base: Document, document: Document, trial: Trial) -> ConfigError:
    """An error about sizes starts with its dotted key; says where that was written, and at which point of the sweep."""
    text = str(error)
    axis = next((path for key, path in trial.paths.items() if re.match(rf"{re.escape(key)}\b", text)), None)
    point = ", ".join(f"{key}={value}" for key, value in trial.params.items())
    placed = join_place(axis_place(document, axis), text) if axis else base.locate(text)
    return ConfigError(placed + (f" (at {point})" if point else ""))
