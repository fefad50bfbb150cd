"""Reads that the fast lane finds not to be in the page cache: one thread does those of a round."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from bockd.drivers.local.integrity.scrub import Scrubber
from bockd.model import BLOCK_SIZE, MIB
from bockd.nbd.server import fastlane
from bockd.nbd.server.work import Work
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Blocking, CompiledCall, Signal, Steps, run_inline
from tests.drivers.local.bitflip import flip_bit
from tests.nbd.protocol import wire
from tests.nbd.server.replies import cut
from tests.nbd.server.serving import in_trio
from tests.nbd.server.sides import PLACE_BYTES, WRITTEN, Side, drop, two_sides

STYLES = [(False, False), (True, False), (True, True)]
"""Structured, extended."""
HEADER_BYTES = {False: 16, True: 28}
"""Of a reply with data, by whether it is structured."""


def fill(side: Side) -> None:
    """Give every byte a value of its own: places 0 to 3 are frozen, the others in the head."""
    run_inline(side.volume.write(0, memoryview(random.Random(1).randbytes(4 * PLACE_BYTES))))
    run_inline(side.pool.create_snapshot(side.volume.durability.record.id, "filled"))
    head = memoryview(random.Random(2).randbytes((WRITTEN - 4) * PLACE_BYTES))
    for start in range(0, len(head), MIB):
        run_inline(side.volume.write(4 * PLACE_BYTES + start, head[start : start + MIB]))
    run_inline(side.volume.flush())
    side.serve(b"")  # opens the layer anew that was frozen


def requests(asked: Sequence[tuple[int, int]], *, extended: bool = False) -> bytes:
    """Requests to read: offset and length; their cookies count from 0."""
    ask = wire.extended if extended else wire.request
    return b"".join(ask(0, cookie, *range_) for cookie, range_ in enumerate(asked))


def begin(side: Side, stream: bytes, room: int = 128) -> tuple[fastlane.Served, list[Work]]:
    """Have the lane look at a stream. What it did, and what has begun in the background."""
    received = memoryview(bytearray(stream))
    done = side.batch.serve_plain(received, 0, len(stream), fastlane.Turn(), room)
    assert done is not None
    side.batch.finish()
    works = list(side.batch.background)
    side.batch.background.clear()
    return done, works


def blocks(*places: int) -> list[tuple[int, int]]:
    """The first blocks of places."""
    return [(place * PLACE_BYTES, BLOCK_SIZE) for place in places]


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "packed"])
@pytest.mark.parametrize(("structured", "extended"), STYLES)
def test_missed_reads_get_the_same_replies_in_both_lanes(
    structured: bool, extended: bool, packed: bool
) -> None:
    """Whole blocks, parts of them and larger reads, of the head and of frozen layers."""
    asked = [
        (9 * PLACE_BYTES + 512, 100),
        (0, BLOCK_SIZE),
        (4 * PLACE_BYTES + 8 * BLOCK_SIZE, 65_536),
        (2 * PLACE_BYTES + 3 * BLOCK_SIZE + 5, 3 * BLOCK_SIZE),
        (4 * PLACE_BYTES - BLOCK_SIZE, 2 * BLOCK_SIZE),  # of both
        (9 * PLACE_BYTES, PLACE_BYTES),
    ]
    stream = requests(asked, extended=extended)
    with two_sides(structured=structured, extended=extended, packed=packed) as sides:
        answers = []
        for side in sides:
            fill(side)
            content = side.content()
            drop(side)
            replies, position = side.serve(stream)
            assert position == len(stream)
            answers.append(sorted(cut(replies, stream, extended)))
            for offset, length in asked:
                assert content[offset : offset + length] in b"".join(replies)
        assert answers[0] == answers[1]
        assert sides[0].in_lane == 0, "something was there"
        for name in ("reads", "read_bytes", "errors"):
            assert getattr(sides[0].statistics, name) == getattr(sides[1].statistics, name)


def test_one_operation_reads_all_that_was_missed() -> None:
    """In one thread. What was there is served meanwhile."""
    with two_sides(structured=True, extended=False) as (side, _):
        fill(side)
        drop(side)
        side.serve(requests(blocks(5)))
        done, works = begin(side, requests(blocks(4, 0, 5, 9)))
        assert (done.reads, done.rest) == (1, [])
        [work] = works
        assert [request[2] for request in work.requests] == [0, 1, 3]
        assert work.in_flight == 3
        assert work.charged_bytes == 3 * (HEADER_BYTES[True] + BLOCK_SIZE)
        assert isinstance(work.step, Blocking)
        reply = _finish(work)
        assert reply.count(side.content()[:BLOCK_SIZE]) == 1
        done, works = begin(side, requests(blocks(4, 0, 9)))
        assert (done.reads, works) == (3, []), "all of it is in memory now"


def test_no_more_is_gathered_than_there_is_room_for() -> None:
    """Of requests in the background, and of memory: what is left comes next."""
    with two_sides(structured=True, extended=False) as (side, _):
        fill(side)
        drop(side)
        done, works = begin(side, requests(blocks(4, 5, 6, 7)), room=3)
        assert [request[2] for request in done.rest] == [3]
        assert [work.in_flight for work in works] == [3]
        _finish(works[0])
        drop(side)
        large = [(4 * PLACE_BYTES + n * 65_536, 65_536) for n in range(25)]
        done, works = begin(side, requests(large))
        assert [work.in_flight for work in works] == [16]
        assert (done.position, done.rest) == (16 * len(requests(blocks(0))), [])
        _finish(works[0])
        done, works = begin(side, requests(blocks(4)), room=0)
        assert not done.missed


def test_a_damaged_block_fails_its_own_read_only() -> None:
    """One of a frozen layer that has checksums, at its own offset. It is marked, and logged
    once."""
    with two_sides(structured=True, extended=False, packed=False) as (side, _):
        fill(side)
        scrubber = Scrubber(side.pool.registry)
        while run_inline(scrubber.read_on()).more:
            pass
        content = side.content()
        layer = side.layer(1)
        path = side.pool.registry.store.layout.layer_segment(layer.id, 0)
        flip_bit(path, PLACE_BYTES + 700)
        drop(side)
        stream = requests(blocks(0, 1, 2, 9))
        replies, _ = side.serve(stream)
        assert side.in_lane == 0
        answers = {one[8:16]: one for one in cut(replies, stream, extended=False)}
        for cookie, place in enumerate((0, 1, 2, 9)):
            answer = answers[cookie.to_bytes(8, "big")]
            if place == 1:
                assert answer[20:24] == (5).to_bytes(4, "big"), "EIO"
            else:
                assert answer[28:] == content[place * PLACE_BYTES :][:BLOCK_SIZE]
        assert side.statistics.errors == 1
        assert side.statistics.reads == 4
        again, _ = side.serve(requests(blocks(1)))
        assert b"".join(again)[20:24] == (5).to_bytes(4, "big")
        flip_bit(path, PLACE_BYTES + 700)


def test_what_cannot_be_read_fails_its_own_read_only() -> None:
    """Of two files, with blocks at their own offsets, of which one was cut off."""
    with two_sides(structured=True, extended=False, packed=False) as (side, _):
        fill(side)
        content = side.content()
        drop(side)
        os.truncate(f"/proc/self/fd/{side.layer(0).descriptors[0]}", BLOCK_SIZE)
        asked = [(5 * PLACE_BYTES, BLOCK_SIZE), (0, BLOCK_SIZE), (BLOCK_SIZE // 2, BLOCK_SIZE)]
        stream = requests(asked)
        _, [work] = begin(side, stream[:56] + wire.request(0, 2, *asked[2]))
        answers = {one[8:16]: one for one in cut([_finish(work)], stream, extended=False)}
        for cookie, (offset, length) in enumerate(asked[:2]):
            assert answers[cookie.to_bytes(8, "big")][28:] == content[offset : offset + length]
        assert answers[(2).to_bytes(8, "big")][20:24] == (5).to_bytes(4, "big")
        assert side.statistics.errors == 1


def test_files_are_kept_for_what_reads_them() -> None:
    """Neither closed nor punched before the thread is done, whatever becomes of the client."""
    with two_sides(structured=True, extended=False) as (side, _):
        fill(side)
        drop(side)
        _, [work] = begin(side, requests(blocks(0, 5)))
        layers = [side.layer(0), side.layer(5)]
        assert [layer.readers for layer in layers] == [1, 1]
        drained: Steps[None] = side.volume.drain_reads()
        step = drained.send(None)
        assert isinstance(step, Signal)
        assert not step.fired
        _finish(work)
        assert step.fired
        assert [layer.readers for layer in layers] == [0, 0]
        with pytest.raises(StopIteration):
            drained.send(None)


@in_trio
async def test_compiled_threads_read_what_needs_no_checksum() -> None:
    """What may be frozen is verified by a thread of Python instead. Both get the same replies."""
    with two_sides(structured=True, extended=False) as (side, _):
        fill(side)
        content = side.content()
        for places, compiled in ((4, 9, 6), True), ((0, 5), False):
            drop(side)
            _, [work] = begin(side, requests(blocks(*places)))
            assert isinstance(work.step, CompiledCall) == compiled
            reply = await StepRunner().finish(work.steps, work.step)
            for place in places:
                assert content[place * PLACE_BYTES :][:BLOCK_SIZE] in bytes(reply)


@in_trio
async def test_what_a_compiled_thread_cannot_read_fails_its_own_read_only() -> None:
    with two_sides(structured=True, extended=False, packed=False) as (side, _):
        fill(side)
        content = side.content()
        drop(side)
        head = side.layer(5).descriptors[0]
        stream = requests([*blocks(5, 4), (9 * PLACE_BYTES, BLOCK_SIZE)])
        _, [work] = begin(side, stream)
        os.truncate(f"/proc/self/fd/{head}", 9 * PLACE_BYTES)
        reply = await StepRunner().finish(work.steps, work.step)
        answers = {one[8:16]: one for one in cut([bytes(reply)], stream, extended=False)}
        for cookie, place in ((0, 5), (1, 4)):
            answer = answers[cookie.to_bytes(8, "big")]
            assert answer[28:] == content[place * PLACE_BYTES :][:BLOCK_SIZE]
        assert answers[(2).to_bytes(8, "big")][20:24] == (5).to_bytes(4, "big"), "EIO"
        assert side.statistics.errors == 1


@in_trio
async def test_a_closing_volume_waits_for_compiled_threads() -> None:
    """And so does the operation of a client that is gone: its descriptor stays open."""
    with two_sides(structured=True, extended=False) as (side, _):
        fill(side)
        drop(side)
        _, [work] = begin(side, requests(blocks(4, 9, 6)))
        layer, ended = side.layer(5), []
        async with trio.open_nursery() as nursery:

            async def close() -> None:
                await StepRunner().run(side.volume.end_reads())
                ended.append(layer.readers)

            async def serve() -> None:
                await StepRunner().finish(work.steps, work.step)

            nursery.start_soon(close)
            await trio.testing.wait_all_tasks_blocked()
            assert ended == []
            nursery.start_soon(serve)
            nursery.cancel_scope.cancel()
        assert ended == [0]


def test_memory_outlives_a_thread_that_nobody_waits_for(tmp_path: Path) -> None:
    """It is not given back, nor moved, before the thread is done with it."""
    assert fastlane.compiled is not None
    data = random.Random(3).randbytes(32 * MIB)
    (tmp_path / "file").write_bytes(data)
    header = HEADER_BYTES[False]
    with (tmp_path / "file").open("rb") as file:
        missed = struct.pack("=IiQQIIQQ", 2, file.fileno(), 0, 0, len(data), header, 7, 28)
        reply = bytearray(header + len(data))
        running = fastlane.compiled.begin_missed(missed, memoryview(reply), 0)
        with pytest.raises(BufferError):
            reply.append(0)
        del running  # waits for its end
        assert reply[header:] == data
        reply.append(0)


def test_a_read_that_touches_a_mark_is_not_for_the_lane() -> None:
    """It is where the next span is asked for; see readahead.py of the local driver."""
    with two_sides(structured=True, extended=False) as (side, _):
        fill(side)
        side.content()
        side.volume.fast_view().marks[:] = [
            5 * PLACE_BYTES + 4000,
            5 * PLACE_BYTES + 4 * BLOCK_SIZE,
        ]
        places = [(5 * PLACE_BYTES + n * BLOCK_SIZE, BLOCK_SIZE) for n in range(6)]
        done, _ = begin(side, requests(places))
        assert [request[2] for request in done.rest] == [0, 4]
        assert done.reads == 4


def _finish(work: Work) -> bytes:
    """Finish an operation as a runner does; its reply."""
    step, steps = work.step, work.steps
    try:
        while True:
            assert isinstance(step, Blocking)
            try:
                result = step.call()
            except Exception as error:  # noqa: BLE001 - handed to its rightful owner
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as done:
        return bytes(done.value)
