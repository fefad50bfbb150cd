"""Large writes to a volume, in the fast lane or without it.

Both give the same replies and the same bytes, in whatever pieces a payload arrives. Nobody waits
for the rest of one.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from bockd.drivers.local.format.journal import JournalSegment
from bockd.model import BLOCK_SIZE, KIB, MIB
from bockd.nbd.protocol.handshake import Negotiated
from bockd.nbd.server import fastlane
from bockd.nbd.server.budget import Account, MemoryBudget
from bockd.nbd.server.channel import Channel
from bockd.nbd.server.connection import Connection
from bockd.nbd.server.fastlane import PayloadLane, Taken, Turn, Why
from bockd.nbd.server.limits import RECEIVE_BUFFER_BYTES, ServerLimits
from bockd.nbd.server.pace import Pace
from bockd.nbd.server.statistics import ExportStatistics
from bockd.nbd.server.together import Together
from bockd.pool.device import PartSizes
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import run_inline
from bockd.throttle.gates import Gates
from tests.amounts import amount
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client
from tests.nbd.server.serving import FixedExports, in_trio
from tests.nbd.server.sides import PLACE_BYTES, SIZE_BYTES, Line, Side, two_sides

pytestmark = pytest.mark.usefixtures("heads")

IN_HEAD = 4 * PLACE_BYTES
"""From here to `FRESH` all is in the head of a `Side`'s volume; before, it is frozen."""
FRESH = 11 * PLACE_BYTES
"""From here on nothing was ever written."""
FUA = 1
LONG_NS = 10_000_000_000


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    with closing(Side(tmp_path, compiled=True, structured=False, extended=False)) as opened:
        yield opened


@contextmanager
def taken_by_the_lane() -> Iterator[list[Taken]]:
    """What the lane answers."""
    answers: list[Taken] = []

    class Watched(PayloadLane):
        def take(
            self, received: memoryview, start: int, end: int, offset: int, length: int, turn: Turn
        ) -> Taken:
            answers.append(super().take(received, start, end, offset, length, turn))
            return answers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastlane, "PayloadLane", Watched)
        yield answers


@asynccontextmanager
async def connected(
    side: Side, *, compiled: bool = True
) -> AsyncIterator[tuple[Connection, Client]]:
    """A connection to a side's volume, without a handshake."""
    ours, theirs = socket.socketpair()
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(fastlane, "compiled", None)
        connection = Connection(
            Channel(ours),
            Account(MemoryBudget(MIB)),
            StepRunner(),
            ServerLimits(),
            Together(Pace(), 0),
        )
        export = await FixedExports({"disk": side.volume}).open("disk")
        negotiated = Negotiated(structured=False, extended=False, allocation=False)
        connection.prepare(export, negotiated, ExportStatistics(), b"", Gates().open)
    theirs.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    with closing(ours):
        async with trio.open_nursery() as nursery, Client(stream) as client:
            nursery.start_soon(connection.run, trio.lowlevel.checkpoint)
            yield connection, client
            connection.drop()
    side._background.run()


async def send_in_pieces(client: Client, data: bytes, cuts: list[int]) -> None:
    """Each when the server has come to terms with the one before."""
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    start = 0
    for end in ends:
        await client.send(data[start:end])
        await trio.testing.wait_all_tasks_blocked(0.001)
        start = end


def noise(seed: int, length: int) -> bytes:
    """Bytes without a block of zeros."""
    return random.Random(seed).randbytes(length)


@dataclass(frozen=True)
class LargeWrite:
    """Where a write goes, and what it holds: here and there a block is all zeros."""

    offset: int
    length: int
    seed: int
    zero_blocks: list[int]

    def data(self) -> bytes:
        data = bytearray(noise(self.seed, self.length))
        for block in self.zero_blocks:
            start = max(0, block * BLOCK_SIZE - self.offset % BLOCK_SIZE)
            end = min(self.length, start + 2 * BLOCK_SIZE)
            data[start:end] = bytes(max(0, end - start))
        return bytes(data)


places = st.sampled_from([0, IN_HEAD, IN_HEAD, IN_HEAD + MIB - PLACE_BYTES, FRESH - 100 * KIB])
large_writes = st.builds(
    LargeWrite,
    st.builds(int.__add__, places, st.sampled_from([0, 0, 0, 4096, 16 * KIB, 512, 1_000, 70_001])),
    st.sampled_from([65_537, 80 * KIB, 256 * KIB, 600 * KIB, MIB, MIB + 5_000]),
    st.integers(0, 99),
    st.lists(st.integers(0, 260), max_size=2),
)
arrivals = st.lists(
    st.one_of(st.integers(1, 400_000), st.integers(10, 50_000), st.just(28)), max_size=4
)


