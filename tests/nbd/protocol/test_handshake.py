"""The handshake machine: golden bytes, tables of options and answers, any split of the bytes."""

from __future__ import annotations

import struct

import pytest

from bockd.errors import (
    BockdError,
    InUseError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from bockd.nbd.protocol.errors import ProtocolError
from bockd.nbd.protocol.handshake import (
    GREETING,
    MAX_OPTION_BYTES,
    MAX_SKIPPED_OPTION_BYTES,
    Abort,
    ChooseExport,
    DescribeExport,
    Event,
    Handshake,
    ListExports,
    Negotiated,
    Reply,
)
from bockd.nbd.protocol.options import ExportInfo
from tests.nbd.protocol import wire

DISK = ExportInfo("disk", "a disk", 1 << 20, read_only=False)
SNAPSHOT = ExportInfo("snapshot/monday", "", 1 << 20, read_only=True)

ACK, SERVER, INFO, META = 1, 2, 3, 4
UNSUP, POLICY, INVALID, UNKNOWN, SHUTDOWN, TOO_BIG, EXT_REQD = (
    0x80000000 + n for n in (1, 2, 3, 6, 7, 9, 10)
)


class Server:
    """Answers a handshake's questions about DISK and SNAPSHOT; collects what is sent."""

    def __init__(self, error: BockdError | None = None) -> None:
        self.handshake = Handshake()
        self.sent = b""
        self.negotiated: Negotiated | None = None
        self.aborted = False
        self._error = error

    def feed(self, data: bytes, *, piece: int | None = None) -> None:
        piece = piece or len(data)
        for start in range(0, len(data), piece):
            self.handshake.receive(data[start : start + piece])
            while self.negotiated is None:
                event = self.handshake.next_event()
                if event is None:
                    break
                self._answer(event)

    def _answer(self, event: Event) -> None:
        handshake = self.handshake
        match event:
            case Reply(data):
                self.sent += data
            case Abort(data):
                self.sent += data
                self.aborted = True
            case ListExports():
                self.sent += handshake.listed([DISK, SNAPSHOT])
            case DescribeExport(name=name) | ChooseExport(name=name):
                self._export(event, name)

    def _export(self, event: DescribeExport | ChooseExport, name: str) -> None:
        exports = {"disk": DISK, "snapshot/monday": SNAPSHOT, "": DISK}
        if self._error is not None:
            self.sent += self.handshake.refused(event, self._error)
        elif name not in exports:
            self.sent += self.handshake.refused(event, NotFoundError(f"no {name}"))
        elif isinstance(event, DescribeExport):
            self.sent += self.handshake.described(event, exports[name])
        else:
            data, self.negotiated = self.handshake.accepted(event, exports[name])
            self.sent += data

    def replies(self) -> list[wire.OptionReply]:
        return wire.option_replies(self.sent)


def kinds(*options: bytes) -> list[int]:
    server = Server()
    server.feed(wire.FIXED_NEWSTYLE_NO_ZEROES + b"".join(options))
    return [reply.kind for reply in server.replies()]


def test_greeting_is_fixed_newstyle_with_no_zeroes() -> None:
    assert GREETING == b"NBDMAGICIHAVEOPT\x00\x03"


GOLDEN_CLIENT = bytes.fromhex(
    "00000003"  # client flags
    "49484156454f505400000008 00000000"  # STRUCTURED_REPLY
    "49484156454f50540000000a 0000001f"  # SET_META_CONTEXT, 31 bytes
    "00000004 6469736b 00000001 0000000f 626173653a616c6c6f636174696f6e"  # disk, base:allocation
    "49484156454f505400000007 0000000c"  # GO, 12 bytes
    "00000004 6469736b 0001 0003"  # disk, asks for block sizes
    "2560951300000002"  # the first bytes of a request
)
GOLDEN_SERVER = bytes.fromhex(
    "0003e889045565a9 00000008 00000001 00000000"  # ACK
    "0003e889045565a9 0000000a 00000004 00000013"  # META_CONTEXT, id 1
    "00000001 626173653a616c6c6f636174696f6e"
    "0003e889045565a9 0000000a 00000001 00000000"  # ACK
    "0003e889045565a9 00000007 00000003 0000000c"  # INFO_EXPORT: 1 MiB, flags
    "0000 0000000000100000 0ded"
    "0003e889045565a9 00000007 00000003 0000000e"  # INFO_BLOCK_SIZE: 1, 4096, 64 MiB
    "0003 00000001 00001000 04000000"
    "0003e889045565a9 00000007 00000001 00000000"  # ACK
)


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_golden_handshake_in_any_pieces(piece: int) -> None:
    server = Server()
    server.feed(GOLDEN_CLIENT, piece=piece)
    assert server.sent == GOLDEN_SERVER
    assert server.negotiated == Negotiated(structured=True, extended=False, allocation=True)


def test_bytes_behind_the_last_option_are_kept() -> None:
    server = Server()
    server.feed(GOLDEN_CLIENT)
    assert server.handshake.leftover() == bytes.fromhex("2560951300000002")


@pytest.mark.parametrize(("client_flags", "zeroes"), [(0, 124), (1, 124), (2, 0), (3, 0)], ids=str)
def test_export_name_is_answered_with_size_and_flags(client_flags: int, zeroes: int) -> None:
    server = Server()
    server.feed(struct.pack(">I", client_flags) + wire.option(1, b"snapshot/monday"))
    # read-only: HAS_FLAGS, READ_ONLY, FLUSH, FUA, MULTI_CONN, CACHE; no DF without structured
    assert server.sent == struct.pack(">QH", 1 << 20, 0x50F) + bytes(zeroes)
    assert server.negotiated == Negotiated(structured=False, extended=False, allocation=False)


@pytest.mark.parametrize("flags", [4, 0x80000000, 0xFFFFFFFF])
def test_unknown_client_flags_close(flags: int) -> None:
    with pytest.raises(ProtocolError):
        Server().feed(struct.pack(">I", flags))


OPTION_TABLE: list[tuple[str, list[bytes], list[int]]] = [
    ("unknown option", [wire.option(77, b"anything")], [UNSUP]),
    ("withdrawn PEEK_EXPORT", [wire.option(4)], [UNSUP]),
    ("starttls", [wire.option(5)], [POLICY]),
    ("starttls with data", [wire.option(5, b"x")], [INVALID]),
    ("list", [wire.option(3)], [SERVER, SERVER, ACK]),
    ("list with data", [wire.option(3, b"x")], [INVALID]),
    ("info", [wire.option(6, wire.info_data("disk"))], [INFO, ACK]),
    ("info of all kinds", [wire.option(6, wire.info_data("disk", 0, 1, 2, 3, 9))], [3, 3, 3, 3, 1]),
    ("info of the default", [wire.option(6, wire.info_data(""))], [INFO, ACK]),
    ("info of nothing", [wire.option(6, wire.info_data("none"))], [UNKNOWN]),
    ("go nowhere", [wire.go("none")], [UNKNOWN]),
    ("go without data", [wire.option(7)], [INVALID]),
    ("go with a name too long for it", [wire.option(7, b"\0\0\0\x09disk\0\0")], [INVALID]),
    ("go with too few requests", [wire.option(7, b"\0\0\0\x04disk\0\1")], [INVALID]),
    ("go with bytes behind", [wire.option(7, wire.info_data("disk") + b"x")], [INVALID]),
    ("go to bad UTF-8", [wire.option(7, b"\0\0\0\x02\xff\xfe\0\0")], [INVALID]),
    ("go to a NUL", [wire.go("a\0b")], [INVALID]),
    ("go to a long name", [wire.go("a" * 4097)], [INVALID]),
    ("structured", [wire.option(8)], [ACK]),
    ("structured with data", [wire.option(8, b"x")], [INVALID]),
    ("structured twice", [wire.option(8), wire.option(8)], [ACK, INVALID]),
    ("extended", [wire.option(11)], [ACK]),
    ("extended with data", [wire.option(11, b"x")], [INVALID]),
    ("extended twice", [wire.option(11), wire.option(11)], [ACK, INVALID]),
    ("structured, then extended", [wire.option(8), wire.option(11)], [ACK, ACK]),
    ("extended, then structured", [wire.option(11), wire.option(8)], [ACK, EXT_REQD]),
    ("contexts without structured", [wire.option(9, wire.meta_data("disk"))], [INVALID]),
    ("contexts of nothing", [wire.option(8), wire.option(9, wire.meta_data("x"))], [ACK, UNKNOWN]),
    (
        "contexts cut short",
        [wire.option(8), wire.option(10, wire.meta_data("disk", "base:")[:-1])],
        [ACK, INVALID],
    ),
    (
        "a count of queries that cannot be",
        [wire.option(8), wire.option(9, b"\0\0\0\0\xff\xff\xff\xff")],
        [ACK, INVALID],
    ),
    (
        "too many queries",
        [wire.option(8), wire.option(10, wire.meta_data("disk", *["x:y"] * 65))],
        [ACK, TOO_BIG],
    ),
    (
        "long data",
        [wire.option(77, bytes(MAX_OPTION_BYTES + 1)), wire.option(3)],
        [TOO_BIG, 2, 2, 1],
    ),
]


@pytest.mark.parametrize(
    ("options", "expected"), [row[1:] for row in OPTION_TABLE], ids=[row[0] for row in OPTION_TABLE]
)
def test_each_option_has_its_replies(options: list[bytes], expected: list[int]) -> None:
    assert kinds(*options) == expected


@pytest.mark.parametrize(
    ("number", "queries", "found"),
    [
        (9, [], True),
        (9, ["base:"], True),
        (9, ["base:allocation"], True),
        (9, ["base:other", "qemu:"], False),
        (9, ["nonsense"], False),
        (10, [], False),
        (10, ["base:"], False),
        (10, ["qemu:", "base:allocation"], True),
        (10, ["base:allocation", "base:allocation"], True),
    ],
)
def test_meta_context_queries(number: int, queries: list[str], found: bool) -> None:
    expected = [ACK, META, ACK] if found else [ACK, ACK]
    assert kinds(wire.option(8), wire.option(number, wire.meta_data("disk", *queries))) == expected


SET = wire.option(10, wire.meta_data("disk", "base:allocation"))


@pytest.mark.parametrize(
    ("options", "allocation"),
    [
        ([SET, wire.go("disk")], True),
        ([SET, wire.go("snapshot/monday")], False),
        ([SET, wire.option(10, wire.meta_data("disk")), wire.go("disk")], False),
        ([SET, wire.option(10, b"?"), wire.go("disk")], False),
        ([SET, wire.option(9, wire.meta_data("disk")), wire.go("disk")], True),
        ([wire.option(9, wire.meta_data("disk")), wire.go("disk")], False),
    ],
)
def test_contexts_hold_for_the_export_they_were_set_for(
    options: list[bytes], allocation: bool
) -> None:
    server = Server()
    server.feed(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.option(8) + b"".join(options))
    assert server.negotiated is not None
    assert server.negotiated.allocation is allocation


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotFoundError("none"), UNKNOWN),
        (UnavailableError("stopping"), SHUTDOWN),
        (InvalidRequestError("odd"), INVALID),
        (InUseError("taken"), POLICY),
    ],
)
def test_refusals(error: BockdError, kind: int) -> None:
    server = Server(error)
    server.feed(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.go("disk"))
    (reply,) = server.replies()
    assert (reply.option, reply.kind, reply.data) == (7, kind, str(error).encode())


def test_abort_is_acknowledged_whatever_it_carries() -> None:
    server = Server()
    server.feed(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.option(2, b"bye"))
    assert server.aborted
    assert [reply.kind for reply in server.replies()] == [ACK]


@pytest.mark.parametrize(
    "data",
    [
        b"IHAVEOPS" + bytes(8),
        wire.option(1, b"none"),
        wire.option(1, b"\xff"),
        wire.option(1, b"a" * 4097),
        wire.option(11) + wire.option(1, b"disk"),
        b"IHAVEOPT" + struct.pack(">II", 77, MAX_SKIPPED_OPTION_BYTES + 1),
        b"IHAVEOPT" + struct.pack(">II", 1, MAX_OPTION_BYTES + 1),
    ],
    ids=["magic", "no export", "utf8", "long name", "extended", "huge option", "huge name"],
)
def test_what_closes_the_connection(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Server().feed(wire.FIXED_NEWSTYLE_NO_ZEROES + data)
