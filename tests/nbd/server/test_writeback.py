"""What a client that flushes after every write has written is on its way to the disk before the
flush comes, and nothing else is."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from bockd.model import BLOCK_SIZE
from bockd.nbd.server import batch
from bockd.nbd.server.fastlane import Served, Turn
from bockd.nbd.server.flushhabit import REGULAR_FLUSHES, FlushHabit
from bockd.nbd.server.pace import Polling
from bockd.runtime.steps import run_inline
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client
from tests.nbd.server.serving import FixedExports, in_trio, serving
from tests.nbd.server.sides import PLACE_BYTES, Line, Side

HEAD, FROZEN = 8 * PLACE_BYTES, PLACE_BYTES
FLUSH = 3
BLOCK = b"b" * BLOCK_SIZE
POLL_NS, TURN_NS = 1, 1_000_000_000


# -- the habit ---------------------------------------------------------------------------------


def after(habit: FlushHabit, writes: int, flushes: int, times: int) -> tuple[int, int]:
    """So many writes, each flushed; the counters then."""
    for _ in range(times):
        habit.expects_flush(writes, flushes)
        writes, flushes = writes + 1, flushes + 1
    return writes, flushes


def test_a_flush_is_expected_once_each_of_some_has_come_after_one_write() -> None:
    habit = FlushHabit()
    counters = after(habit, 0, 0, REGULAR_FLUSHES - 1)
    assert not habit.expects_flush(*counters)
    counters = after(habit, *counters, 1)
    assert habit.expects_flush(*counters)
    assert habit.expects_flush(*counters)  # asked twice before the write


@pytest.mark.parametrize(
    ("writes", "flushes"), [(2, 1), (0, 1), (1, 2), (1, 0)], ids=["2w", "0w", "2f", "no flush"]
)
def test_what_breaks_the_habit_ends_it(writes: int, flushes: int) -> None:
    habit = FlushHabit()
    seen = after(habit, 5, 9, REGULAR_FLUSHES + 2)
    assert habit.expects_flush(*seen)
    broken = (seen[0] + writes, seen[1] + flushes)
    assert not habit.expects_flush(*broken)
    if flushes:
        assert not habit.expects_flush(*after(habit, *broken, REGULAR_FLUSHES - 1))


# -- the lane ----------------------------------------------------------------------------------


@contextmanager
def lane() -> Iterator[tuple[Side, Line]]:
    with tempfile.TemporaryDirectory() as root:
        side = Side(Path(root), compiled=True, structured=False, extended=False)
        with closing(side), closing(Line(1 << 20)) as line:
            run_inline(side.volume.flush())
            yield side, line


def serve(side: Side, line: Line, stream: bytes, *, write_back: bool = True) -> Served:
    received = memoryview(bytearray(stream + bytes(100)))
    turn = Turn(line.ours.fileno(), POLL_NS, TURN_NS)
    done = side.batch.serve_plain(received, 0, len(stream), turn, write_back=write_back)
    assert done is not None
    return done


class PageCounts(ctypes.Structure):
    """struct cachestat, linux/mman.h."""

    _fields_ = [
        (name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recent")
    ]


def dirty_pages(descriptor: int) -> int | None:
    """How many pages of a file nobody has begun to write back. None before Linux 6.5."""
    counts = PageCounts()
    whole = (ctypes.c_uint64 * 2)(0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(451, descriptor, ctypes.byref(whole), ctypes.byref(counts), 0) < 0:
        return None
    return int(counts.dirty)


@pytest.mark.usefixtures("heads")
def test_one_write_in_place_is_on_its_way_when_it_is_answered() -> None:
    with lane() as (side, line):
        write = wire.write(1, HEAD, BLOCK)
        head = side.layer(8).descriptors[0]
        clean = dirty_pages(head)  # on tmpfs that is all of them
        assert serve(side, line, write, write_back=False).written_back == 0
        assert clean != 0 or dirty_pages(head)
        done = serve(side, line, write)
        assert (done.writes, done.written_back, len(done.rest)) == (1, 1, 0)
        assert len(line.heard()) == 2 * 16
        assert dirty_pages(head) == clean
        assert side.volume.durability.flusher.unsynced  # it may be on its way for long


@pytest.mark.usefixtures("heads")
@pytest.mark.parametrize(
    "stream",
    [
        wire.request(0, 1, HEAD, BLOCK_SIZE),
        wire.write(1, FROZEN, BLOCK),
        wire.write(1, HEAD, BLOCK) + wire.write(2, HEAD + BLOCK_SIZE, BLOCK),
        wire.write(1, HEAD, BLOCK) + wire.request(FLUSH, 2),
        wire.request(4, 1, HEAD, BLOCK_SIZE),
    ],
    ids=["read", "new block", "two writes", "flush is there", "trim"],
)
def test_nothing_else_is_begun(stream: bytes) -> None:
    with lane() as (side, line):
        assert serve(side, line, stream).written_back == 0


def test_nothing_is_begun_where_the_lane_does_not_receive() -> None:
    """Others are at work, or somebody else sends."""
    with lane() as (side, line):
        write = wire.write(1, HEAD, BLOCK)
        received = memoryview(bytearray(write))
        for turn in (Turn(), Turn(line.ours.fileno(), 0, TURN_NS)):
            done = side.batch.serve_plain(received, 0, len(write), turn, write_back=True)
            assert done is not None
            assert (done.writes, done.written_back) == (1, 0)


# -- a connection ------------------------------------------------------------------------------


@in_trio
@pytest.mark.parametrize(("writes", "some"), [(1, True), (2, False)])
async def test_a_connection_knows_its_clients_habit(
    path: Path, monkeypatch: pytest.MonkeyPatch, writes: int, some: bool
) -> None:
    begun = list[int]()
    serve_plain = batch.Batch.serve_plain

    def counted(self: batch.Batch, *args: object, **kwargs: object) -> Served | None:
        done = serve_plain(self, *args, **kwargs)  # type: ignore[arg-type]
        begun.append(0 if done is None else done.written_back)
        return done

    monkeypatch.setattr(batch.Batch, "serve_plain", counted)
    # This client shares the server's loop: each poll is in vain.
    monkeypatch.setattr(Polling, "undisturbed", lambda self: 1)
    with lane() as (side, _):
        exports = FixedExports({"disk": side.volume})
        async with serving(exports, path), await Client.go(path) as client:
            for _ in range(REGULAR_FLUSHES + 3):
                for number in range(writes):
                    assert await client.write(HEAD + number * BLOCK_SIZE, BLOCK) == 0
                assert await client.command(FLUSH) == 0
            assert bool(sum(begun)) is some
            assert sum(begun) == (3 if some else 0)
        assert not side.volume.durability.flusher.unsynced
