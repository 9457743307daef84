"""Looks plug-ins up by name: in the explicit tables of their packages, or as ``package.module:attribute``."""

from __future__ import annotations

import functools
import importlib
import sys
import traceback
from pathlib import Path

from clray.errors import ConfigError, did_you_mean
from clray.options import DatasetOptions, LoggerOptions, ModelOptions, OptimizerOptions, PluginOptions, SelectionOptions, StrategyOptions

BASES: dict[str, type[PluginOptions]] = {
    "datasets": DatasetOptions,
    "models": ModelOptions,
    "optimizers": OptimizerOptions,
    "strategies": StrategyOptions,
    "loggers": LoggerOptions,
    "selections": SelectionOptions,
}
PACKAGES = {
    "datasets": "clray.data",
    "models": "clray.models",
    "optimizers": "clray.optimizers",
    "strategies": "clray.strategies",
    "loggers": "clray.loggers",
    "selections": "clray.selection",
}


@functools.cache
def table(kind: str) -> dict[str, tuple[str, str]]:
    """Name to (import string, one-line description) of the plug-ins of one kind that come with clray."""
    found: dict[str, tuple[str, str]] = importlib.import_module(PACKAGES[kind]).TABLE
    return found


def names(kind: str) -> list[str]:
    """Names of the plug-ins of one kind, in the order of their table."""
    return list(table(kind))


def options_class(kind: str, name: str) -> type[PluginOptions]:
    """The options class behind a name.

    Args:
        kind: datasets, models, optimizers, strategies, selections or loggers.
        name: a name of the table, or ``package.module:attribute`` of a class deriving from the kind's base.

    Raises:
        ConfigError: no such plug-in, or what the name leads to is none.
    """
    known = table(kind)
    if name in known:
        return _load(known[name][0])
    if ":" not in name:
        singular = "strategy" if kind == "strategies" else kind[:-1]
        raise ConfigError(f"unknown {singular} {name!r}; {did_you_mean(name, known)}; or package.module:attribute")
    if (cwd := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, cwd)
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever the user's own module does while it is imported
        raise ConfigError(f"cannot load {name!r}: {type(error).__name__}: {error}{raised_at(error)}") from None
    base = BASES[kind]
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{name!r} must be a class that derives from clray.options.{base.__name__}, got {found!r}")
    return found


@functools.cache
def _load(target: str) -> type[PluginOptions]:
    module_name, _, attribute = target.partition(":")
    found: type[PluginOptions] = getattr(importlib.import_module(module_name), attribute)
    return found


def raised_at(error: BaseException, module: str | None = None) -> str:
    """Where in the user's module something failed, in parentheses; empty where the import machinery itself says enough.

    Args:
        module: of the user's, if it is known: what it called may have raised the error.
    """
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename and frame.filename != __file__
    ]
    own = [frame for frame in frames if frame.filename == getattr(sys.modules.get(module or ""), "__file__", None)] or frames
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
