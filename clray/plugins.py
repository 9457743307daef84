"""Looks plug-ins up by name: in the explicit tables of their packages, or as ``package.module:attribute``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from clray.config import DatasetOptions, ModelOptions, OptimizerOptions, PluginOptions, StrategyOptions
from clray.errors import ConfigError, did_you_mean

BASES: dict[str, type[PluginOptions]] = {
    "datasets": DatasetOptions,
    "models": ModelOptions,
    "optimizers": OptimizerOptions,
    "strategies": StrategyOptions,
}
PACKAGES = {
    "datasets": "clray.data",
    "models": "clray.models",
    "optimizers": "clray.optimizers",
    "strategies": "clray.strategies",
}


def table(kind: str) -> dict[str, tuple[str, str]]:
    """Name to (import string, one-line description) of the plug-ins of one kind that come with clray."""
    return importlib.import_module(PACKAGES[kind]).TABLE


def names(kind: str) -> list[str]:
    """Names of the plug-ins of one kind, in the order of their table."""
    return list(table(kind))


def options_class(kind: str, name: str) -> type[PluginOptions]:
    """The options class behind a name.

    Args:
        kind: datasets, models, optimizers or strategies.
        name: a name of the table, or ``package.module:attribute`` of a class deriving from the kind's base.

    Raises:
        ConfigError: no such plug-in, or what the name leads to is none.
    """
    known = table(kind)
    target = known[name][0] if name in known else name
    if ":" not in target:
        raise ConfigError(f"unknown {kind[:-1] if kind != 'strategies' else 'strategy'} {name!r}; {did_you_mean(name, known)}; or package.module:attribute")
    module_name, _, attribute = target.partition(":")
    if name not in known and (cwd := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, cwd)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot load {name!r}: {error}") from None
    base = BASES[kind]
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{name!r} must be a class that derives from clray.config.{base.__name__}, got {found!r}")
    return found
