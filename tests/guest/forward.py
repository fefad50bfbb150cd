"""A TCP port on the loopback interface that leads to a Unix socket.

A guest reaches the host only by TCP, and the daemon serves its exports by name only on a Unix
socket: this joins the two, for any number of connections, and is otherwise invisible.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CHUNK_BYTES = 256 * 1024


@contextmanager
def forward_to(unix_socket: Path) -> Iterator[int]:
    """A port that leads to `unix_socket`, for the duration; its connections end with it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        forwarder = _Forwarder(listener, unix_socket)
        acceptor = threading.Thread(target=forwarder.accept_all)
        acceptor.start()
        try:
            yield listener.getsockname()[1]
        finally:
            # Wakes accept(), which closing the listener would not.
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            forwarder.hang_up()


class _Forwarder:
    def __init__(self, listener: socket.socket, unix_socket: Path):
        self._listener = listener
        self._unix_socket = unix_socket
        self._open: list[socket.socket] = []
        self._pumps: list[threading.Thread] = []

    def accept_all(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._join(client)

    def _join(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = socket.socket(socket.AF_UNIX)
        self._open += [client, server]
        try:
            server.connect(str(self._unix_socket))
        except OSError:
            # What a client sees of a server that is not there.
            client.shutdown(socket.SHUT_RDWR)
            return
        for source, sink in ((client, server), (server, client)):
            pump = threading.Thread(target=_pump, args=(source, sink))
            self._pumps.append(pump)
            pump.start()

    def hang_up(self) -> None:
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for pump in self._pumps:
            pump.join()
        for end in self._open:
            end.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until the source ends, then end the sink, as a half-closed connection would."""
    with suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
