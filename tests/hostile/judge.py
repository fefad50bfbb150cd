"""Reads both sides of a conversation and says whether the server's is well-formed.

Written from proto.md, not from bockd.nbd. It follows the client's bytes as a server must, so that
it knows which answers are due, and raises AssertionError for an answer that is none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.hostile.sessions import (
    BLOCK_STATUS,
    CHANGES,
    DISC,
    EXTENDED,
    FLUSH,
    GO,
    INFO,
    KIB,
    LIST,
    LIST_META,
    MIB,
    READ,
    SET_META,
    STRUCTURED,
    WRITE,
    Target,
)

GREETING = b"NBDMAGICIHAVEOPT\x00\x03"
ACK, SERVER, REP_INFO, META_CONTEXT = 1, 2, 3, 4
OPTION_ERRORS = frozenset((1 << 31) + n for n in (1, 2, 3, 4, 6, 7, 9, 10))
ERRORS = frozenset({1, 5, 12, 22, 28, 75, 95, 108})


class TruncatedError(Exception):
    """The server's bytes end within a message."""


class Reader:
    """Takes messages off the front of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)

    def take(self, length: int) -> bytes:
        if length > len(self.data):
            raise TruncatedError
        taken, self.data = bytes(self.data[:length]), self.data[length:]
        return taken

    def unpack(self, form: str) -> tuple[int, ...]:
        """Big-endian numbers."""
        return struct.unpack(">" + form, self.take(struct.calcsize(">" + form)))


@dataclass
class Asked:
    """A request, and what has come back so far."""

    flags: int
    command: int
    offset: int
    length: int
    covered: int = 0
    failed: bool = False
    answered: bool = False


@dataclass
class Verdict:
    """What was seen."""

    entered: bool = False
    extended: bool = False
    structured: bool = False
    requests: list[Asked] = field(default_factory=list)
    at_a_border: bool = False
    """The client's bytes ended between two requests, or with DISC: every answer was due."""
    truncated: bool = False

    @property
    def unanswered(self) -> list[Asked]:
        return [request for request in self.requests if not request.answered]

    def changes_above(self, reach: int, size: int) -> bool:
        """Whether a request changes something within the export and beyond `reach`."""
        return any(
            r.command in CHANGES and reach < r.offset + r.length <= size for r in self.requests
        )


def judge(sent: bytes, received: bytes, target: Target) -> Verdict:
    """Judge a whole conversation; the server's side begins with its greeting. AssertionError."""
    verdict = Verdict()
    client, server = Reader(sent), Reader(received)
    try:
        assert server.take(len(GREETING)) == GREETING
        if _handshake(client, server, target, verdict):
            _transmission(client, server, target, verdict)
    except TruncatedError:
        verdict.truncated = True
    return verdict


# -- the handshake ---------------------------------------------------------------------------


def _handshake(client: Reader, server: Reader, target: Target, verdict: Verdict) -> bool:
    """True when the client has entered transmission."""
    if len(client.data) < 4:
        assert not server.data
        return False
    (client_flags,) = client.unpack("I")
    while not client_flags & ~3 and (option := _next_option(client)) is not None:
        number, data = option
        if number == 1:
            if data != target.name.encode() or verdict.extended:
                break
            (size, flags) = server.unpack("QH")
            zeroes = server.take(0 if client_flags & 2 else 124)
            assert (size, flags & 1, any(zeroes)) == (target.size, 1, False)
            verdict.entered = True
            return True
        kind = _option_reply(number, server, target)
        if data is None:
            assert kind == (1 << 31) + 9
        elif kind == ACK:
            verdict.structured |= number == STRUCTURED
            verdict.extended |= number == EXTENDED
            if number == 2:
                break
            if number == GO:
                verdict.entered = True
                return True
    assert not server.data, "the server went on where it had to stop"
    return False


def _next_option(client: Reader) -> tuple[int, bytes | None] | None:
    """Number and data of the next option; None for data that is too long to be kept. None when the
    server has to wait for ever, or to close."""
    if len(client.data) < 16:
        return None
    magic, number, length = client.unpack("QII")
    if magic != 0x49484156454F5054 or length > MIB or (number == 1 and length > 64 * KIB):
        return None
    if len(client.data) < length:
        return None
    data = client.take(length)
    return number, data if length <= 64 * KIB else None


def _option_reply(number: int, server: Reader, target: Target) -> int:
    """Take all replies to one option; the kind of the last."""
    while True:
        magic, echoed, kind, length = server.unpack("QIII")
        assert (magic, echoed) == (0x3E889045565A9, number)
        data = server.take(length)
        if kind == ACK:
            assert not data
            return kind
        if kind & 1 << 31:
            assert kind in OPTION_ERRORS
            _text(data)
            return kind
        _informs(number, kind, data, target)


