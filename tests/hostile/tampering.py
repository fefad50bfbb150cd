"""A TLS client on whose bytes somebody tampers on the way, from its hello to its last request.

What it sends is cut into records, each with a number. Some of them are changed, cut short, lost,
doubled or exchanged, or others are pushed in before them; then the client is heard no more. Whoever
makes the choices decides what is done: Hypothesis in the tests, coverage in the fuzzer.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st

from tests.hostile.judge import GREETING
from tests.hostile.live import STARTTLS, Address, acknowledged, connect, received_until
from tests.hostile.sessions import Chooser, Drawn
from tests.nbd.protocol import wire

BLOCK = 4096
WRITES = 3
"""Of a session, each in a record of its own, to the first blocks of the export."""

CHANGE_CIPHER, ALERT, HANDSHAKE, APPLICATION = range(20, 24)
"""Types of records: RFC 8446, section 5.1."""
HEADER_BYTES = 5

VERSIONS = {
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}

LAST: Final = 12
"""Of a session's records, unless its hello comes in many."""


@dataclass(frozen=True)
class Tampering:
    """What happens to one record."""

    record: int
    """Its number."""
    deed: str
    """A key of `DEEDS`."""
    at: int
    data: bytes


@dataclass(frozen=True)
class Attack:
    """A session and what becomes of it."""

    version: str
    fragments: int
    """The hello comes in records of so many bytes, as it may; 0 for whole."""
    tamperings: tuple[Tampering, ...]
    reset: bool
    """Whether the end of it is a reset, and not the end of the stream."""


DEEDS: dict[str, Callable[[bytes, int, bytes], bytes]] = {
    "change": lambda record, at, data: _changed(record, at % len(record), data),
    "cut": lambda record, at, _: record[: at % len(record)],
    "lose": lambda _record, _at, _data: b"",
    "double": lambda record, _at, _data: record * 2,
    "push in": lambda record, at, data: data * (1 + at) + record,
}
"""Beside "exchange", which takes two records."""


def _changed(record: bytes, at: int, data: bytes) -> bytes:
    return (record[:at] + data + record[at + len(data) :])[: len(record)]


@st.composite
def attacks(draw: st.DrawFn) -> Attack:
    """Any of them."""
    return attack(Drawn(draw))


def attack(choose: Chooser) -> Attack:
    """One."""
    version = list(VERSIONS)[choose.number(0, 1)]
    fragments = (0, 0, 0, 1, 50)[choose.number(0, 4)]
    tamperings = {choose.number(0, LAST): None for _ in range(choose.number(0, 2))}
    return Attack(
        version,
        fragments,
        tuple(_tampering(choose, record) for record in sorted(tamperings)),
        reset=choose.number(0, 5) == 5,
    )


def _tampering(choose: Chooser, record: int) -> Tampering:
    deed = ("change", "change", "change", "cut", "lose", "double", "exchange", "push in")[
        choose.number(0, 7)
    ]
    if deed == "push in":
        times = (0, 0, 0, 50, 2000)[choose.number(0, 4)]
        return Tampering(record, deed, times, _foreign(choose))
    # Lengths and types are at the beginning; beyond, in a hello, anywhere.
    at = choose.number(0, 10) if choose.number(0, 2) == 0 else choose.number(0, 4096)
    data = (b"\xff\xff", b"\0\0", b"")[choose.number(0, 2)] or choose.some(3) + b"\x01"
    return Tampering(record, deed, at, data)


def _foreign(choose: Chooser) -> bytes:
    """A record of somebody else's, or none at all."""
    content = choose.some(40)
    if choose.number(0, 5) == 0:
        return wire.go("disk") + content
    kind = (CHANGE_CIPHER, ALERT, HANDSHAKE, APPLICATION, 24, 0, 255)[choose.number(0, 6)]
    version = (0x0303, 0x0301, 0x0304, 0x0002, 0xFFFF)[choose.number(0, 4)]
    lengths = (len(content), len(content), 0, 1, 16_384, 16_385, 18_433, 65_535)
    return struct.pack(">BHH", kind, version, lengths[choose.number(0, 7)]) + content


# -- carried out -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    untouched: bool
    """Nothing was tampered with: all records went out as they were."""
    sound: int
    """How many writes came before anything that must have ended the session."""
    acknowledged: int


