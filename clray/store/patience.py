"""Waits for an object store that does not answer for a while.

The client libraries retry single requests, for some seconds. A store that is away for longer (a lost connection, a gateway that
restarts) is asked again here, with pauses that double up to ten seconds, until ``PATIENCE_SECONDS`` have passed. What a store
answers for good (no permission, no bucket, an object that exists) is never asked again.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE_SECONDS = 90.0
HASTY_SECONDS = 4.0
"""For the first request of a command: an output that cannot be reached at all is said to be so at once."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0

# By name, since the libraries are optional: botocore, aiohttp, requests, google's clients.
_CONNECTION = frozenset(
    {
        "HTTPClientError",
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ClientConnectionError",
        "ClientPayloadError",
        "ServerDisconnectedError",
        "ResponseParserError",
        "IncompleteRead",
        "IncompleteReadError",
        "ChecksumError",
        "TransportError",
    }
)
_FOR_GOOD = frozenset({"SSLError", "ClientConnectorCertificateError", "ProxyConnectionError"})
_STATUSES = frozenset({429, 500, 502, 503, 504})
_CODES = frozenset({"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling"})
_log = logging.getLogger("clray.store")


class Patient:
    """A file system of fsspec whose methods wait for a store that comes back.

    Attributes:
        seconds: how long one call waits in all.
    """

    def __init__(self, filesystem: Any, shown: str, seconds: float | None = None):
        """Wraps a file system.

        Args:
            shown: the root for messages, without credentials.
            seconds: default ``PATIENCE_SECONDS``.
        """
        self.filesystem = filesystem
        self.seconds = PATIENCE_SECONDS if seconds is None else seconds
        self._shown = shown

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.filesystem, name)
        return self._patient(method) if callable(method) else method

    @contextlib.contextmanager
    def hasty(self) -> Iterator[None]:
        """Waits only shortly inside the block."""
        before, self.seconds = self.seconds, min(self.seconds, HASTY_SECONDS)
        try:
            yield
        finally:
            self.seconds = before

    def _patient(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            pause = FIRST_PAUSE_SECONDS
            while True:
                try:
                    return method(*args, **kwargs)
                except Exception as error:
                    left = self.seconds - (time.monotonic() - started)
                    if left <= 0 or not is_transient(error):
                        raise
                    _log.warning("%s does not answer (%s): trying again for %.0f s", self._shown, type(error).__name__, left)
                time.sleep(min(pause, max(left, 0.1)) * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

        return call


def is_transient(error: BaseException | None) -> bool:
    """Whether the same request may succeed later: no answer, or an answer that says so. Looks at causes as well."""
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & _FOR_GOOD:
            return False
        if isinstance(error, (TimeoutError, ConnectionError)) or names & _CONNECTION:
            return True
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status in _STATUSES or response.get("Error", {}).get("Code") in _CODES:
                return True
        code = getattr(error, "code", None)
        if isinstance(code, int) and code in _STATUSES:
            return True
        error = error.__cause__
    return False
