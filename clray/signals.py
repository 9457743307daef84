"""Ends a command in order on SIGINT and SIGTERM: what is committed stays, and the command that resumes is printed."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

from clray.process_tree import descendants, end_processes

GRACE_SECONDS = 8.0
"""A thread that waits for a long computation cannot be stopped; after this the process leaves without it."""

STOPS = (signal.SIGINT, signal.SIGTERM)
EXIT_CODES = tuple(128 + number for number in STOPS)

_started_before_the_end: dict[int, int] = {}
"""What ran when the first signal came: a cluster that is half shut down loses its workers from sight, not from the machine."""


class Stops:
    """What SIGINT and SIGTERM do: before ``begin`` the process leaves at once, after it in order, with exit code 130 or 143.

    In order: an exception unwinds the main thread. A second signal, or the end of the grace, makes the process leave at once.
    """

    def __init__(self) -> None:
        self.code = 0
        self._begun = False
        self._told = False
        self._grace: threading.Timer | None = None
        self._starting = threading.RLock()  # the handler and the thread that notices signals both start the grace

    def begin(self) -> None:
        """From here on there is something to bring to an end."""
        self._begun = True

    def handle(self, number: int, frame: Any) -> None:
        """The signal handler."""
        del frame
        if self.code:
            leave(128 + number)
        self.note(number)
        raise KeyboardInterrupt

    def note(self, number: int) -> None:
        """Remembers the signal and prints how to go on."""
        self.code = 128 + number
        self._tell()
        if not self._begun:
            leave(self.code)
        self.start_grace(number)

    def start_grace(self, number: int) -> None:
        """From here on the process has ``GRACE_SECONDS``; called again, nothing changes."""
        with self._starting:
            if self._grace is not None:
                return
            self._grace = threading.Timer(GRACE_SECONDS, self._leave_late, (number,))
            self._grace.daemon = True
            self._grace.start()
            _started_before_the_end.update(descendants())

    def _leave_late(self, number: int) -> None:
        self._tell()
        leave(128 + number)

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            print(f"interrupted; finished work is kept. To go on: {shlex.join(['clray', *sys.argv[1:]])}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """The end has been reached in order."""
        if self._grace is not None:
            self._grace.cancel()


@contextlib.contextmanager
def resumable() -> Iterator[Stops]:
    """Handles SIGINT and SIGTERM as ``Stops`` says while the body runs."""
    stops = Stops()
    previous = {number: signal.signal(number, stops.handle) for number in STOPS}
    try:
        with _noticed_at_once(stops):
            yield stops
    except BaseException as error:
        # The interrupt may come out as something else: code between here and there turns it into an error of its own, and
        # while Ray connects, its handler exits with the signal's number.
        if not stops.code and isinstance(error, SystemExit) and error.code in STOPS:
            stops.note(int(error.code))
        if not stops.code:
            raise
        raise SystemExit(stops.code) from None
    finally:
        stops.close()
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _noticed_at_once(stops: Stops) -> Iterator[None]:
    """Starts the grace from another thread: Python runs handlers in the main thread only, which may be inside a long compilation."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(reader, 1):
            if number[0] in STOPS:
                stops.start_grace(number[0])
        os.close(reader)

    threading.Thread(target=watch, name="clray-signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)


@contextlib.contextmanager
def kept_signals() -> Iterator[None]:
    """Puts the handlers of SIGINT and SIGTERM back on leaving: Ray sets its own while it connects."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(code: int) -> NoReturn:
    """Ends the process at once, with all that it started: threads may be inside XLA, which does not survive the interpreter's own
    way out."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(Exception):
        end_processes(_started_before_the_end | descendants(), seconds=1.0)
    os._exit(code)
