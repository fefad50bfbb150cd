"""Sessions that no decent client would have: what a client may send, made of choices.

A session is the bytes of a handshake and of requests, most of them nearly right, so that they get
past the first check and reach the next one; and the places where the stream is cut into pieces.
Whoever makes the choices decides what it is: Hypothesis in the tests, coverage in the fuzzer.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

from hypothesis import strategies as st

from tests.nbd.protocol import wire

T = TypeVar("T")

KIB, MIB = 1 << 10, 1 << 20
U16, U32, U64 = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
LIST, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = 3, 6, 7, 8, 9, 10, 11
CHANGES = frozenset({WRITE, TRIM, WRITE_ZEROES})


@dataclass(frozen=True)
class Target:
    """The export that a session is about."""

    name: str
    size: int
    reach: int
    """Most requests stay below this offset; what lies above may belong to somebody else."""


@dataclass(frozen=True)
class Session:
    """What a client sends, and where the stream is cut."""

    sent: bytes
    cuts: tuple[int, ...]

    def pieces(self) -> list[bytes]:
        """The stream in pieces, none of them empty."""
        marks = sorted({0, len(self.sent), *(cut % (len(self.sent) + 1) for cut in self.cuts)})
        return [self.sent[a:b] for a, b in pairwise(marks)]


class Chooser(Protocol):
    """Makes the choices."""

    def number(self, low: int, high: int) -> int:
        """From low to high, both included."""
        ...

    def some(self, most: int) -> bytes:
        """Up to so many bytes."""
        ...


class Drawn:
    """Choices by Hypothesis, which shrinks them."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def number(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def some(self, most: int) -> bytes:
        return self._draw(st.binary(max_size=most))


@st.composite
def sessions(draw: st.DrawFn, target: Target) -> Session:
    """Whole sessions, some of them cut off at any byte."""
    return session(Drawn(draw), target)


def session(choose: Chooser, target: Target) -> Session:
    """One session."""
    make = _Maker(choose, target)
    extended = choose.number(0, 2) == 0
    handshake = make.bad_handshake() if make.rarely(4) else make.good_handshake(extended=extended)
    requests = [make.request(number, extended=extended) for number in range(choose.number(1, 12))]
    sent = handshake + b"".join(requests)
    if make.rarely(4):
        sent = sent[: choose.number(0, len(sent))]
    cuts = tuple(choose.number(0, len(sent)) for _ in range(choose.number(0, 8)))
    return Session(sent, cuts)


