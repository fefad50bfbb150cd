"""The compiled fast lane: the same replies and the same bytes as without it, whatever is asked."""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bockd.engine.pool import Pool
from bockd.engine.volume import Volume
from bockd.model import BLOCK_SIZE, MIB
from bockd.nbd.errors import ProtocolError
from bockd.nbd.replies import encoder_for
from bockd.nbd.transmission import RequestLimits, RequestParser
from bockd.server import fastlane
from bockd.server.batch import Batch
from bockd.server.limits import REPLY_BUFFER_BYTES
from bockd.server.statistics import ExportStatistics
from bockd.server.work import Work
from bockd.steps import Background, Blocking, Step, Steps, run_inline
from tests.nbd import wire

SIZE_BYTES = 4 * MIB
PLACES = 16
PLACE_BYTES = SIZE_BYTES // PLACES
WRITTEN = 11
"""Places that are in the head or frozen; the rest were never written."""
STYLES = [(False, False), (True, False), (True, True)]
"""Structured, extended."""


def test_it_is_compiled() -> None:
    """Wherever these tests run there is a compiler: without it they would show nothing."""
    assert fastlane.load({}) is not None


def test_it_can_be_left_out() -> None:
    assert fastlane.load({fastlane.VARIABLE: "off"}) is None


def test_a_daemon_without_it_is_a_daemon() -> None:
    """As where there is no compiler."""
    hidden = "import sys; sys.modules['bockd.server._fastlane'] = None\n"
    code = "from bockd.server import fastlane, connection; assert fastlane.compiled is None"
    subprocess.run([sys.executable, "-c", hidden + code], check=True, timeout=60)


class Side:
    """A volume with something in its head, something frozen and something never written, and the
    server's part above it, with the fast lane or without."""

    def __init__(self, root: Path, *, compiled: bool, structured: bool, extended: bool) -> None:
        self._background = Background()
        self.pool = Pool.open(root, self._background.spawn)
        record = run_inline(self.pool.create_volume("v", SIZE_BYTES, None))
        self.volume: Volume = run_inline(self.pool.use_volume(record.id)).volume
        self._write(b"f", [0, 1, 2, 3, 4, 5, 6, 7])
        run_inline(self.pool.create_snapshot(record.id, "s"))
        self._write(b"h", list(range(4, WRITTEN)))
        self.content()  # brings the map into memory
        self.statistics = ExportStatistics()
        self._extended = extended
        encoder = encoder_for(structured=structured, extended=extended)
        limits = RequestLimits(
            size_bytes=SIZE_BYTES,
            read_only=False,
            extended=extended,
            chunked=structured,
            allocation=structured,
        )
        with pytest.MonkeyPatch.context() as patch:
            if not compiled:
                patch.setattr(fastlane, "compiled", None)
            self._batch = Batch(self.volume, encoder, limits, self.statistics)
        self.in_lane = 0
        """Requests that the fast lane has served."""

    def _write(self, data: bytes, places: list[int]) -> None:
        for place in places:
            whole = memoryview(data * PLACE_BYTES)
            run_inline(self.volume.write(place * PLACE_BYTES, whole))
            self._background.run()

    def content(self) -> bytes:
        into = bytearray(SIZE_BYTES)
        run_inline(self.volume.read(0, memoryview(into)))
        return bytes(into)

    def serve(self, stream: bytes) -> tuple[list[bytes], int]:
        """As `Connection` does: the replies, and where what was not served begins. A stream that
        breaks the protocol ends where it does."""
        received, replies = memoryview(bytearray(stream)), list[bytes]()
        parser, position, end = RequestParser(extended=self._extended), 0, len(stream)
        while position < end and not self._batch.disconnect:
            requests, served, stop = self._batch.serve_plain(received, position, end)
            self.in_lane += served
            if stop == position:
                try:
                    requests, stop = parser.parse(received, position, end)
                except ProtocolError:
                    break
                if stop == position:
                    break
            position, index = stop, 0
            while True:
                index = self._batch.serve(requests, index, received, 128)
                replies += [bytes(part) for part in self._batch.finish()]
                replies += self._complete(list(self._batch.background))
                self._batch.background.clear()
                self._batch.large_reads.clear()
                if index == len(requests):
                    break
            if parser.large is not None:
                break
        self._background.run()
        return replies, position

    def _complete(self, works: list[Work]) -> list[bytes]:
        """Finish operations side by side: a flush may wait for one that runs."""
        replies = list[bytes]()
        waiting = [(work.steps, work.step) for work in works]
        while waiting:
            still = list[tuple[Steps[bytes | memoryview], Step]]()
            for steps, step in waiting:
                try:
                    if isinstance(step, Blocking):
                        still.append((steps, steps.send(step.call())))
                    elif step.fired:
                        still.append((steps, steps.send(None)))
                    else:
                        still.append((steps, step))
                except StopIteration as done:
                    replies.append(bytes(done.value))
            self._background.run()
            waiting = still
        return replies

    def close(self) -> None:
        run_inline(self.pool.close_all())
        self.pool.release()