def test_both_lanes_write_the_same() -> None:
    with (
        taken_by_the_lane() as taken,
        two_sides(structured=False, extended=False) as sides,
    ):
        model = bytearray(sides[0].content())

        @settings(max_examples=amount(20), deadline=None)
        @given(large_writes, st.sampled_from([0, 0, 0, FUA]), arrivals)
        def run(write: LargeWrite, flags: int, cuts: list[int]) -> None:
            offset, data = write.offset, write.data()

            async def play(side: Side) -> bytes:
                async with connected(side, compiled=side is sides[0]) as (_, client):
                    await send_in_pieces(client, wire.write(1, offset, data, flags), cuts)
                    first = await client.read(16)
                    await client.send(wire.write(2, offset + 700, b"behind"))
                    return first + await client.read(16)

            model[offset : offset + len(data)] = data
            model[offset + 700 : offset + 706] = b"behind"
            replies = [trio.run(play, side) for side in sides]
            assert replies[0] == replies[1]
            assert replies[0][:16] == struct.pack(">IIQ", 0x67446698, 0, 1)
            assert sides[0].content() == sides[1].content() == bytes(model)

        run()
        for side in sides:
            assert side.content_after_death() == bytes(model)
        assert {answer.why for answer in taken} >= {Why.WRITTEN, Why.FOR_PYTHON, Why.NOTHING_CAME}
        assert sum(answer.written_bytes for answer in taken) > MIB


@in_trio
async def test_overwrites_are_written_as_they_come(side: Side) -> None:
    """Before the payload is complete, and without memory of their own."""
    data = noise(1, MIB)
    with taken_by_the_lane() as taken:
        async with connected(side) as (_, client):
            await send_in_pieces(client, wire.write(1, IN_HEAD, data)[:-10_000], [200_000])
            written = (MIB - 10_000) // (16 * KIB) * 16 * KIB
            assert side.content()[IN_HEAD:][:written] == data[:written]
            assert sum(answer.written_bytes for answer in taken) == written
            await client.send(data[-10_000:])
            assert await client.simple() == (1, 0)
    assert side.content()[IN_HEAD:][:MIB] == data


@in_trio
async def test_a_snapshot_does_not_wait_for_the_rest_of_a_payload(side: Side) -> None:
    """It holds what came before it; the rest goes to the head that comes after it."""
    before, data, half = side.content(), noise(1, MIB), 512 * KIB
    async with connected(side) as (_, client):
        await send_in_pieces(client, wire.write(1, IN_HEAD, data)[: 28 + half + 1], [])
        volume = side.volume.durability.record.id
        snapshot = await StepRunner().run(side.pool.create_snapshot(volume, "half"))
        side._background.run()
        await client.send(data[half + 1 :])
        assert await client.simple() == (1, 0)
    assert side.content()[IN_HEAD:][:MIB] == data
    frozen = memoryview(bytearray(SIZE_BYTES))
    opened = run_inline(side.pool.registry.use_snapshot(snapshot.id))
    run_inline(opened.snapshot.read(0, frozen))
    assert frozen[IN_HEAD:][:half] == data[:half]
    assert frozen[IN_HEAD + half :] == before[IN_HEAD + half :]


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "python"])
def test_a_failed_part_refuses_the_write_and_what_follows_is_served(
    side: Side, compiled: bool
) -> None:
    """The rest of its payload is taken off the stream."""

    @in_trio
    async def run() -> None:
        head = side.layer(4)
        async with connected(side, compiled=compiled) as (_, client):
            await send_in_pieces(client, wire.write(1, IN_HEAD, noise(1, MIB))[:300_000], [])
            good = os.dup(head.first_descriptor)
            with open(os.devnull, "rb") as unwritable:
                os.dup2(unwritable.fileno(), head.first_descriptor)
            try:
                await client.send(wire.write(1, IN_HEAD, noise(1, MIB))[300_000:])
                assert await client.simple() == (1, 5)
            finally:
                os.dup2(good, head.first_descriptor)
                os.close(good)
            await client.send(wire.write(2, IN_HEAD, noise(2, MIB)))
            assert await client.simple() == (2, 0)
        assert side.content()[IN_HEAD:][:MIB] == noise(2, MIB)

    run()