class _Maker:
    def __init__(self, choose: Chooser, target: Target) -> None:
        self._number = choose.number
        self._some = choose.some
        self._target = target

    def rarely(self, one_in: int) -> bool:
        """The unlikely choice; Hypothesis shrinks towards the other."""
        return self._number(1, one_in) == one_in

    def pick(self, options: Sequence[T]) -> T:
        return options[self._number(0, len(options) - 1)]

    # -- handshakes --------------------------------------------------------------------------

    def good_handshake(self, *, extended: bool) -> bytes:
        """One that gets the client in."""
        name = self._target.name
        allocation = wire.option(SET_META, wire.meta_data(name, "base:allocation"))
        structured = wire.option(STRUCTURED)
        information = wire.option(INFO, wire.info_data(name, 3))
        first = wire.option(EXTENDED) + allocation
        if not extended:
            first = self.pick([b"", structured, structured + allocation])
        more = [
            self.pick([wire.option(LIST), information, structured, allocation])
            for _ in range(self._number(0, 3))
        ]
        last = wire.go(name)
        if not extended and self.rarely(3):
            last = wire.option(1, name.encode())
        return b"".join([wire.FIXED_NEWSTYLE_NO_ZEROES, first, *more, last])

    def bad_handshake(self) -> bytes:
        """Anything; some of these get in."""
        name = self._target.name
        flags = self.pick([0, 1, 2, 4, 7, U32]) if self.rarely(4) else 3
        options = [self._option() for _ in range(self._number(0, 6))]
        last = self.pick(
            [wire.go(name, 0, 3), wire.option(1, name.encode()), wire.go("nowhere"), b""]
        )
        return b"".join([struct.pack(">I", flags), *options, last])

    def _option(self) -> bytes:
        kind = self.pick([self._plain, self._info, self._meta])
        if not self.rarely(4):
            return kind()
        match self._number(0, 2):
            case 0:
                return self._damaged(kind())
            case 1:
                return self._some(40)
            case _:
                return self._too_long()

    def _name(self) -> bytes:
        if not self.rarely(2):
            return self._target.name.encode()
        wrong = [b"", b"nowhere", b"snapshot/", b"../x", b"x" * 4096, b"x" * 4097, b"\xff", b"a\0b"]
        return self.pick([*wrong, self._some(8) + b"."])

    def _plain(self) -> bytes:
        number = self.pick([LIST, 4, 5, STRUCTURED, STRUCTURED, EXTENDED, 12, 99, U32])
        return wire.option(number, self._some(8) if self.rarely(3) else b"")

    def _info(self) -> bytes:
        name = self._name()
        asked = [self.pick([0, 1, 2, 3, 4, 99, U16]) for _ in range(self._number(0, 5))]
        count = self._number(0, U16) if self.rarely(4) else len(asked)
        numbers = struct.pack(f">H{len(asked)}H", count, *asked)
        return wire.option(INFO, struct.pack(">I", len(name)) + name + numbers)

    def _meta(self) -> bytes:
        name = self._name()
        known = [b"base:allocation", b"base:", b"qemu:", b"", b"\xff", b"base:allocatio"]
        queries = [self.pick([*known, self._some(6)]) for _ in range(self._number(0, 4))]
        if self.rarely(8):
            queries = [b"base:"] * 65
        count = self.pick([1, 64, 65, 1 << 14, U32]) if self.rarely(4) else len(queries)
        parts = [struct.pack(">I", len(name)), name, struct.pack(">I", count)]
        for query in queries:
            parts += [struct.pack(">I", len(query)), query]
        return wire.option(self.pick([LIST_META, SET_META]), b"".join(parts))

    def _too_long(self) -> bytes:
        """More data than is kept; some say so and do not send it."""
        length = self.pick([64 * KIB, 64 * KIB + 1, 70_000, MIB, MIB + 1, U32])
        header = wire.option(self.pick([INFO, LIST, SET_META, 99]))[:12]
        honest = length <= 70_000 and not self.rarely(2)
        return header + struct.pack(">I", length) + bytes(length if honest else 3)

    def _damaged(self, data: bytes) -> bytes:
        """A message with one byte changed, bytes missing, or bytes too many."""
        match self._number(0, 2):
            case 0:
                at = self._number(0, min(63, len(data) - 1))
                return data[:at] + bytes([data[at] ^ self._number(1, 255)]) + data[at + 1 :]
            case 1:
                return data[: self._number(0, len(data) - 1)]
            case _:
                return data + self._some(3)

    # -- requests ----------------------------------------------------------------------------

    def request(self, number: int, *, extended: bool) -> bytes:
        """One request: in range, around the edges, or none at all. Each has a cookie of its own,
        so that its answers are known."""
        cookie = 0xC0FFEE << 32 | number
        if not self.rarely(16):
            return self._sound_request(cookie, extended=extended)
        match self._number(0, 2):
            case 0:
                return self._some(40)
            case 1:
                return self._damaged(self._sound_request(cookie, extended=extended))
            case _:  # the other kind of header
                return self._sound_request(cookie, extended=not extended)

    def _sound_request(self, cookie: int, *, extended: bool) -> bytes:
        command = self.pick(
            [READ, READ, WRITE, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS]
        )
        if self.rarely(10):
            command = self.pick([DISC, 8, 99, U16])
        flags = self.pick([1, 1, 2, 4, 8, 16, 18, 32, 33, 0x8000]) if self.rarely(3) else 0
        offset = self._offset()
        if command == WRITE and extended:
            flags |= 32
        if not (flags & 32 if extended else command == WRITE):
            length, payload = self._length(extended=extended), b""
        else:
            size = self.pick([0, 1, 511, 512, 4096, 4097, 8192, 65_536, 65_537, 70_000])
            payload = bytes([self._number(0, 255)]) * size
            length = self._length(extended=extended) if self.rarely(8) else size
        make = wire.extended if extended else wire.request
        return make(command, cookie, offset, length, flags) + payload

    def _offset(self) -> int:
        size, reach = self._target.size, self._target.reach
        if not self.rarely(3):
            return 4096 * self._number(0, reach // 4096 - 20)
        near = [0, 1, 511, 4095, 4096, reach - 4096, size - 1, size, size + 1, size - 4096]
        far = [1 << 31, U32, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, U64, U64 - 511, U64 - 4095]
        return self.pick(near + far)

    def _length(self, *, extended: bool) -> int:
        near = [0, 1, 512, 4095, 4096, 4097, 65_536, 65_537, 256 * KIB, 256 * KIB + 1]
        if not self.rarely(4):
            return self.pick(near)
        edges = [self._target.reach, self._target.size, self._target.size + 1]
        edges += [64 * MIB, 64 * MIB + 1, 128 * MIB + 1, 1 << 31, U32 - 511, U32]
        return self.pick(edges + ([1 << 32, 1 << 63, U64] if extended else []))