@contextmanager
def two_sides(*, structured: bool, extended: bool) -> Iterator[tuple[Side, Side]]:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        with_it = Side(Path(one), compiled=True, structured=structured, extended=extended)
        without = Side(Path(other), compiled=False, structured=structured, extended=extended)
        try:
            yield with_it, without
        finally:
            with_it.close()
            without.close()


offsets = st.one_of(
    st.sampled_from([0, BLOCK_SIZE, 8 * BLOCK_SIZE, 512, PLACE_BYTES - BLOCK_SIZE]),
    st.integers(0, PLACE_BYTES - 1),
)
lengths = st.one_of(
    st.sampled_from([0, 512, BLOCK_SIZE, BLOCK_SIZE, BLOCK_SIZE, 2 * BLOCK_SIZE, 64 * 1024]),
    st.integers(1, 70_000),
)
commands = st.sampled_from([0, 0, 0, 0, 1, 1, 1, 1, 3, 4, 5, 6, 7, 77])
flags = st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32])
faraway = st.sampled_from([SIZE_BYTES, SIZE_BYTES - 1, 1 << 43, (1 << 64) - 4096])


@st.composite
def streams(draw: st.DrawFn, extended: bool) -> bytes:
    """Requests that are in flight together: each in a place of its own, since what they did to each
    other would depend on their order, which the protocol leaves open."""
    parts = []
    for cookie, place in enumerate(
        draw(st.lists(st.integers(0, PLACES - 1), min_size=6, unique=True))
    ):
        inside = draw(offsets)
        length = min(draw(lengths), PLACE_BYTES - inside)
        offset = place * PLACE_BYTES + inside
        if draw(st.integers(0, 9)) == 0:
            offset = draw(faraway)
        command, flag = draw(commands), draw(flags)
        if command == 1:
            data = bytes([cookie + 1]) * length
            form = wire.extended_write if extended else wire.write
            parts.append(form(cookie, offset, data, flag))
        else:
            ask = wire.extended if extended else wire.request
            parts.append(ask(command, cookie, offset, length, flag & ~32))
    stream = b"".join(parts)
    how = draw(st.sampled_from(["whole", "whole", "cut", "broken", "disconnect"]))
    if how == "cut":
        return stream[: draw(st.integers(0, len(stream)))]
    if how == "broken":
        return stream + b"x" * 40
    if how == "disconnect":
        end = wire.extended(2) if extended else wire.request(2)
        return stream + end + stream
    return stream


@pytest.mark.parametrize(("structured", "extended"), STYLES)
def test_the_same_answers(structured: bool, extended: bool) -> None:
    """And the same content, statistics and remainder."""
    seen = 0

    with two_sides(structured=structured, extended=extended) as (with_it, without):

        @settings(max_examples=80, deadline=None)
        @given(streams(extended))
        def run(stream: bytes) -> None:
            nonlocal seen
            with_it._batch.disconnect = without._batch.disconnect = False
            before = with_it.in_lane
            ours, stopped = with_it.serve(stream)
            theirs, there = without.serve(stream)
            assert stopped == there
            assert sorted(_cut(ours, stream, extended)) == sorted(_cut(theirs, stream, extended))
            assert with_it.content() == without.content()
            for name in ("reads", "read_bytes", "writes", "written_bytes", "flushes", "errors"):
                assert getattr(with_it.statistics, name) == getattr(without.statistics, name)
            seen += with_it.in_lane - before

        run()
    assert seen > 10
    assert without.in_lane == 0


