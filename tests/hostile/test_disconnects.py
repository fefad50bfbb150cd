"""Clients that vanish, at every byte of a session: nothing of half a write is ever seen."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from bockd.model import BLOCK_SIZE
from bockd.nbd.server.limits import PIECE_BYTES
from tests.hostile.conftest import Attacked
from tests.hostile.live import connect, enter, received_until
from tests.hostile.sessions import MIB
from tests.nbd.protocol import wire

WRITES = [(0, 512, 0), (4096, 600, 1), (8192 - 100, 200, 0)]
"""Offset, length and flags: within a block, with FUA, and across two blocks."""


def leave(sock: socket.socket, how: int) -> None:
    """Say goodbye in one of the ways there are."""
    if how == 0:
        sock.shutdown(socket.SHUT_WR)
    elif how == 1 and sock.family == socket.AF_INET:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def the_session(name: str, tag: int) -> tuple[bytes, list[int]]:
    """A whole session whose writes are all `tag`, and where each of them ends."""
    stream = wire.FIXED_NEWSTYLE_NO_ZEROES + wire.option(3) + wire.go(name, 3)
    ends = []
    for number, (offset, length, flags) in enumerate(WRITES):
        stream += wire.write(number, offset, bytes([tag]) * length, flags)
        ends.append(len(stream))
        stream += wire.request(0, 100 + number, offset, length)
    stream += wire.request(3, 9) + wire.request(4, 10, 1 << 20, 4096) + wire.request(2)
    return stream, ends


def read(sock: socket.socket, offset: int, length: int) -> bytes:
    sock.sendall(wire.request(0, 1, offset, length))
    return received_until(sock, 16 + length)[16:]


@pytest.mark.parametrize("frontend", ["unix", "tcp"])
def test_at_every_byte_of_a_session(attacked: Attacked, frontend: str) -> None:
    name, address = attacked.target.name, attacked.frontends[frontend]
    length = len(the_session(name, 0)[0])
    with attacked.under_attack(), enter(attacked.unix, name) as observer:
        legal = [{read(observer, *write[:2])} for write in WRITES]
        for position in range(length + 1):
            stream, ends = the_session(name, position % 251)
            sock = connect(address)
            sock.sendall(stream[:position])
            leave(sock, position % 3)
            for number, (offset, size, _) in enumerate(WRITES):
                if position >= ends[number]:
                    legal[number].add(bytes([position % 251]) * size)
                seen = read(observer, offset, size)
                assert seen in legal[number], f"after {position} bytes, at {offset}: {seen!r}"
    attacked.daemon.check()


def test_in_the_middle_of_a_large_write(attacked: Attacked) -> None:
    """Its blocks that came whole may be there, no others: new ones in the first round, and what
    overwrites them in the second."""
    first, length = 2 * MIB - 65_536, 2 * MIB + 65_536
    cuts = [0, 30_000, 65_536, 65_536 + 300_000, 65_536 + PIECE_BYTES, length]
    with attacked.under_attack(), enter(attacked.unix, "elsewhere") as observer:
        legal = [{block} for block in _blocks(observer, first, length)]
        for tag, cut in enumerate(2 * list(_context(cuts)), 1):
            header = wire.request(1, 1, first, length)
            payload = (bytes([tag]) * length)[:cut]
            with enter(attacked.unix, "elsewhere") as sock:
                sock.sendall(header + payload)
            for number, seen in enumerate(_blocks(observer, first, length)):
                if (number + 1) * BLOCK_SIZE <= cut:
                    legal[number].add(bytes([tag]) * BLOCK_SIZE)
                assert seen in legal[number], f"after {cut} bytes, in block {number}"
    attacked.daemon.check()


def _context(places: list[int]) -> Iterator[int]:
    for place in places:
        yield from (cut for cut in (place - BLOCK_SIZE, place - 1, place, place + 1) if cut >= 0)


def _blocks(sock: socket.socket, offset: int, length: int) -> Iterator[bytes]:
    data = read(sock, offset, length)
    return (data[at : at + BLOCK_SIZE] for at in range(0, length, BLOCK_SIZE))
