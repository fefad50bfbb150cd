"""A client of the block storage API that costs next to nothing: one thread, bare sockets, requests
that were put together beforehand."""

from __future__ import annotations

import http.client
import json
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError, pinned

ANSWER_SECONDS = 30.0
LEAST_SHARE = 0.75
"""Of the wanted rate, to call it a load: neighbours may delay the last answers of a short run."""

_END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True)
class Api:
    """Where the API is, and a token for one tenant of it."""

    port: int
    tenant: str
    token: str

    def get(self, path: str) -> bytes:
        """Build a GET request for what the tenant has at `path`, as bytes."""
        return (
            f"GET /v1.1/{self.tenant}{path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"X-Auth-Token: {self.token}\r\nAccept: application/json\r\n\r\n"
        ).encode()


def authenticate(port: int, credentials_file: Path) -> Api:
    """Get a token for the tenant of the first start."""
    known = json.loads(credentials_file.read_text())
    user = {"username": known["username"], "password": known["password"]}
    body = json.dumps({"auth": {"passwordCredentials": user, "tenantId": known["tenant_id"]}})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", "/v2.0/tokens", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise BenchError(f"no token: {answer.status} {content!r}")
    return Api(port, known["tenant_id"], json.loads(content)["access"]["token"]["id"])


class Connection:
    """A keep-alive connection, made anew when the server ends it between two answers: servers
    bound how many a connection gets."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._request = b""
        self._received = b""
        self._answered = 0
        self.socket = self._connect()

    def _connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self._port), ANSWER_SECONDS)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def close(self) -> None:
        self.socket.close()

    def ask(self, request: bytes) -> None:
        """Send a request."""
        self._request = request
        try:
            self.socket.sendall(request)
        except (BrokenPipeError, ConnectionResetError) as error:
            self._ask_again(error)

    def _ask_again(self, error: OSError | None = None) -> None:
        if self._received or not self._answered:
            raise BenchError("the API hung up") from error
        self._answered = 0
        self.socket.close()
        self.socket = self._connect()
        self.socket.sendall(self._request)

    def receive(self) -> bytes | None:
        """Receive the body of the answer. Return None when more of it is to come; the socket to
        wait for may be another one then. Raises BenchError when the answer is not a success."""
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            self._ask_again()
            return None
        self._received += data
        head, found, body = self._received.partition(_END_OF_HEAD)
        if not found:
            return None
        if not head.startswith(b"HTTP/1.1 200"):
            raise BenchError(f"the API answered {self._received!r}")
        if len(body) < _content_length(head):
            return None
        self._received = b""
        self._answered += 1
        return body


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise BenchError(f"an answer without a length: {head!r}")


@contextmanager
def connections(port: int, count: int) -> Iterator[list[Connection]]:
    """Open so many connections for the duration of the context."""
    with ExitStack() as stack:
        made = [Connection(port) for _ in range(count)]
        for connection in made:
            stack.callback(connection.close)
        yield made


def answers_per_second(api: Api, path: str, seconds: float, count: int, core: int | None) -> float:
    """Measure answers per second, with one request after another on each of `count` connections,
    all at once, for `seconds` or until the first answer, whichever ends later."""
    request = api.get(path)
    with pinned(core), connections(api.port, count) as made, selectors.DefaultSelector() as waiting:
        for connection in made:
            waiting.register(connection.socket, selectors.EVENT_READ, connection)
            connection.ask(request)
        answered, began = 0, time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds or not answered:
            ready = waiting.select(ANSWER_SECONDS)
            if not ready:
                raise BenchError("the API does not answer")
            for key, _ in ready:
                if key.data.receive() is not None:
                    answered += 1
                    key.data.ask(request)
                if key.data.socket is not key.fileobj:
                    waiting.unregister(key.fileobj)
                    waiting.register(key.data.socket, selectors.EVENT_READ, key.data)
        return answered / elapsed


@contextmanager
def steady(api: Api, path: str, rate: float, core: int | None) -> Iterator[threading.Event]:
    """Send `rate` requests a second on one connection for the duration of the context. Late ones
    are made up for. Yields an event that is set once the load is over. Raises BenchError when the
    API did not keep up at all."""
    load = _Steady(api, path, rate, core)
    load.start()
    try:
        yield load.over
    finally:
        load.end()
    if load.error is not None:
        raise load.error
    if load.answered < LEAST_SHARE * rate * load.seconds - 1:
        raise BenchError(f"{load.answered} answers in {load.seconds:.1f} s, not {rate:g} a second")


class _Steady(threading.Thread):
    def __init__(self, api: Api, path: str, rate: float, core: int | None) -> None:
        super().__init__(daemon=True)
        self.answered = 0
        self.seconds = 0.0
        self.error: BenchError | None = None
        self.over = threading.Event()
        self._request = api.get(path)
        self._port = api.port
        self._interval = 1 / rate
        self._core = core
        self._ending = threading.Event()

    def end(self) -> None:
        self._ending.set()
        self.join()

    def run(self) -> None:
        began = time.monotonic()
        try:
            with pinned(self._core), connections(self._port, 1) as (connection,):
                due = began
                while not self._ending.wait(max(0.0, due - time.monotonic())):
                    connection.ask(self._request)
                    while connection.receive() is None:
                        pass
                    self.answered += 1
                    due += self._interval
        except (OSError, BenchError) as error:
            self.error = BenchError(f"the API's load ended: {error}")
        self.seconds = time.monotonic() - began
        self.over.set()
