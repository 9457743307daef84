"""Finds a sweep file and the published numbers beside it: ``NAME.yaml`` and ``NAME.published.yaml``."""

from __future__ import annotations

import os
from pathlib import Path

from clray.errors import ConfigError, did_you_mean

SHIPPED = Path(__file__).with_name("papers")
OWN = Path("sweeps/papers")
SUFFIX = ".published.yaml"


def known_tables() -> dict[str, Path]:
    """Name to sweep file: those that come with clray, and those of ./sweeps/papers, which go first."""
    files = [file for folder in (SHIPPED, OWN) for file in sorted(folder.glob(f"*{SUFFIX}"))]
    sweeps = [file.with_name(f"{file.name.removesuffix(SUFFIX)}.yaml") for file in files]
    return {sweep.stem: sweep for sweep in sweeps if sweep.is_file()}


def find_files(name: str) -> tuple[Path, Path]:
    """The sweep file and the file of its published numbers.

    Args:
        name: a name of ``known_tables``, or the path of a sweep file.

    Raises:
        ConfigError: there is no such table; the message lists the known ones.
    """
    known = known_tables()
    if name in known:
        return known[name], _published(known[name])
    if not name.endswith((".yaml", ".yml")) and os.sep not in name:
        raise ConfigError(
            f"no published table {name!r}; {did_you_mean(name, known)}. A sweep file of your own is given by its path, with the published "
            f"numbers in NAME{SUFFIX} beside it"
        )
    sweep = Path(name)
    if name.endswith(SUFFIX):
        raise ConfigError(f"{name}: give the sweep file that these numbers belong to, {name.removesuffix(SUFFIX)}.yaml")
    if not sweep.is_file():
        raise ConfigError(f"{name}: no such file; tables that come with clray are given by name alone: {', '.join(known)}")
    if not _published(sweep).is_file():
        raise ConfigError(f"{name}: the published numbers to compare with are missing: they are read from {_published(sweep)}")
    return sweep, _published(sweep)


def _published(sweep: Path) -> Path:
    return sweep.with_name(f"{sweep.stem}{SUFFIX}")
