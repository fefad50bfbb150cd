"""Recordings of what an export is sent: by both lanes alike, exactly, in the order of arrival."""

from __future__ import annotations

import io
import itertools
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import trio

from bockd.drivers.memory.device import MemoryDevice
from bockd.errors import InUseError, NotFoundError, OverLimitError
from bockd.model import BLOCK_SIZE, KIB, MIB, IoLimits, IoRate, NodeKind
from bockd.nbd.server import fastlane
from bockd.nbd.server.durations import Operation
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.recordings import LEASE_SECONDS, MAX_RECORDINGS, Recordings
from bockd.nbd.server.statistics import ExportStatistics
from bockd.nbd.server.tracering import Ring
from bockd.runtime.steps import run_inline
from bockd.throttle.gates import Applied
from bockd.trace.records import RECORD, Ending, Kind, Record, in_order, read_records
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client
from tests.nbd.server.lanes import STYLES
from tests.nbd.server.serving import FixedExports, in_jumping_time, in_trio, serving
from tests.nbd.server.sides import SIZE_BYTES, Line, Side, drop
from tests.nbd.server.turns import Lane, requests, serve_together, several_sides

KEY = ExportKey(NodeKind.VOLUME, 1)
Asked = tuple[Kind, int, int, int]


def recorded(content: bytes) -> tuple[list[Record], Ending]:
    ending = Ending()
    return list(in_order(read_records(io.BytesIO(content), "t", ending))), ending


def counted(records: list[Record]) -> list[int]:
    """How many there are by operation."""
    kinds = Counter(one.kind for one in records)
    trims = kinds[Kind.TRIM] + kinds[Kind.ZERO]
    return [kinds[Kind.READ], kinds[Kind.WRITE], kinds[Kind.FLUSH], trims]


def asked_of(records: list[Record]) -> list[Asked]:
    return [(one.kind, one.flags, one.offset, one.length) for one in records]


class StillClock(trio.abc.Clock):
    """A clock that stands at the time for which somebody waits, and goes no further by itself."""

    def __init__(self) -> None:
        self._now = 0.0

    def start_clock(self) -> None:
        """See trio.abc.Clock."""

    def current_time(self) -> float:
        """See trio.abc.Clock."""
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """See trio.abc.Clock."""
        self._now = max(self._now, deadline)
        return 0