def _cut(replies: list[bytes], stream: bytes, extended: bool) -> list[bytes]:
    """Single replies; of a simple one to a read, the length is known from the request."""
    reads = _reads_of(stream, extended)
    data, single = b"".join(replies), []
    while data:
        magic = struct.unpack_from(">I", data)[0]
        if magic == 0x67446698:
            _, error, cookie = struct.unpack_from(">IIQ", data)
            length = 16 + (reads.get(cookie, 0) if not error else 0)
        elif magic == 0x668E33EF:
            length = 20 + struct.unpack_from(">I", data, 16)[0]
        else:
            assert magic == 0x6E8A278C
            length = 32 + struct.unpack_from(">Q", data, 24)[0]
        assert length <= len(data)
        single.append(data[:length])
        data = data[length:]
    return single


def _reads_of(stream: bytes, extended: bool) -> dict[int, int]:
    """Cookie to length of the reads in a stream."""
    parser, reads = RequestParser(extended=extended), {}
    received, position = memoryview(stream), 0
    try:
        while True:
            requests, stop = parser.parse(received, position, len(stream))
            reads.update({request[2]: request[4] for request in requests if request[1] == 0})
            if stop == position:
                return reads
            position = stop
    except ProtocolError:
        return reads


def test_a_full_reply_buffer() -> None:
    """What does not fit is left for the next call, and nothing is lost."""
    with two_sides(structured=True, extended=False) as (side, _):
        count = REPLY_BUFFER_BYTES // 65536 + 5
        stream = b"".join(
            wire.request(0, n, (n % WRITTEN) * PLACE_BYTES, 65536) for n in range(count)
        )
        replies, position = side.serve(stream)
        assert position == len(stream)
        assert side.in_lane == count
        cut = _cut(replies, stream, extended=False)
        assert sorted(struct.unpack_from(">Q", one, 8)[0] for one in cut) == list(range(count))
        expected = side.content()
        for one in cut:
            place = struct.unpack_from(">Q", one, 8)[0] % WRITTEN
            assert one[28:] == expected[place * PLACE_BYTES :][:65536]


@pytest.mark.parametrize("command", [4, 6], ids=["trim", "zeroes"])
def test_no_write_overtakes_a_change(command: int) -> None:
    """Of a client that does not wait for its answers."""
    with two_sides(structured=True, extended=False) as (side, _):
        place, data = 8 * PLACE_BYTES, b"n" * BLOCK_SIZE
        side.serve(wire.request(command, 1, place, PLACE_BYTES) + wire.write(2, place, data))
        assert side.content()[place:][: 2 * BLOCK_SIZE] == data + bytes(BLOCK_SIZE)
        # Behind a flush, which changes nothing, it is served at once.
        before = side.in_lane
        side.serve(wire.request(3, 1) + wire.write(2, place, data))
        assert side.in_lane == before + 1


def test_writes_wait_while_the_map_is_being_changed() -> None:
    """Behind a closed gate, over a locked range, and after a failure, nothing is written in place
    without asking."""
    with two_sides(structured=True, extended=False) as (side, _):
        volume, place = side.volume, 8 * PLACE_BYTES
        stream = wire.write(1, place, b"n" * BLOCK_SIZE)
        before = side.content()

        run_inline(volume.gate.close())
        assert volume.fast_view().head_slot == -1
        volume.gate.open()

        held = run_inline(volume.locks.acquire(0, 1))
        assert volume.fast_view().head_slot == -1
        volume.locks.release(held)

        volume.durability.fail("for a test")
        assert volume.fast_view().head_slot == -1
        side.serve(stream)
        assert side.content() == before
        assert side.in_lane == 0


def test_a_write_is_noted_for_the_next_flush() -> None:
    with two_sides(structured=True, extended=False) as (side, _):
        run_inline(side.volume.flush())
        assert not side.volume.durability.unsynced
        side.serve(wire.request(0, 1, 8 * PLACE_BYTES, BLOCK_SIZE))
        assert not side.volume.durability.unsynced, "a read was taken for a write"
        side.serve(wire.write(1, 8 * PLACE_BYTES, b"n" * BLOCK_SIZE))
        assert side.in_lane == 2
        assert side.volume.durability.unsynced
