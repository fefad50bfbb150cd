"""STARTTLS in the handshake machine: what is answered before TLS, what is forgotten after it."""

from __future__ import annotations

import struct

import pytest

from bockd.model import TlsMode
from bockd.nbd.protocol.errors import ProtocolError
from bockd.nbd.protocol.handshake import (
    MAX_OPTION_BYTES,
    Abort,
    ChooseExport,
    DescribeExport,
    Event,
    Handshake,
    ListExports,
    Reply,
    StartTls,
)
from bockd.nbd.protocol.options import ExportInfo
from tests.nbd.protocol import wire

ACK = 1
POLICY, INVALID, TLS_REQD, TOO_BIG = (0x80000000 + n for n in (2, 3, 5, 9))

STARTTLS = 5
OTHERS = {
    "list": wire.option(3),
    "info": wire.option(6, wire.info_data("disk")),
    "go": wire.go("disk"),
    "structured": wire.option(8),
    "structured with data": wire.option(8, b"x"),
    "list meta": wire.option(9, wire.meta_data("disk")),
    "set meta": wire.option(10, wire.meta_data("disk", "base:allocation")),
    "extended": wire.option(11),
    "unknown": wire.option(99, b"what"),
    "too long": wire.option(6, bytes(MAX_OPTION_BYTES + 1)),
}


def begun(mode: TlsMode, *options: bytes) -> Handshake:
    """A handshake that has received these options."""
    handshake = Handshake(mode)
    handshake.receive(wire.FIXED_NEWSTYLE_NO_ZEROES + b"".join(options))
    return handshake


def secured(mode: TlsMode, *options: bytes) -> Handshake:
    """A handshake that has received `options` through TLS."""
    handshake = begun(mode, wire.option(STARTTLS))
    assert isinstance(handshake.next_event(), StartTls)
    handshake.secured()
    handshake.receive(b"".join(options))
    return handshake


def reply_of(event: Event | None) -> wire.OptionReply:
    assert isinstance(event, Reply | Abort | StartTls)
    (reply,) = wire.option_replies(event.data)
    return reply


@pytest.mark.parametrize("mode", [TlsMode.ON, TlsMode.REQUIRE])
@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_it_is_acknowledged_and_tls_begins(mode: TlsMode, piece: int) -> None:
    handshake = Handshake(mode)
    said = wire.FIXED_NEWSTYLE_NO_ZEROES + wire.option(STARTTLS)
    events = []
    for start in range(0, len(said), piece):
        handshake.receive(said[start : start + piece])
        events.append(handshake.next_event())
    assert events[:-1] == [None] * (len(events) - 1)
    assert isinstance(events[-1], StartTls)
    assert reply_of(events[-1]) == wire.OptionReply(STARTTLS, ACK, b"")


def test_without_tls_it_is_refused_and_the_handshake_goes_on() -> None:
    handshake = begun(TlsMode.OFF, wire.option(STARTTLS), wire.option(3))
    assert reply_of(handshake.next_event()).kind == POLICY
    assert isinstance(handshake.next_event(), ListExports)


@pytest.mark.parametrize("mode", [TlsMode.ON, TlsMode.REQUIRE])
def test_starttls_with_data_is_invalid(mode: TlsMode) -> None:
    handshake = begun(mode, wire.option(STARTTLS, b"x"))
    assert reply_of(handshake.next_event()).kind == INVALID


@pytest.mark.parametrize("mode", [TlsMode.ON, TlsMode.REQUIRE])
@pytest.mark.parametrize("behind", [b"I", wire.option(3), wire.go("disk")])
def test_bytes_behind_it_that_came_without_tls_end_the_connection(
    mode: TlsMode, behind: bytes
) -> None:
    """Whoever is on the way could have put them there."""
    with pytest.raises(ProtocolError, match=f"{len(behind)} bytes behind STARTTLS"):
        begun(mode, wire.option(STARTTLS) + behind).next_event()


def test_what_was_negotiated_before_is_forgotten() -> None:
    handshake = Handshake(TlsMode.ON)
    handshake.receive(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.option(8))
    assert reply_of(handshake.next_event()).kind == ACK
    handshake.receive(wire.option(10, wire.meta_data("disk", "base:allocation")))
    question = handshake.next_event()
    assert isinstance(question, DescribeExport)
    disk = ExportInfo("disk", "", 1 << 20, read_only=False)
    handshake.described(question, disk)
    handshake.receive(wire.option(STARTTLS))
    assert isinstance(handshake.next_event(), StartTls)
    handshake.secured()
    handshake.receive(wire.option(10, wire.meta_data("disk", "base:allocation")))
    assert reply_of(handshake.next_event()).kind == INVALID  # no structured replies any more
    handshake.receive(wire.go("disk"))
    opened = handshake.next_event()
    assert isinstance(opened, ChooseExport)
    _, negotiated = handshake.accepted(opened, disk)
    assert (negotiated.structured, negotiated.extended, negotiated.allocation) == (False,) * 3


def test_extended_headers_are_forgotten_too() -> None:
    handshake = begun(TlsMode.ON, wire.option(11))
    assert reply_of(handshake.next_event()).kind == ACK
    handshake.receive(wire.option(STARTTLS))
    assert isinstance(handshake.next_event(), StartTls)
    handshake.secured()
    handshake.receive(wire.option(11))
    assert reply_of(handshake.next_event()).kind == ACK


@pytest.mark.parametrize("name", OTHERS)
def test_where_it_is_required_everything_else_has_to_wait(name: str) -> None:
    said = OTHERS[name]
    (number,) = struct.unpack_from(">I", said, 8)
    handshake = begun(TlsMode.REQUIRE, said, wire.option(STARTTLS))
    reply = reply_of(handshake.next_event())
    assert (reply.option, reply.kind) == (number, TLS_REQD)
    assert isinstance(handshake.next_event(), StartTls)


@pytest.mark.parametrize("name", OTHERS)
def test_afterwards_everything_is_as_without_it(name: str) -> None:
    through = secured(TlsMode.REQUIRE, OTHERS[name]).next_event()
    plain = begun(TlsMode.OFF, OTHERS[name]).next_event()
    assert through == plain


def test_where_it_is_required_export_name_ends_the_connection() -> None:
    """The option has no error reply."""
    with pytest.raises(ProtocolError, match="without TLS"):
        begun(TlsMode.REQUIRE, wire.option(1, b"disk")).next_event()
    assert isinstance(secured(TlsMode.REQUIRE, wire.option(1, b"disk")).next_event(), ChooseExport)


def test_where_it_is_required_a_client_may_leave() -> None:
    event = begun(TlsMode.REQUIRE, wire.option(2)).next_event()
    assert isinstance(event, Abort)
    assert reply_of(event).kind == ACK


@pytest.mark.parametrize("mode", [TlsMode.ON, TlsMode.REQUIRE])
def test_a_second_starttls_is_invalid(mode: TlsMode) -> None:
    handshake = secured(mode, wire.option(STARTTLS), wire.option(3))
    assert reply_of(handshake.next_event()).kind == INVALID
    assert isinstance(handshake.next_event(), ListExports)
