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
    guesses = [by_lower[name] for name in near] or [name for name in names if _abbreviates(given.lower(), name.lower())][:1]
    guess = f"did you mean {guesses[0]!r}? " if guesses else ""
    return f"{guess}valid: {', '.join(names) if names else '(none)'}"


def _abbreviates(given: str, name: str) -> bool:
    """Whether the last part of a dotted name is what is given cut short, the other way round, or its words' initials: ``lr``."""
    last = name.rpartition(".")[2]
    longer, shorter = sorted((given, last), key=len, reverse=True)
    return (len(shorter) > 2 and longer.startswith(shorter)) or ("_" in last and given == "".join(word[:1] for word in last.split("_")))
