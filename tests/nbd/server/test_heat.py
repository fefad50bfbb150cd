"""Heat: which regions requests touch, faded with time, at a bounded cost."""

from __future__ import annotations

import pytest

from bockd.model import GIB, MAX_VOLUME_BYTES, MIB, TIB
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol.transmission import COMPACT_REQUEST, EXTENDED_REQUEST
from bockd.nbd.server.heat import (
    HALF_LIFE_SECONDS,
    LOOK_SECONDS,
    MAX_MARKS,
    MAX_REGIONS,
    Heat,
    region_bytes_for,
)


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def request(command: int, offset: int, length: int, payload: bytes = b"") -> bytes:
    """A compact request."""
    return COMPACT_REQUEST.pack(nbd.REQUEST_MAGIC, 0, command, 7, offset, length) + payload


def looked(heat: Heat, received: bytes) -> None:
    """Have it look at a receive buffer that is larger than what was received."""
    heat.look(memoryview(received + bytes(64)), len(received))


@pytest.mark.parametrize(
    ("size", "region"),
    [
        (MIB, MIB),
        (2 * GIB, MIB),
        (2 * GIB + 4096, 2 * MIB),
        (TIB, 512 * MIB),
        (MAX_VOLUME_BYTES, 8 * GIB),
    ],
)
def test_regions(size: int, region: int) -> None:
    assert region_bytes_for(size) == region
    assert len(Heat(size).report().reads) == -(-size // region) <= MAX_REGIONS


def test_each_region_that_a_request_touches_is_marked() -> None:
    heat = Heat(4 * MIB + 4096, Clock())
    looked(
        heat,
        request(nbd.CMD_READ, MIB - 1, 2)
        + request(nbd.CMD_WRITE, 2 * MIB, 512, bytes(512))
        + request(nbd.CMD_READ, 4 * MIB, 4096)
        + request(nbd.CMD_FLUSH, 0, 0)
        + request(nbd.CMD_TRIM, 2 * MIB, 2 * MIB)
        # Neither of these touches anything.
        + request(nbd.CMD_READ, 5 * MIB, 4096)
        + request(nbd.CMD_READ, MIB, 0),
    )
    found = heat.report()
    assert found.reads == (1, 1, 0, 0, 1)
    assert found.writes == (0, 0, 2, 1, 0)
    assert found.ages == (0, 0, 0, 0, 0)


def test_a_write_that_is_on_its_way_is_seen_once() -> None:
    clock = Clock()
    heat = Heat(MIB, clock)
    whole = request(nbd.CMD_WRITE, 0, 4096, bytes(4096))
    for end in (10, 100, len(whole)):
        looked(heat, whole[:end])
        clock.now += LOOK_SECONDS
    assert heat.report().writes[0] == pytest.approx(1, abs=0.02)
    # A large one is received elsewhere: its header is what is seen.
    looked(heat, request(nbd.CMD_WRITE, 0, MIB, b"x"))
    assert heat.report().writes[0] == pytest.approx(2, abs=0.02)


def test_extended_requests() -> None:
    heat = Heat(2 * MIB, Clock())
    header = EXTENDED_REQUEST.pack(nbd.EXTENDED_REQUEST_MAGIC, 0, nbd.CMD_READ, 7, MIB, 4096)
    looked(heat, header + header)
    assert heat.report().reads == (0, 2)


def test_it_fades() -> None:
    clock = Clock()
    heat = Heat(MIB, clock)
    looked(heat, request(nbd.CMD_READ, 0, 4096) * 8)
    for seconds, left, age in ((0, 8, 0), (HALF_LIFE_SECONDS, 4, 20), (HALF_LIFE_SECONDS, 2, 40)):
        clock.now += seconds
        assert (heat.report().reads, heat.report().ages) == ((left,), (age,))


def test_garbage_is_nothing() -> None:
    clock = Clock()
    heat = Heat(MIB, clock)
    for received in (b"", b"x" * 100, request(99, 0, 4096), request(nbd.CMD_READ, 2**64 - 1, 2)):
        looked(heat, received)
        clock.now += 1
    assert heat.report().reads == (0,)
    assert heat.report().ages == (None,)


def test_a_look_has_its_bounds() -> None:
    clock = Clock()
    heat = Heat(MAX_REGIONS * MIB, clock)
    looked(heat, request(nbd.CMD_TRIM, 0, 2**31) * 1000)
    assert sum(heat.report().writes) == MAX_MARKS
    # The next one comes too early to be looked at.
    looked(heat, request(nbd.CMD_READ, 0, 4096))
    assert sum(heat.report().reads) == 0
    clock.now += LOOK_SECONDS
    looked(heat, request(nbd.CMD_READ, 0, 4096))
    assert sum(heat.report().reads) == 1
