"""What may be at the other end of a QMP socket and is not a QEMU in good health."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .qemu import listening

GREETING = b'{"QMP": {"version": {"qemu": {}, "package": ""}, "capabilities": []}}'

Talk = Callable[[BinaryIO], None]


@contextmanager
def peer(path: Path, talk: Talk) -> Iterator[None]:
    """Somebody at `path` who takes one client and talks; it hangs up when it has finished."""

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb", buffering=0) as stream:
                talk(stream)  # type: ignore[arg-type]

    with listening(path) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def greeted(*lines: bytes, silent: bool = False) -> Talk:
    """Greets, accepts the capabilities, takes a command, and says `lines`; `silent`: then it stays
    until the client goes."""

    def talk(stream: BinaryIO) -> None:
        stream.write(GREETING + b"\r\n")
        stream.read(4096)
        stream.write(b'{"return": {}}\r\n')
        stream.read(4096)
        for line in lines:
            stream.write(line + b"\r\n")
        if silent:
            stay(stream)

    return talk


def stay(stream: BinaryIO) -> None:
    """Say nothing (more) until the client goes."""
    while stream.read(4096):
        pass


def said(*lines: bytes) -> Talk:
    """Says `lines` at once, and hangs up."""

    def talk(stream: BinaryIO) -> None:
        for line in lines:
            stream.write(line + b"\r\n")

    return talk