def content(number: int, write: int) -> bytes:
    """What the session with that number writes to a block."""
    return struct.pack(">QQ", number, write) * (BLOCK // 16)


def carry_out(
    address: Address, context: ssl.SSLContext, name: str, attack: Attack, number: int
) -> Outcome:
    """Hold the session. AssertionError where the server answers in anything but TLS's records, or
    ends a session that nobody touched; TimeoutError when it does not close."""
    with connect(address) as sock:
        assert received_until(sock, len(GREETING)) == GREETING
        sock.sendall(wire.FIXED_NEWSTYLE_NO_ZEROES + STARTTLS)
        acknowledged(sock)
        requests = [wire.write(n, n * BLOCK, content(number, n)) for n in range(WRITES)]
        says = [wire.go(name), *requests, wire.request(2)]
        return _Session(sock, context, says, attack).hold()


class _Session:
    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, says: Sequence[bytes], attack: Attack
    ) -> None:
        self._sock = sock
        self._says = says
        self._attack = attack
        context.minimum_version = context.maximum_version = VERSIONS[attack.version]
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        self._sent = 0
        """Records, before the next flight."""
        self._flight: list[bytes] = []
        """Records that are to go out together."""
        self._places: list[int] = []
        """The numbers of the records of all that is said."""
        self._ends_at: int | None = None
        """The number of the first record that the server must not take."""
        self._heard = b""

    def hold(self) -> Outcome:
        while True:
            entered = self._advance()
            self._collect()
            for said in self._says if entered else ():
                self._places.append(self._sent + len(self._flight))
                self._tls.write(said)
                self._collect()
            untouched = self._send()
            if entered or not untouched:
                return self._ended(untouched=untouched)
            assert self._hear(), "it has closed, and nothing was wrong"

    def _advance(self) -> bool:
        """Whether the client is through with its handshake."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def _hear(self) -> bool:
        """Take more from the server; False when it has closed."""
        data = self._sock.recv(1 << 16)
        self._heard += data
        self._in.write(data)
        return bool(data)

    def _collect(self) -> None:
        records = _records(self._out.read())
        if self._sent + len(self._flight) == 0 and self._attack.fragments:
            records = _fragmented(records[0], self._attack.fragments) + records[1:]
        self._flight += records

    def _send(self) -> bool:
        """Send what becomes of a flight; whether it is as it was."""
        records, untouched = list(self._flight), True
        for tampering in self._attack.tamperings:
            here = tampering.record - self._sent
            if not 0 <= here < len(records):
                continue
            before, record = list(records), records[here]
            if tampering.deed == "exchange":
                records[here : here + 2] = reversed(records[here : here + 2])
            elif record:
                records[here] = DEEDS[tampering.deed](record, tampering.at, tampering.data)
            if records != before:
                untouched = False
                if self._ends_at is None and not _tolerable(tampering, record):
                    self._ends_at = tampering.record + (tampering.deed == "double")
        self._sent += len(records)
        self._flight = []
        with suppress(ConnectionError):  # it has closed, as it may
            self._sock.sendall(b"".join(records))
        return untouched

    def _ended(self, *, untouched: bool) -> Outcome:
        """Say no more, and take what the server says until it closes."""
        writes = self._places[1:-1]
        sound = sum(self._ends_at is None or place < self._ends_at for place in writes)
        if not untouched and self._attack.reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return Outcome(untouched, sound, 0)
        with suppress(OSError):  # it has closed, as it may; then the socket is not connected
            if not untouched:
                self._sock.shutdown(socket.SHUT_WR)
            while self._hear():
                pass
        for record in _records(self._heard):
            assert CHANGE_CIPHER <= record[0] <= APPLICATION, self._heard[:64]
        return Outcome(untouched, sound, self._acknowledged())

    def _acknowledged(self) -> int:
        """Writes, as far as the client can read what the server has said."""
        replies = b""
        with suppress(ssl.SSLError):
            while data := self._tls.read(1 << 16):
                replies += data
        return replies.count(struct.pack(">II", 0x67446698, 0))


def _tolerable(tampering: Tampering, record: bytes) -> bool:
    """Whether TLS lets it pass, or may: what says nothing, and what is not protected."""
    if record[0] == CHANGE_CIPHER:
        return True
    if tampering.deed == "push in":
        return record[0] == HANDSHAKE
    header = tampering.at % len(record) < HEADER_BYTES
    return tampering.deed == "change" and record[0] == HANDSHAKE and header


def _records(data: bytes) -> list[bytes]:
    """TLS records; the last one may be incomplete."""
    records = []
    while data:
        length = HEADER_BYTES + int.from_bytes(data[3:5])
        records.append(data[:length])
        data = data[length:]
    return records


def _fragmented(hello: bytes, size: int) -> list[bytes]:
    """The same message in several records."""
    message = hello[HEADER_BYTES:]
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return [hello[:3] + struct.pack(">H", len(part)) + part for part in parts]
