"""Errors that a user can cause. Everything else that escapes clray is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Base of all errors whose cause is the user's input or resources.

    The message is complete: it says what was given, what is valid and how to go on. The command line prints it
    without a traceback and exits with ``exit_code``.
    """

    exit_code = 2


class ConfigError(UserError):
    """An experiment or sweep file, or a value given with ``--set``, is not valid."""


class DataError(UserError):
    """Data files are missing, truncated or do not fit the experiment."""


class OutputError(UserError):
    """The output directory cannot be written or read, or holds something else."""


class ResourceError(UserError):
    """The cluster or machine cannot give what the sweep asks for."""


class HeldError(UserError):
    """Another driver works on the folder."""

    exit_code = 1


class LeaseLostError(HeldError):
    """The folder was taken over by another driver, or removed, while this one worked on it."""


class AlreadyCommittedError(Exception):
    """Another attempt committed this folder first; its files stay and ours are dropped."""


LONGEST_NAME = 200
"""Characters that are compared: the comparison takes time with the square."""


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """The tail of an error message: the nearest valid name, if one is near, and all valid ones."""
    names = sorted(valid)
    by_lower = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(given[:LONGEST_NAME].lower(), by_lower, n=1, cutoff=0.6)
    guesses = [*_by_initials(given.lower(), names), *(by_lower[name] for name in near), *_cut_short(given.lower(), names)]
    guess = f"did you mean {guesses[0]!r}? " if guesses else ""
    return f"{guess}valid: {', '.join(names) if names else '(none)'}"


def _by_initials(given: str, names: Iterable[str]) -> list[str]:
    """Names whose last dotted part is of words with these initials, as ``lr`` is of ``learning_rate``; of the same table first."""
    table, _, own = given.rpartition(".")
    parts = [(name, *name.lower().rpartition(".")[::2]) for name in names]
    found = [(name, outer) for name, outer, last in parts if "_" in last and own == "".join(word[:1] for word in last.split("_"))]
    return [name for name, outer in sorted(found, key=lambda each: each[1] != table)]


def _cut_short(given: str, names: Iterable[str]) -> list[str]:
    """Names whose last dotted part begins with what is given, or is its beginning, as ``acc`` is of ``accuracy``."""
    own = given.rpartition(".")[2]
    lasts = [(name, name.lower().rpartition(".")[2]) for name in names]
    return [name for name, last in lasts if min(len(last), len(own)) > 2 and (last.startswith(own) or own.startswith(last))]