class Asking:
    """A stream of requests of all kinds and sizes, and what a recording of it has."""

    def __init__(self, *, extended: bool, structured: bool) -> None:
        self._extended = extended
        self._structured = structured
        self._chance = random.Random(7)
        self.parts: list[bytes] = []
        self.expected: list[Asked] = []
        for _ in range(400):
            self._plain()
        for _ in range(200):
            self._any()

    def _plain(self) -> None:
        offset = self._chance.randrange(SIZE_BYTES // BLOCK_SIZE) * BLOCK_SIZE
        if self._chance.random() < 0.5:
            self._ask(Kind.READ, 0, offset, BLOCK_SIZE)
        else:
            self._ask(Kind.WRITE, 0, offset, BLOCK_SIZE)

    def _any(self) -> None:
        kinds = [kind for kind in Kind if kind < Kind.LOST]
        if not self._structured:
            kinds.remove(Kind.STATUS)
        kind = self._chance.choice(kinds)
        length = self._chance.choice([512, BLOCK_SIZE, 9_000, 64 * KIB, 300 * KIB, MIB + 512])
        offset = self._chance.randrange((SIZE_BYTES - length) // 512) * 512
        flags = 0
        if kind is Kind.STATUS:
            flags = self._chance.choice([0, 8])
        elif kind is Kind.ZERO:
            flags = self._chance.choice([0, 1, 2, 3])
        elif kind.changes:
            flags = self._chance.choice([0, 1])
        if kind is Kind.FLUSH:
            offset = length = 0
        if self._chance.random() < 0.05 and kind is not Kind.FLUSH:  # refused, and not recorded
            self._send(kind, flags, SIZE_BYTES, length)
        self._ask(kind, flags, offset, length)

    def _ask(self, kind: Kind, flags: int, offset: int, length: int) -> None:
        self._send(kind, flags, offset, length)
        self.expected.append((kind, flags, offset, length))

    def _send(self, kind: Kind, flags: int, offset: int, length: int) -> None:
        cookie = len(self.parts)
        if kind is Kind.WRITE:
            form = wire.extended_write if self._extended else wire.write
            self.parts.append(form(cookie, offset, bytes([1 + cookie % 255]) * length, flags))
        else:
            ask = wire.extended if self._extended else wire.request
            self.parts.append(ask(kind, cookie, offset, length, flags))


@pytest.fixture(params=["compiled", "python"])
def side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    """A volume behind either lane."""
    if request.param == "python":
        monkeypatch.setattr(fastlane, "compiled", None)
    with tempfile.TemporaryDirectory() as root, ExitStack() as stack:
        made = Side(
            Path(root), compiled=request.param == "compiled", structured=False, extended=False
        )
        stack.callback(made.close)
        yield made


async def negotiated(path: Path, *, structured: bool, extended: bool) -> Client:
    options = [wire.option(11)] if extended else [wire.option(8)] if structured else []
    if structured:
        options.append(wire.option(10, wire.meta_data("a", "base:allocation")))
    return await Client.go(path, "a", *options)


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize(("structured", "extended"), STYLES)
def test_a_recording_has_each_request_in_the_order_of_arrival(
    side: Side, path: Path, structured: bool, extended: bool, cold: bool
) -> None:
    """Whichever lane served it, and whether its data had to be read from the disk."""
    if cold:
        run_inline(side.volume.flush())
        drop(side)

    @in_trio
    async def run() -> None:
        table = FixedExports({"a": side.volume})
        asking = Asking(extended=extended, structured=structured)
        end = wire.extended(2) if extended else wire.request(2)
        async with serving(table, path) as server:
            recording = server.recordings.begin(KEY, server.statistics_of(KEY, "a"))
            async with (
                await negotiated(path, structured=structured, extended=extended) as client,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(client.send, b"".join(asking.parts) + end)
                await client.closes()
            while server.connections(KEY):
                await trio.lowlevel.checkpoint()
            records, ending = recorded(server.recordings.end(recording))
        assert asked_of(records) == asking.expected
        assert ending == Ending(complete=True, lost=0)
        assert all(0 < one.latency_ns < 10**11 for one in records)
        entered = server.statistics_of(KEY, "a").durations
        assert [sum(entered.between_bounds(one)) for one in Operation] == counted(records)

    run()
    side._background.run()


def test_lanes_that_take_turns_record_what_each_has_served() -> None:
    with several_sides(structured=False, extended=False) as pairs, ExitStack() as stack:
        lanes, streams = [], []
        for number, (side, _) in enumerate(pairs):
            line = stack.enter_context(closing(Line(4 * MIB)))
            side.statistics.trace = Ring(4096)
            lanes.append(Lane(side, line))
            streams.append(requests(300, extended=False, first=number))
            lanes[-1].hear(streams[-1], 28)
        serve_together(lanes, 1_000_000)
        for lane, stream in zip(lanes, streams, strict=True):
            assert lane.rest() == b""
            assert lane.side.statistics.trace is not None
            found, _ = recorded(lane.side.statistics.trace.take())
            asked, position = list[Asked](), 0
            while position < len(stream):
                kind = Kind(stream[position + 7])
                offset = int.from_bytes(stream[position + 16 : position + 24], "big")
                asked.append((kind, 0, offset, BLOCK_SIZE))
                position += 28 + BLOCK_SIZE * (kind is Kind.WRITE)
            assert asked_of(found) == asked


def test_a_full_ring_drops_requests_and_counts_them() -> None:
    """In the compiled lane; what is taken out makes room."""
    with several_sides(structured=False, extended=False) as pairs:
        side = pairs[0][0]
        ring = side.statistics.trace = Ring(8)
        for round_ in range(3):
            stream = b"".join(wire.request(0, n, n * 512, 512) for n in range(round_, 20))
            side.serve(stream)
            records, ending = recorded(ring.take())
            assert [one.offset // 512 for one in records] == list(range(round_, round_ + 8))
            assert ending.lost == 12 - round_
        assert ring.take() == b""


def test_a_ring_goes_round_and_gives_parts() -> None:
    ring, now = Ring(8), 1 << 62
    for first in range(0, 40, 5):
        ring.add([(33, 1, 0, first + n, 7, n) for n in range(5)], now, now + 3)
        content = ring.take(3)
        assert len(content) == 3 * RECORD.size
        records, _ = recorded(content + ring.take(3))
        assert [one.offset for one in records] == list(range(first, first + 5))
        assert {(one.flags, one.length, one.latency_ns) for one in records} == {(1, 7, 3)}
    ring.add([(0, 0, 0, 0, 1, 0)] * 11, now, now)
    assert len(ring.take(4)) == 4 * RECORD.size  # what was lost is told behind the last one
    records, ending = recorded(ring.take())
    assert (len(records), ending.lost) == (4, 3)


def test_what_came_before_the_recording_is_not_in_it() -> None:
    ring = Ring(8)
    ring.add([(0, 0, 0, 0, 1, 0)], 1, 2)
    assert ring.take() == b""


@pytest.mark.parametrize("content", [bytes(39), bytes(80), b"\3" + bytes(159), b"\1" + bytes(39)])
def test_the_lane_refuses_what_is_no_ring(content: bytes) -> None:
    with several_sides(structured=False, extended=False) as pairs:
        side = pairs[0][0]
        ring = side.statistics.trace = Ring(8)
        ring.memory = memoryview(bytearray(content))
        with pytest.raises(ValueError, match="no ring of records"):
            side.serve(wire.request(0, 1, 0, 512))


@in_trio
async def test_a_volume_is_recorded_once_at_a_time() -> None:
    recordings, statistics = Recordings(), ExportStatistics()
    first = recordings.begin(KEY, statistics)
    with pytest.raises(InUseError, match="volume 1 is being recorded already"):
        recordings.begin(KEY, statistics)
    others = [
        recordings.begin(ExportKey(NodeKind.VOLUME, number), ExportStatistics())
        for number in range(2, MAX_RECORDINGS + 1)
    ]
    with pytest.raises(OverLimitError, match="4 recordings are under way"):
        recordings.begin(ExportKey(NodeKind.VOLUME, 99), ExportStatistics())
    assert recorded(recordings.end(first)) == ([], Ending(complete=True))
    assert statistics.trace is None
    for use in (recordings.take, recordings.end):
        with pytest.raises(NotFoundError, match="the recording has ended"):
            use(first)
    assert recordings.begin(KEY, statistics) not in (first, *others)


@in_jumping_time
async def test_a_recording_that_nobody_asks_for_ends() -> None:
    recordings, statistics, other = Recordings(), ExportStatistics(), ExportStatistics()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recordings.watch)
        left = recordings.begin(KEY, statistics)
        await trio.sleep(LEASE_SECONDS / 2)
        kept = recordings.begin(ExportKey(NodeKind.VOLUME, 2), other)
        await trio.sleep(LEASE_SECONDS / 2 - 1)
        assert recordings.take(kept) == b""
        assert statistics.trace is not None
        await trio.sleep(2)
        assert statistics.trace is None
        with pytest.raises(NotFoundError):
            recordings.take(left)
        assert other.trace is not None
        await trio.sleep(LEASE_SECONDS)
        assert other.trace is None
        # And so does one that begins after there was none.
        recordings.begin(KEY, statistics)
        await trio.sleep(LEASE_SECONDS + 1)
        assert statistics.trace is None
        nursery.cancel_scope.cancel()


def test_a_recording_ends_whatever_is_lost_to_rounding() -> None:
    """Times are floats: of some, the lease cannot be taken off again as it was added."""
    chance = random.Random(1)
    times = (chance.uniform(0, 1e6) for _ in iter(int, 1))
    odd = next(time for time in times if time + LEASE_SECONDS - LEASE_SECONDS < time)
    looks = 0

    async def run() -> None:
        nonlocal looks
        recordings, statistics = Recordings(), ExportStatistics()
        await trio.sleep_until(odd)
        recordings.begin(KEY, statistics)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recordings.watch)
            while statistics.trace is not None and looks < 100:
                looks += trio.current_time() >= odd + LEASE_SECONDS
                await trio.sleep_until(odd + LEASE_SECONDS)
            nursery.cancel_scope.cancel()

    trio.run(run, clock=StillClock())
    assert looks < 100


@in_jumping_time
async def test_what_limits_hold_is_recorded_as_long_as_it_took(path: Path) -> None:
    """From when it was held, as durations have it, and in the order in which it came."""
    async with serving(FixedExports({"a": MemoryDevice(MIB)}), path) as server:
        limits = IoLimits(iops=IoRate(1, burst=1, burst_seconds=1))
        server.gates.look_up = lambda _: Applied(limits)
        recording = server.recordings.begin(KEY, server.statistics_of(KEY, "a"))
        asked: list[Asked] = []
        stream = b""
        for number in range(12):
            offset = number * BLOCK_SIZE
            kind = Kind.WRITE if number % 4 == 3 else Kind.READ if number % 4 else Kind.TRIM
            asked.append((kind, 0, offset, BLOCK_SIZE))
            if kind is Kind.WRITE:
                stream += wire.write(number, offset, bytes([number]) * BLOCK_SIZE)
            else:
                stream += wire.request(kind, number, offset, BLOCK_SIZE)
        async with await Client.go(path, "a") as client:
            await client.send(stream)
            await trio.testing.wait_all_tasks_blocked()
            server.gates.look_up = lambda _: Applied()
            server.gates.refresh()  # all that is held passes in one batch
            await client.send(wire.request(2))
            await client.closes()
        records, _ = recorded(server.recordings.end(recording))
        assert asked_of(records) == asked
        times = [one.time_ns for one in records]
        assert times[0] < times[1] == times[-1]
        entered = server.statistics_of(KEY, "a").durations
        assert (
            [sum(entered.between_bounds(one)) for one in Operation]
            == counted(records)
            == [6, 3, 0, 3]
        )
        seconds = sum(entered.seconds(one) for one in Operation)
        assert seconds == pytest.approx(sum(one.latency_ns for one in records) / 1e9, abs=1e-9)


@in_jumping_time
async def test_each_that_limits_hold_took_as_long_as_itself_has_waited(path: Path) -> None:
    """Whatever passes with it; and a large write from when it came, not from when it may pass."""
    async with serving(FixedExports({"a": MemoryDevice(4 * MIB)}), path) as server:
        server.gates.look_up = lambda _: Applied(IoLimits(iops=IoRate(1)))
        recording = server.recordings.begin(KEY, server.statistics_of(KEY, "a"))
        ring = server.recordings._find(recording).ring
        ages = [ring.age_ns()]
        async with await Client.go(path, "a") as client:
            await client.read_data(0, 512)
            ages.append(ring.age_ns())
            for asked in (wire.request(0, 2, 0, 512), wire.write(3, 0, bytes(MIB))[:9000]):
                await client.send(asked)
                await trio.testing.wait_all_tasks_blocked()
                ages.append(ring.age_ns())
            server.gates.look_up = lambda _: Applied()
            server.gates.refresh()
            await client.send(bytes(MIB + 28 - 9000) + wire.request(2))
            await client.closes()
        records, _ = recorded(server.recordings.end(recording))
        assert [one.length for one in records] == [512, 512, MIB]
        for one, (before, after) in zip(records, itertools.pairwise(ages), strict=True):
            assert before < one.time_ns < after


@in_jumping_time
async def test_what_passes_limits_together_keeps_its_times(path: Path) -> None:
    async with serving(FixedExports({"a": MemoryDevice(MIB)}), path) as server:
        server.gates.look_up = lambda _: Applied(IoLimits(iops=IoRate(1)))
        recording = server.recordings.begin(KEY, server.statistics_of(KEY, "a"))
        async with await Client.go(path, "a") as client:
            for number in range(4):
                await client.send(wire.request(0, number, number * 512, 512))
                await trio.testing.wait_all_tasks_blocked()
            server.gates.look_up = lambda _: Applied()
            server.gates.refresh()
            await client.send(wire.request(2))
            await client.closes()
        records, _ = recorded(server.recordings.end(recording))
        assert [one.offset for one in records] == [0, 512, 1024, 1536]
        assert len({one.time_ns for one in records}) == 4


@in_trio
async def test_counters_of_an_export_that_is_recorded_are_not_dropped(path: Path) -> None:
    """Or what is sent after the volume was closed and opened again would be missed."""
    async with serving(FixedExports({"a": MemoryDevice(MIB)}), path) as server:
        recording = server.recordings.begin(KEY, server.statistics_of(KEY, "a"))
        server.forget(KEY)
        async with await Client.go(path, "a") as client:
            assert await client.read_data(512, 1024) == bytes(1024)
        records, _ = recorded(server.recordings.end(recording))
        assert asked_of(records) == [(Kind.READ, 0, 512, 1024)]
        while server.connections(KEY):
            await trio.lowlevel.checkpoint()
        server.forget(KEY)
        assert server.exports() == []
