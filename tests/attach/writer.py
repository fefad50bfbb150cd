"""A client in a process of its own that holds half of a write: `python -m tests.attach.writer URI`.

It connects, writes half of a 64 KiB write of 0xEE at offset 0, says "half" and waits for a line.
Then it sends the rest, and whole writes until the connection ends, tries to connect again, and says
what came of it: "ended, refused".
"""

from __future__ import annotations

import socket
import struct
import sys
from urllib.parse import urlsplit

from tests.nbd.protocol import wire

WRITE_BYTES = 64 * 1024
PATIENCE_SECONDS = 120.0


def enter(uri: str) -> socket.socket | None:
    """A connection in transmission; None when the export is refused."""
    parts = urlsplit(uri)
    assert parts.hostname is not None
    sock = socket.create_connection((parts.hostname, parts.port or 10809), PATIENCE_SECONDS)
    stream = sock.makefile("rb")
    stream.read(18)
    sock.sendall(struct.pack(">I", 3) + wire.go(parts.path[1:]))
    while True:
        _, _, kind, length = struct.unpack(">QIII", stream.read(20))
        stream.read(length)
        if kind == 1:
            return sock
        if kind & 1 << 31:
            return None


def main() -> None:
    """See the module."""
    uri = sys.argv[1]
    sock = enter(uri)
    assert sock is not None
    data = wire.write(1, 0, b"\xee" * WRITE_BYTES)
    sock.sendall(data[: len(data) // 2])
    print("half", flush=True)
    sys.stdin.readline()
    ended = "not ended"
    try:
        sock.sendall(data[len(data) // 2 :])
        for cookie in range(2, 100_000):
            sock.sendall(wire.write(cookie, WRITE_BYTES, b"\xee" * 4096))
    except OSError:
        ended = "ended"
    print(f"{ended}, {'refused' if enter(uri) is None else 'let in'}", flush=True)


if __name__ == "__main__":
    main()
