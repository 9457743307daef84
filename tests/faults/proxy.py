"""An HTTP proxy in front of a server on loopback that breaks things on purpose, one connection at a time.

It speaks HTTP/1.1 without keep-alive, so each request is a connection of its own and one fault hits one request.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

ERROR_BODY = b"<Error><Code>InternalError</Code><Message>broken on purpose</Message></Error>"
ERROR = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: "
    + str(len(ERROR_BODY)).encode()
    + b"\r\n\r\n"
    + ERROR_BODY
)


@dataclass(frozen=True)
class Request:
    """What a fault is chosen by."""

    method: str
    path: str
    number: int


Choose = Callable[[Request], str]
"""``""`` (no fault), ``error`` (500, the server sees nothing), ``error after`` (the server did it, the client hears 500), ``lost``
(the server did it, the client hears nothing), ``cut`` (half of the reply), ``half`` (the server gets half of the request),
``hang`` (no answer until the client gives up)."""


def now_and_then(seed: int, share: float, kinds: tuple[str, ...]) -> Choose:
    """Every request is broken with this probability."""
    generator = random.Random(seed)
    lock = threading.Lock()

    def choose(request: Request) -> str:
        del request
        with lock:
            return generator.choice(kinds) if generator.random() < share else ""

    return choose


class FaultyProxy:
    """A context manager; ``url`` is where clients go.

    Attributes:
        choose: which fault a request meets.
        seen: how often each fault was put in.
        requests: (method, path) in order.
    """

    def __init__(self, target: tuple[str, int]):
        self._target = target
        self.choose: Choose = lambda request: ""
        self.seen: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []
        self._down_until = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._listener = self._listen(0)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._listener.close()
        self._thread.join()

    def lose_connection(self, seconds: float) -> None:
        """Nothing listens for so long: connections are refused."""
        self._down_until = time.monotonic() + seconds

    @staticmethod
    def _listen(port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
        listener.settimeout(0.05)
        return listener

    def _serve(self) -> None:
        while not self._stop.is_set():
            if time.monotonic() < self._down_until:
                self._listener.close()
                while time.monotonic() < self._down_until and not self._stop.wait(0.05):
                    pass
                self._listener = self._listen(self.port)
            with contextlib.suppress(TimeoutError, OSError):
                client, _ = self._listener.accept()
                threading.Thread(target=self._handle, args=(client,), daemon=True).start()

    def _handle(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):
            client.settimeout(30)
            head, body = _read_request(client)
            method, path = head.split(b" ", 2)[:2]
            with self._lock:
                request = Request(method.decode(), path.decode(), len(self.requests))
                self.requests.append((request.method, request.path))
                fault = self.choose(request)
                if fault:
                    self.seen[fault] += 1
            if fault == "error":
                client.sendall(ERROR)
                return
            if fault == "hang":
                client.settimeout(None)
                client.recv(1)
                return
            if fault == "half":
                with socket.create_connection(self._target, timeout=30) as server:
                    server.sendall(head + body[: len(body) // 2])
                return
            reply = self._forward(head + body)
            if fault == "lost":
                return
            client.sendall(ERROR if fault == "error after" else reply[: len(reply) // 2] if fault == "cut" else reply)

    def _forward(self, request: bytes) -> bytes:
        with socket.create_connection(self._target, timeout=30) as server:
            server.sendall(request)
            parts = []
            while part := server.recv(2**16):
                parts.append(part)
        return b"".join(parts)


def _read_request(client: socket.socket) -> tuple[bytes, bytes]:
    """The head of a request, made to close the connection afterwards, and its body."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        part = client.recv(2**16)
        if not part:
            raise ValueError("no request")
        data += part
    head, _, rest = bytes(data).partition(b"\r\n\r\n")
    body = bytearray(rest)
    lines = head.split(b"\r\n")
    headers = {line.partition(b":")[0].strip().lower(): line.partition(b":")[2].strip() for line in lines[1:]}
    if headers.get(b"expect", b"").lower() == b"100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    chunked = b"chunked" in headers.get(b"transfer-encoding", b"").lower()
    n_bytes = int(headers.get(b"content-length", b"0"))
    while not body.endswith(b"\r\n\r\n") if chunked else len(body) < n_bytes:
        part = client.recv(2**20)
        if not part:
            raise ValueError("half a request")
        body += part
    kept = [line for line in lines if line.partition(b":")[0].strip().lower() not in (b"connection", b"expect")]
    return b"\r\n".join([*kept, b"Connection: close"]) + b"\r\n\r\n", bytes(body)