@in_trio
async def test_what_came_with_the_end_of_a_payload_is_not_served_yet(side: Side) -> None:
    """A fence that asks meanwhile waits for it."""
    seen: list[bool] = []
    async with connected(side) as (connection, client):
        counted = connection.count_received

        def count(length: int, unserved: int = 0) -> None:
            counted(length, unserved)
            seen.append(connection.idle())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connection, "count_received", count)
            stream = wire.write(1, IN_HEAD, noise(1, 100_000)) + wire.write(2, 0, b"next")
            await send_in_pieces(client, stream, [50_000])
            assert await client.simple() == (1, 0)
            assert await client.simple() == (2, 0)
            await trio.testing.wait_all_tasks_blocked()
            assert connection.idle()
    # While it waits for the rest; when that came; when it is written, and what follows is not.
    # What is sent at once may come in several pieces.
    waiting = seen.index(False)
    assert waiting >= 1
    assert len(seen[waiting:]) >= 2
    assert not any(seen[waiting:])


class Payload:
    """One payload and the lane that takes it."""

    def __init__(self, side: Side, offset: int, data: bytes, line: Line | None = None) -> None:
        lane = fastlane.payload_lane_for(side.volume)
        assert lane is not None
        self._lane = lane
        self._sock = -1 if line is None else line.ours.fileno()
        self._buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self._offset = offset
        self._left = len(data)
        self.end = 0
        self.position = 0

    def take(self, more: bytes, *, poll_ns: int = 0, turn_ns: int = LONG_NS) -> Taken:
        """With so much more that has come."""
        self._buffer[self.end : self.end + len(more)] = more
        taken = self._lane.take(
            self._buffer,
            self.position,
            self.end + len(more),
            self._offset,
            self._left,
            Turn(self._sock, poll_ns, turn_ns),
        )
        self.position, self.end = taken.position, taken.end
        self._offset += taken.written_bytes
        self._left -= taken.written_bytes
        return taken


def test_parts_end_where_folios_do(side: Side) -> None:
    offset, data = IN_HEAD + 1_000, noise(1, 200_000)
    payload = Payload(side, offset, data)
    taken = payload.take(data[:15_000])
    assert (taken.written_bytes, taken.why) == (0, Why.NOTHING_CAME)
    taken = payload.take(data[15_000:16_000])
    assert (taken.written_bytes, taken.why) == (16 * KIB - 1_000, Why.NOTHING_CAME)
    taken = payload.take(data[16_000:150_000])
    assert (taken.written_bytes, taken.why) == (8 * 16 * KIB, Why.NOTHING_CAME)
    taken = payload.take(data[150_000:])
    assert taken.why is Why.WRITTEN
    assert taken.position == taken.end == len(data)
    assert side.content()[offset:][: len(data)] == data


def test_parts_are_as_long_as_the_device_says(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side.volume, "part_sizes", PartSizes(8 * KIB, 2 * KIB))
    data = noise(1, 100_000)
    payload = Payload(side, IN_HEAD, data)
    assert payload.take(data[:3_000]).written_bytes == 2 * KIB
    assert payload.take(data[3_000:50_000]).written_bytes == 46 * KIB
    assert payload.take(data[50_000:]).why is Why.WRITTEN
    assert side.content()[IN_HEAD:][: len(data)] == data
    monkeypatch.setattr(side.volume, "part_sizes", PartSizes(8 * KIB, 0))
    with pytest.raises(ValueError, match="no such parts"):
        Payload(side, IN_HEAD, data).take(data)


def test_the_lane_receives_what_is_there_until_its_turn_is_over(side: Side) -> None:
    data = noise(1, 200_000)
    with closing(Line(4 * MIB)) as line:
        payload = Payload(side, IN_HEAD, data, line)
        line.say(data[100:150_000])
        taken = payload.take(data[:100], turn_ns=-1)
        assert (taken.received_bytes, taken.why) == (0, Why.TURN_IS_OVER)
        taken = payload.take(b"")
        assert (taken.received_bytes, taken.why) == (149_900, Why.NOTHING_CAME)
        assert taken.written_bytes == 144 * KIB
        assert (taken.position, taken.end) == (0, 150_000 - 144 * KIB)
        line.say(data[150_000:] + b"next")
        taken = payload.take(b"", poll_ns=1_000_000)
        assert (taken.received_bytes, taken.why) == (50_004, Why.WRITTEN)
        assert taken.end - taken.position == 4
        assert side.content()[IN_HEAD:][: len(data)] == data


def test_a_client_that_leaves_is_for_others_to_find(side: Side) -> None:
    data = noise(1, 200_000)
    with closing(Line(4 * MIB)) as line:
        line.hang_up()
        taken = Payload(side, IN_HEAD, data, line).take(data[:70_000])
    assert (taken.received_bytes, taken.why) == (0, Why.NOTHING_CAME)


