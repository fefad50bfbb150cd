"""Requests: golden bytes, any split of the stream, and the table of refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bockd.nbd.protocol.errors import ProtocolError
from bockd.nbd.protocol.transmission import (
    MAX_INLINE_PAYLOAD_BYTES,
    Request,
    RequestLimits,
    RequestParser,
    refusal,
)
from tests.nbd.protocol import wire

MIB = 1 << 20
Seen = tuple[int, int, int, int, int, bytes]


class Receiver:
    """A receive buffer around a parser, as a server has one; keeps requests with their payloads."""

    def __init__(self, *, extended: bool = False) -> None:
        self._parser = RequestParser(extended=extended)
        self._extended = extended
        self._buffer = b""
        self._large: tuple[Request, bytes] | None = None
        self.seen: list[Seen] = []

    def receive(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer and self._step():
            pass

    def _step(self) -> bool:
        if self._large is not None:
            request, payload = self._large
            missing = request[4] - len(payload)
            payload, self._buffer = payload + self._buffer[:missing], self._buffer[missing:]
            self._large = (request, payload)
            if len(payload) < request[4]:
                return False
            self.seen.append((*request[:5], payload))
            self._large = None
            return True
        view = memoryview(self._buffer)
        requests, position = self._parser.parse(view, 0, len(view))
        for request in requests:
            payload = self._payload(request)
            self.seen.append((*request[:5], payload))
        self._buffer = self._buffer[position:]
        if self._parser.large is not None:
            self._large = (self._parser.large, b"")
        return bool(requests) or self._large is not None

    def _payload(self, request: Request) -> bytes:
        flags, command, _, _, length, body = request
        carries = command == 1 or (self._extended and flags & 32)
        return self._buffer[body : body + length] if carries else b""


def encode(request: Seen, *, extended: bool) -> bytes:
    flags, command, cookie, offset, length, payload = request
    make = wire.extended if extended else wire.request
    return make(command, cookie, offset, length, flags) + payload


def requests_of(*, extended: bool) -> st.SearchStrategy[Seen]:
    def build(
        flags: int, command: int, cookie: int, offset: int, length: int, payload: bytes
    ) -> Seen:
        carries = command == 1 or (extended and flags & 32)
        return (
            (flags, command, cookie, offset, len(payload) if carries else length, payload)
            if (carries)
            else (flags, command, cookie, offset, length, b"")
        )

    number = st.integers(0, (1 << 64) - 1)
    sizes = st.one_of(
        st.integers(0, 40), st.integers(MAX_INLINE_PAYLOAD_BYTES - 1, MAX_INLINE_PAYLOAD_BYTES + 9)
    )
    return st.builds(
        build,
        st.integers(0, 63),
        st.sampled_from([0, 1, 3, 4, 5, 6, 7, 99]),
        number,
        number,
        st.integers(0, (1 << 32) - 1),
        sizes.map(lambda size: bytes(i % 251 for i in range(size))),
    )


@pytest.mark.parametrize("extended", [False, True])
@given(data=st.data())
def test_any_split_of_the_stream_gives_the_same_requests(
    extended: bool, data: st.DataObject
) -> None:
    expected = data.draw(st.lists(requests_of(extended=extended), max_size=6))
    stream = b"".join(encode(request, extended=extended) for request in expected)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    receiver = Receiver(extended=extended)
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        receiver.receive(stream[start:end])
    assert receiver.seen == [
        (flags | 32 if extended and command == 1 else flags, command, *rest)
        for flags, command, *rest in expected
    ]


def test_golden_requests_one_byte_at_a_time() -> None:
    stream = bytes.fromhex(
        "25609513 0000 0000 0000000000000011 0000000000002000 00001000"  # read
        "25609513 0001 0001 0000000000000012 0000000000000004 00000003 616263"  # write, FUA
        "25609513 0000 0003 0000000000000013 0000000000000000 00000000"  # flush
    )
    receiver = Receiver()
    for byte in stream:
        receiver.receive(bytes([byte]))
    assert receiver.seen == [
        (0, 0, 0x11, 0x2000, 0x1000, b""),
        (1, 1, 0x12, 4, 3, b"abc"),
        (0, 3, 0x13, 0, 0, b""),
    ]


def test_golden_extended_requests_one_byte_at_a_time() -> None:
    stream = bytes.fromhex(
        "21e41c71 0000 0006 0000000000000021 0000000000000000 0000010000000000"  # zeroes, 1 TiB
        "21e41c71 0020 0001 0000000000000022 0000000000000004 0000000000000003 616263"  # write
        "21e41c71 0000 0007 0000000000000023 0000000000000000 0000000000010000"  # status
    )
    receiver = Receiver(extended=True)
    for byte in stream:
        receiver.receive(bytes([byte]))
    assert receiver.seen == [
        (0, 6, 0x21, 0, 1 << 40, b""),
        (32, 1, 0x22, 4, 3, b"abc"),
        (0, 7, 0x23, 0, 1 << 16, b""),
    ]


def test_golden_requests_of_qemu_10() -> None:
    """As `qemu-io -c 'write 4096 4' -c 'write -f 8192 4' -c flush` of QEMU 10.0.13 sends them
    (payloads of 512 bytes cut to 4, and the first without the FUA of qemu-io's own cache mode): its
    writes come without NBD_CMD_FLAG_PAYLOAD_LEN, and all of its requests have the cookie 1."""
    stream = bytes.fromhex(
        "21e41c71 0000 0001 0000000000000001 0000000000001000 0000000000000004 61616161"
        "21e41c71 0001 0001 0000000000000001 0000000000002000 0000000000000004 62626262"
        "21e41c71 0000 0003 0000000000000001 0000000000000000 0000000000000000"
        "21e41c71 0000 0002 0000000000000000 0000000000000000 0000000000000000"
    )
    receiver = Receiver(extended=True)
    for byte in stream:
        receiver.receive(bytes([byte]))
    assert receiver.seen == [
        (32, 1, 1, 4096, 4, b"aaaa"),
        (33, 1, 1, 8192, 4, b"bbbb"),
        (0, 3, 1, 0, 0, b""),
        (0, 2, 0, 0, 0, b""),
    ]


@pytest.mark.parametrize("extended", [False, True])
def test_bad_magic_after_requests_is_reported_by_the_next_call(extended: bool) -> None:
    parser = RequestParser(extended=extended)
    make = wire.extended if extended else wire.request
    stream = memoryview(make(0, 1, 0, 512) + make(3, 2) + bytes(32))
    requests, position = parser.parse(stream, 0, len(stream))
    assert [request[2] for request in requests] == [1, 2]
    with pytest.raises(ProtocolError):
        parser.parse(stream, position, len(stream))


def test_nothing_is_parsed_behind_a_disconnect() -> None:
    stream = memoryview(wire.request(2) + bytes(100))
    requests, _ = RequestParser(extended=False).parse(stream, 0, len(stream))
    assert [request[1] for request in requests] == [2]


READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS = 0, 1, 3, 4, 5, 6, 7
FUA, NO_HOLE, DF, REQ_ONE, FAST, PAYLOAD = 1, 2, 4, 8, 16, 32
EPERM, EINVAL, ENOSPC, ENOTSUP = 1, 22, 28, 95
SIMPLE = RequestLimits(read_only=False, extended=False, chunked=False, allocation=False)
CHUNKED = RequestLimits(read_only=False, extended=False, chunked=True, allocation=True)
EXTENDED = RequestLimits(read_only=False, extended=True, chunked=True, allocation=True)
SNAPSHOT = RequestLimits(read_only=True, extended=False, chunked=True, allocation=True)

REFUSALS: list[tuple[RequestLimits, int, int, int, int, int | None]] = [
    # limits, command, flags, offset, length, error
    (SIMPLE, READ, 0, 0, 4096, None),
    (SIMPLE, READ, FUA, 0, 4096, None),
    (SIMPLE, READ, DF, 0, 4096, EINVAL),
    (CHUNKED, READ, DF, 0, 4096, None),
    (SIMPLE, READ, NO_HOLE, 0, 4096, EINVAL),
    (SIMPLE, READ, 0, 0, 64 * MIB, None),
    (SIMPLE, READ, 0, 0, 64 * MIB + 1, EINVAL),
    (SIMPLE, READ, 0, 100 * MIB - 1, 1, None),
    (SIMPLE, READ, 0, 100 * MIB, 1, EINVAL),
    (SIMPLE, READ, 0, (1 << 64) - 1, 1, EINVAL),
    (SIMPLE, READ, 0, 100 * MIB, 0, None),
    (SIMPLE, WRITE, 0, 0, 4096, None),
    (SIMPLE, WRITE, FUA, 0, 4096, None),
    (SIMPLE, WRITE, DF, 0, 4096, EINVAL),
    (SIMPLE, WRITE, PAYLOAD, 0, 4096, EINVAL),
    (SIMPLE, WRITE, 0, 0, 64 * MIB + 1, EINVAL),
    (SIMPLE, WRITE, 0, 100 * MIB - 1, 2, ENOSPC),
    (SNAPSHOT, WRITE, 0, 0, 4096, EPERM),
    (SNAPSHOT, TRIM, 0, 0, 4096, EPERM),
    (SNAPSHOT, ZEROES, 0, 0, 4096, EPERM),
    (SNAPSHOT, FLUSH, 0, 0, 0, None),
    (SNAPSHOT, CACHE, 0, 0, 4096, None),
    (SNAPSHOT, STATUS, 0, 0, 4096, None),
    (SIMPLE, FLUSH, FUA, 0, 0, None),
    (SIMPLE, FLUSH, NO_HOLE, 0, 0, EINVAL),
    (SIMPLE, TRIM, 0, 0, 100 * MIB, None),
    (SIMPLE, TRIM, 0, 0, 100 * MIB + 1, EINVAL),
    (SIMPLE, TRIM, NO_HOLE, 0, 4096, EINVAL),
    (SIMPLE, CACHE, 0, 0, 100 * MIB, None),
    (SIMPLE, CACHE, REQ_ONE, 0, 4096, EINVAL),
    (SIMPLE, ZEROES, NO_HOLE | FUA, 0, 100 * MIB, None),
    (SIMPLE, ZEROES, FAST, 0, 4096, None),
    (SIMPLE, ZEROES, FAST | NO_HOLE, 0, 4096, ENOTSUP),
    (SIMPLE, ZEROES, 0, 100 * MIB, 1, ENOSPC),
    (SIMPLE, STATUS, 0, 0, 4096, EINVAL),
    (CHUNKED, STATUS, REQ_ONE, 0, 4096, None),
    (CHUNKED, STATUS, 0, 0, 0, EINVAL),
    (CHUNKED, STATUS, 0, 100 * MIB, 4096, EINVAL),
    (EXTENDED, WRITE, PAYLOAD, 0, 4096, None),
    (EXTENDED, READ, PAYLOAD, 0, 4096, EINVAL),
    (EXTENDED, STATUS, PAYLOAD, 0, 16, EINVAL),
    (EXTENDED, ZEROES, 0, 0, 1 << 33, ENOSPC),
    (SIMPLE, 8, 0, 0, 0, EINVAL),
    (SIMPLE, 0xFFFF, 0xFFFF, 0, 0, EINVAL),
]


@pytest.mark.parametrize(("limits", "command", "flags", "offset", "length", "error"), REFUSALS)
def test_refusals(
    limits: RequestLimits, command: int, flags: int, offset: int, length: int, error: int | None
) -> None:
    refused = refusal((flags, command, 1, offset, length, 28), limits, 100 * MIB)
    assert (refused[0] if refused else None) == error


@pytest.mark.parametrize("length", [0, 8, MAX_INLINE_PAYLOAD_BYTES + 1])
def test_nothing_follows_an_extended_disc_that_claims_a_payload(length: int) -> None:
    stream = wire.extended(2, 1, 0, length, 32) + wire.extended_write(2, 0, bytes(512))
    parser = RequestParser(extended=True)
    requests, _ = parser.parse(memoryview(stream), 0, len(stream))
    assert [request[1] for request in requests] == [2]
    assert parser.large is None
