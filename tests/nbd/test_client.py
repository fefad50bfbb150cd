"""The client against servers that answer from a script: all kinds of replies, and wrong ones."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bockd.errors import BockdError, DeviceError, NoSpaceError, UnavailableError
from bockd.nbd.client import Export

GREETING = b"NBDMAGICIHAVEOPT" + b"\0\x03"
SIZE = 1 << 20
# From proto.md: option reply magic, option, type, length.
ACK = [struct.pack(">QIII", 0x3E889045565A9, option, 1, 0) for option in (8, 10, 7)]
INFO = struct.pack(">QIIIHQH", 0x3E889045565A9, 7, 3, 12, 0, SIZE, 1)
CONTEXT = struct.pack(">QIIII", 0x3E889045565A9, 10, 4, 19, 1) + b"base:allocation"
AGREED = GREETING + ACK[0] + CONTEXT + ACK[1] + INFO + ACK[2]
NEGOTIATION_BYTES = 4 + 16 + (16 + 4 + 1 + 4 + 4 + 15) + (16 + 4 + 1 + 2)


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    """A simple reply."""
    return struct.pack(">IIQ", 0x67446698, error, cookie) + data


def chunk(cookie: int, kind: int, payload: bytes, *, done: bool = True) -> bytes:
    """A chunk of a structured reply."""
    return struct.pack(">IHHQI", 0x668E33EF, done, kind, cookie, len(payload)) + payload


def data(cookie: int, offset: int, content: bytes, *, done: bool = True) -> bytes:
    """A chunk of data."""
    return chunk(cookie, 1, struct.pack(">Q", offset) + content, done=done)


@contextmanager
def answering(tmp_path: Path, script: bytes, at_once: int = 1 << 20) -> Iterator[Path]:
    """A socket whose server sends `script`, `at_once` bytes at a time, and hangs up when the client
    has."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):  # the client may leave at once
                for begin in range(0, len(script), at_once):
                    connection.sendall(script[begin : begin + at_once])
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

        server = threading.Thread(target=serve)
        server.start()
        yield path
        server.join()


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_replies_of_each_kind(tmp_path: Path, at_once: int) -> None:
    script = AGREED + data(2, 10, b"second") + data(1, 3, b"fi", done=False)
    status = struct.pack(">5I", 1, 4096, 3, 8192, 0)
    script += chunk(3, 5, status) + data(1, 5, b"rst", done=False) + chunk(1, 0, b"")
    script += simple(4) + simple(5, 0, b"simply")
    with answering(tmp_path, script, at_once) as path, Export(str(path), "v") as export:
        assert export.size_bytes == SIZE
        export.read(3, 5)
        export.read(10, 6)
        export.status(0, SIZE)
        export.flush()
        export.read(0, 6)
        assert (export.pending_bytes, export.asks_status, export.flushes) == (17, True, True)
        got = []
        while export.pending:
            part = export.receive()
            content = bytes(export.content[: part.length])
            got.append((part.request.command, part.offset, content, part.extents, part.last))
        assert got == [
            (0, 10, b"second", (), True),
            (0, 3, b"fi", (), False),
            (7, 0, b"", [(4096, True), (8192, False)], True),
            (0, 5, b"rst", (), False),
            (0, 0, b"", (), True),
            (3, 0, b"", (), True),
            (0, 0, b"simply", (), True),
        ]
        assert (export.pending_bytes, export.asks_status, export.flushes) == (0, False, False)


@pytest.mark.parametrize(
    ("reply", "error", "told"),
    [
        (simple(1, 5), DeviceError, "reading at byte 7 failed: Input/output error"),
        (simple(1, 28), NoSpaceError, "No space"),
        (
            chunk(1, 0x8001, struct.pack(">IH", 5, 6) + b"broken"),
            DeviceError,
            "reading at byte 7 failed: broken",
        ),
        (simple(9), UnavailableError, "not asked"),
        (chunk(9, 0, b""), UnavailableError, "protocol"),
        (chunk(1, 77, b""), UnavailableError, "unknown kind, 77"),
        (chunk(1, 1, bytes(8))[:-8] + bytes(3), UnavailableError, "closed the connection"),
        (data(1, 7, b"x")[:16] + struct.pack(">I", 2**21), UnavailableError, "closed"),
        (struct.pack(">IHHQI", 0x668E33EF, 1, 1, 1, 2**21) + bytes(8), UnavailableError, "more"),
        (struct.pack(">IHHQI", 0x668E33EF, 1, 5, 1, 2**21), UnavailableError, "reply of 2097152"),
        (bytes(20), UnavailableError, "protocol"),
        (b"", UnavailableError, "closed the connection"),
    ],
)
def test_failures(tmp_path: Path, reply: bytes, error: type[BockdError], told: str) -> None:
    with answering(tmp_path, AGREED + reply) as path, Export(str(path), "v") as export:
        export.read(7, 1)
        with pytest.raises(error, match=told):
            export.receive()


def test_refusals(tmp_path: Path) -> None:
    reason = b"no such export"
    refusal = struct.pack(">QIII", 0x3E889045565A9, 10, 2**31 + 6, len(reason)) + reason
    for script, told in (
        (GREETING + ACK[0] + refusal, "no such export"),
        (b"HTTP/1.1 400 Bad Request", "no NBD server"),
        (GREETING, "closed the connection"),
    ):
        with (
            answering(tmp_path, script) as path,
            pytest.raises(UnavailableError, match=told),
        ):
            Export(str(path), "v")
        path.unlink()
    with pytest.raises(UnavailableError, match="cannot reach"):
        Export(str(tmp_path / "nobody"), "v")


def test_a_server_that_has_gone_when_all_is_answered_spoils_nothing(tmp_path: Path) -> None:
    """The goodbye is a courtesy: an export or import that is complete stays so."""
    gone = threading.Event()
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(AGREED)
                left = NEGOTIATION_BYTES + 28
                while left:
                    left -= len(connection.recv(left))
                connection.sendall(simple(1))
            gone.set()

        server = threading.Thread(target=serve)
        server.start()
        with Export(str(path), "v") as export:
            export.flush()
            export.drain()
            assert gone.wait(10)
        server.join()
