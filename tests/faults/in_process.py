"""Commands in the test's own process, with a limit on their time."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import clray.cli


class Hang(BaseException):
    """A command took too long; nothing catches this."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises ``Hang`` in the body after so many seconds."""

    def late(number: int, frame: Any) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def command(*arguments: str) -> tuple[int, str]:
    """Exit code and errors of one command in this process; other exceptions come out as they are."""
    code, _, err = printed(*arguments)
    return code, err


def printed(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["clray", *arguments])
        try:
            clray.cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()
