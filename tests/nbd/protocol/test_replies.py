"""Replies: golden bytes of each kind."""

from __future__ import annotations

import errno

import pytest

from bockd.model import Extent
from bockd.nbd.protocol.errors import MAX_MESSAGE_BYTES, message_bytes, nbd_errno
from bockd.nbd.protocol.replies import (
    ExtendedReplies,
    ReplyEncoder,
    SimpleReplies,
    StructuredReplies,
    encoder_for,
)
from bockd.nbd.protocol.transmission import Request

SIMPLE, STRUCTURED, EXTENDED = SimpleReplies(), StructuredReplies(), ExtendedReplies()
READ: Request = (0, 0, 0x11, 0x2000, 0x1000, 0)
WRITE: Request = (0, 1, 0x12, 0x2000, 0x1000, 0)
STATUS: Request = (0, 7, 0x13, 0, 1 << 40, 0)
EXTENTS = [Extent(0, 4096, hole=True), Extent(4096, 8192, hole=False)]

GOLDEN = [
    (SIMPLE.done(WRITE), "67446698 00000000 0000000000000012"),
    (SIMPLE.error(WRITE, 28, "full"), "67446698 0000001c 0000000000000012"),
    (STRUCTURED.done(WRITE), "67446698 00000000 0000000000000012"),
    (STRUCTURED.done(READ), "668e33ef 0001 0000 0000000000000011 00000000"),
    (
        STRUCTURED.error(READ, 5, "no"),
        "668e33ef 0001 8001 0000000000000011 00000008 00000005 0002 6e6f",
    ),
    (
        STRUCTURED.data_header(READ, 0x2800, 0x800, last=False),
        "668e33ef 0000 0001 0000000000000011 00000808 0000000000002800",
    ),
    (
        STRUCTURED.status(STATUS, EXTENTS),
        "668e33ef 0001 0005 0000000000000013 0000001400000001 00001000 00000003 00002000 00000000",
    ),
    (
        STRUCTURED.status(STATUS, [Extent(0, 1 << 40, hole=True), EXTENTS[1]]),
        "668e33ef 0001 0005 0000000000000013 0000000c 00000001 ffff0000 00000003",
    ),
    (
        EXTENDED.done(WRITE),
        "6e8a278c 0001 0000 0000000000000012 0000000000002000 0000000000000000",
    ),
    (
        EXTENDED.error(READ, 5, "no"),
        "6e8a278c 0001 8001 0000000000000011 0000000000002000 000000000000000800000005 0002 6e6f",
    ),
    (
        EXTENDED.data_header(READ, 0x2800, 0x800, last=True),
        "6e8a278c 0001 0001 0000000000000011 0000000000002000 00000000000008080000000000002800",
    ),
    (
        EXTENDED.status(STATUS, [Extent(0, 1 << 40, hole=True), EXTENTS[1]]),
        "6e8a278c 0001 0006 0000000000000013 0000000000000000 0000000000000028"
        "00000001 00000002 0000010000000000 0000000000000003 0000000000002000 0000000000000000",
    ),
]


@pytest.mark.parametrize(("encoded", "expected"), GOLDEN)
def test_each_reply_has_its_golden_bytes(encoded: bytes, expected: str) -> None:
    assert encoded.hex() == expected.replace(" ", "")


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (SIMPLE, "67446698 00000000 0000000000000011"),
        (STRUCTURED, "668e33ef 0001 0001 0000000000000011 00001008 0000000000002000"),
        (
            EXTENDED,
            "6e8a278c 0001 0001 0000000000000011 0000000000002000 00000000000010080000000000002000",
        ),
    ],
)
def test_header_in_front_of_read_data(encoder: ReplyEncoder, expected: str) -> None:
    buffer = bytearray(b"\xee" * 64)
    encoder.pack_read(memoryview(buffer), 3, READ)
    header = bytes.fromhex(expected)
    assert encoder.data_header_bytes == len(header)
    assert bytes(buffer) == b"\xee" * 3 + header + b"\xee" * (61 - len(header))


@pytest.mark.parametrize("encoder", [SIMPLE, STRUCTURED, EXTENDED])
@pytest.mark.parametrize("count", [1, 2, 256, 257])
def test_many_acknowledgements_are_the_sum_of_single_ones(
    encoder: ReplyEncoder, count: int
) -> None:
    requests = [(0, 1, cookie, 0, 1, 0) for cookie in range(count)]
    assert encoder.all_done(requests) == b"".join(encoder.done(request) for request in requests)


def test_the_encoder_follows_the_negotiation() -> None:
    assert type(encoder_for(structured=False, extended=False)) is SimpleReplies
    assert type(encoder_for(structured=True, extended=False)) is StructuredReplies
    assert type(encoder_for(structured=True, extended=True)) is ExtendedReplies


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (errno.ENOSPC, 28),
        (errno.EROFS, 1),
        (errno.ENOENT, 5),
        (errno.EBUSY, 5),
        (errno.EOPNOTSUPP, 95),
        (errno.ESHUTDOWN, 108),
        (errno.EDQUOT, 28),
    ],
)
def test_a_system_error_has_its_number_in_the_protocol(system: int, expected: int) -> None:
    assert nbd_errno(system) == expected


def test_messages_are_cut_at_a_character() -> None:
    cut = message_bytes("ä" * MAX_MESSAGE_BYTES)
    assert len(cut) == MAX_MESSAGE_BYTES
    assert cut.decode() == "ä" * (MAX_MESSAGE_BYTES // 2)
    assert b"\0" not in message_bytes("a\0b")