@pytest.mark.parametrize("offset", [0, IN_HEAD - 64 * KIB, FRESH, SIZE_BYTES - 256 * KIB], ids=str)
def test_new_blocks_are_written_and_staged_as_one_range(side: Side, offset: int) -> None:
    """Over what is frozen, with some that the head has, and where nothing ever was."""
    run_inline(side.volume.flush())
    data, tail = noise(1, 256 * KIB), side.volume.durability.tail
    used = tail.segment.used
    taken = Payload(side, offset, data).take(data[: 200 * KIB])
    assert (taken.written_bytes, taken.why) == (192 * KIB, Why.NOTHING_CAME)
    assert tail.exposed()
    side.volume.commit()
    assert tail.segment.used == used + 1
    expected = side.content()
    assert expected[offset:][: 192 * KIB] == data[: 192 * KIB]
    assert side.content_after_death() == expected


def test_a_leaf_that_was_filled_is_shared(side: Side) -> None:
    """As after a write of all of it at once: it takes less memory."""
    cache, data = side.volume.map, noise(1, MIB)
    for start in range(0, MIB, 256 * KIB):
        piece = data[start : start + 256 * KIB]
        assert Payload(side, 3 * MIB + start, piece).take(piece).why is Why.WRITTEN
        side.volume.commit()
    assert cache.leaves[3] is cache.uniform(side.volume.fast_view().head_slot)
    assert side.content()[3 * MIB :] == data


@pytest.mark.parametrize("offset", [100, FRESH + 512], ids=str)
def test_parts_of_new_blocks_are_for_others(side: Side, offset: int) -> None:
    before, data = side.content(), noise(1, 80_000)
    taken = Payload(side, offset, data).take(data)
    assert (taken.written_bytes, taken.why) == (0, Why.FOR_PYTHON)
    assert side.content() == before


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "python"])
def test_new_blocks_whose_journal_append_fails_are_refused(side: Side, compiled: bool) -> None:
    """Promise D1: what the journal does not know is not acknowledged."""

    def fail(_segment: JournalSegment, _entries: object) -> None:
        raise OSError(5, "the disk is gone")

    @in_trio
    async def run() -> None:
        async with connected(side, compiled=compiled) as (_, client):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(JournalSegment, "append", fail)
                await send_in_pieces(client, wire.write(1, FRESH, noise(1, 600_000)), [300_000])
                assert await client.simple() == (1, 5)
            await client.send(wire.write(2, IN_HEAD, noise(1, MIB)))
            assert await client.simple() == (2, 5)
        assert side.volume.durability.failed is not None

    with taken_by_the_lane() as taken:
        run()
    assert any(answer.written_bytes for answer in taken) is compiled


def test_zeros_that_the_journal_must_foretell_are_for_others(side: Side) -> None:
    """Only while no barrier covers the blocks."""
    data = noise(1, 70_000) + bytes(10_000) + noise(2, 20_000)
    taken = Payload(side, IN_HEAD, data).take(data)
    assert (taken.written_bytes, taken.why) == (64 * KIB, Why.FOR_PYTHON)
    run_inline(side.volume.flush())
    taken = Payload(side, IN_HEAD, data).take(data)
    assert (taken.written_bytes, taken.why) == (100_000, Why.WRITTEN)
    assert side.content()[IN_HEAD:][: len(data)] == data


def test_nothing_is_written_while_others_hold_blocks_or_the_gate_is_closed(side: Side) -> None:
    data = noise(1, 100_000)

    def why() -> Why:
        return Payload(side, IN_HEAD, data).take(data).why

    held = run_inline(side.volume.locks.acquire(0, 1))
    assert why() is Why.FOR_PYTHON
    side.volume.locks.release(held)
    run_inline(side.volume.gate.quiesce())
    assert why() is Why.FOR_PYTHON
    side.volume.gate.open()
    assert why() is Why.WRITTEN


def test_a_sync_covers_what_the_lane_has_written(side: Side) -> None:
    run_inline(side.volume.flush())
    journal = side.volume.fast_view().journal
    assert journal is not None
    assert not journal.unsynced
    Payload(side, IN_HEAD, b"w" * 100_000).take(b"w" * 20_000)
    assert journal.unsynced


def test_where_the_lane_does_not_receive_others_are_asked_whatever_the_turn(side: Side) -> None:
    """With TLS it never does, and then it has no turn."""
    data = noise(1, 200_000)
    taken = Payload(side, IN_HEAD, data).take(data[:100], turn_ns=0)
    assert (taken.written_bytes, taken.why) == (0, Why.NOTHING_CAME)