def _informs(number: int, kind: int, data: bytes, target: Target) -> None:
    reader = Reader(data)
    match number:
        case n if n == LIST:
            assert kind == SERVER
            (length,) = reader.unpack("I")
            reader.take(length).decode()
            _text(bytes(reader.data))
        case n if n in (INFO, GO):
            assert kind == REP_INFO
            (information,) = reader.unpack("H")
            if information == 0:
                size, flags = reader.unpack("QH")
                assert (size, flags & 1) == (target.size, 1)
            elif information == 3:
                minimum, preferred, maximum = reader.unpack("III")
                assert minimum <= preferred <= maximum
            else:
                assert information in (1, 2)
                _text(reader.take(len(reader.data)))
            assert not reader.data
        case n if n in (LIST_META, SET_META):
            assert kind == META_CONTEXT
            reader.unpack("I")
            assert bytes(reader.data) == b"base:allocation"
        case _:
            raise AssertionError(f"reply {kind} to option {number}")


def _text(data: bytes) -> None:
    assert len(data) <= 4096
    assert "\0" not in data.decode()


# -- transmission ----------------------------------------------------------------------------


def _transmission(client: Reader, server: Reader, target: Target, verdict: Verdict) -> None:
    due = _read_requests(client, verdict)
    if due is None:
        return  # a cookie was used twice: the answers cannot be told apart
    while server.data:
        if verdict.extended:
            _extended_chunk(server, due, target)
        elif verdict.structured and bytes(server.data[:4]) == b"\x66\x8e\x33\xef":
            _structured_chunk(server, due, target)
        else:
            _simple_reply(server, due, target, structured=verdict.structured)


def _read_requests(client: Reader, verdict: Verdict) -> dict[int, Asked] | None:
    """All complete requests, by cookie."""
    form, expected = ("IHHQQQ", 0x21E41C71) if verdict.extended else ("IHHQQI", 0x25609513)
    due: dict[int, Asked] = {}
    unique = True
    while len(client.data) >= struct.calcsize(">" + form):
        magic, flags, command, cookie, offset, length = client.unpack(form)
        carries = flags & 32 if verdict.extended else command == WRITE
        if magic != expected or (carries and len(client.data) < length):
            return due if unique else None
        if carries:
            client.take(length)
        if command == DISC:
            verdict.at_a_border = unique
            return due if unique else None
        unique &= cookie not in due
        due[cookie] = Asked(flags, command, offset, length)
        verdict.requests.append(due[cookie])
    verdict.at_a_border = unique and not client.data
    return due if unique else None


def _simple_reply(
    server: Reader, due: dict[int, Asked], target: Target, *, structured: bool
) -> None:
    magic, error, cookie = server.unpack("IIQ")
    assert magic == 0x67446698
    asked = due[cookie]
    if error == 0 and asked.command == READ:
        assert not structured
        server.take(asked.length)
        asked.covered = asked.length
    assert not (structured and error), "an error without its chunk"
    _finish(asked, error, target)


def _structured_chunk(server: Reader, due: dict[int, Asked], target: Target) -> None:
    _, flags, kind, cookie, length = server.unpack("IHHQI")
    _chunk(due[cookie], flags, kind, server.take(length), target, wide=False)


def _extended_chunk(server: Reader, due: dict[int, Asked], target: Target) -> None:
    magic, flags, kind, cookie, offset, length = server.unpack("IHHQQQ")
    assert magic == 0x6E8A278C
    assert offset == due[cookie].offset
    _chunk(due[cookie], flags, kind, server.take(length), target, wide=True)


def _chunk(
    asked: Asked, flags: int, kind: int, payload: bytes, target: Target, *, wide: bool
) -> None:
    assert flags in (0, 1)
    assert not asked.answered
    reader, error = Reader(payload), 0
    match kind:
        case 0:
            assert flags == 1
        case 1:
            assert asked.command == READ
            (offset,) = reader.unpack("Q")
            assert asked.offset <= offset
            assert offset + len(reader.data) <= asked.offset + asked.length
            asked.covered += len(reader.take(len(reader.data)))
        case 5 | 6:
            assert asked.command == BLOCK_STATUS
            assert wide == (kind == 6)
            _extents(reader, asked, wide=wide)
        case 0x8001:
            error, length = reader.unpack("IH")
            _text(reader.take(length))
            assert error
        case _:
            raise AssertionError(f"a chunk of type {kind}")
    assert not reader.data
    asked.failed |= error != 0
    if flags:
        _finish(asked, error, target)


def _extents(reader: Reader, asked: Asked, *, wide: bool) -> None:
    (context,) = reader.unpack("I")
    assert context == 1
    size = 16 if wide else 8
    if wide:
        (count,) = reader.unpack("I")
        assert count * size == len(reader.data)
    assert reader.data
    while reader.data:
        length, state = reader.unpack("QQ" if wide else "II")
        assert length > 0
        assert state in (0, 3)
        asked.covered += length
    assert asked.covered <= asked.length


def _finish(asked: Asked, error: int, target: Target) -> None:
    """The last answer to a request: is it one that the request could get?"""
    assert not asked.answered
    asked.answered = True
    asked.failed |= error != 0
    if error:
        assert error in ERRORS
        return
    assert not asked.failed
    assert asked.command < 8
    if asked.command != FLUSH:
        assert asked.offset + asked.length <= target.size, "beyond the end, and no error"
    if asked.command == READ:
        assert asked.covered == asked.length
    if asked.command == BLOCK_STATUS:
        assert asked.covered > 0
