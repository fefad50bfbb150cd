"""Trims, and writes of zeroes that leave holes, in the fast lane: as without it, in memory, in the
journal and after a death."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bockd.drivers.local.format.journal import JournalSegment, Kind
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.volume.appending import JournalTail
from bockd.drivers.local.volume.room import ALLOWANCE_BLOCKS
from bockd.model import BLOCK_SIZE, GIB, MIB
from bockd.nbd.protocol.replies import encoder_for
from bockd.nbd.protocol.transmission import RequestLimits
from bockd.nbd.server import fastlane
from bockd.runtime.steps import run_inline
from tests.nbd.protocol import wire
from tests.nbd.server.sides import PLACE_BYTES, WRITTEN, Side, two_sides

pytestmark = pytest.mark.usefixtures("heads")

FROZEN, HEAD, NEVER = 1, 8, WRITTEN
"""A place of each kind."""
TRIM, WRITE_ZEROES = 4, 6
EIO = 5


def block_at(place: int, number: int = 0) -> int:
    return place * PLACE_BYTES + number * BLOCK_SIZE


def whole(value: bytes, blocks: int = 1) -> bytes:
    return value * (BLOCK_SIZE * blocks)


def trim(cookie: int, offset: int, length: int, command: int = TRIM) -> bytes:
    return wire.request(command, cookie, offset, length)


def errors_in(replies: list[bytes]) -> dict[int, int]:
    """Of simple replies without data: the error of each cookie."""
    return {cookie: error for _, error, cookie in struct.iter_unpack(">IIQ", b"".join(replies))}


@contextmanager
def simple_sides() -> Iterator[tuple[Side, Side]]:
    with two_sides(structured=False, extended=False) as sides:
        yield sides


@contextmanager
def lane() -> Iterator[Side]:
    with simple_sides() as (side, _):
        yield side


def records(side: Side) -> int:
    return side.volume.durability.tail.segment.used


@pytest.mark.parametrize("command", [TRIM, WRITE_ZEROES], ids=["trim", "zeroes"])
@pytest.mark.parametrize("place", [FROZEN, HEAD, NEVER], ids=["frozen", "head", "never written"])
def test_both_lanes_make_the_same_holes(command: int, place: int) -> None:
    with simple_sides() as sides:
        found = []
        for side, in_lane in zip(sides, (1, 0), strict=True):
            replies, _ = side.serve(trim(1, block_at(place, 3), 5 * BLOCK_SIZE, command))
            assert side.in_lane == in_lane
            assert errors_in(replies) == {1: 0}
            assert side.statistics.trims == 1
            content = side.content()
            assert not any(content[block_at(place, 3) :][: 5 * BLOCK_SIZE])
            used = records(side)
            assert side.content_after_death() == content
            found.append((content, used))
        assert found[0] == found[1]


def test_neighbours_are_one_record_and_one_answer_each() -> None:
    with lane() as side:
        run_inline(side.volume.flush())
        used = records(side)
        stream = b"".join(trim(n, block_at(HEAD, n), BLOCK_SIZE) for n in range(40))
        replies, _ = side.serve(stream)
        assert side.in_lane == 40
        assert errors_in(replies) == dict.fromkeys(range(40), 0)
        assert records(side) == used + 1


def test_what_is_known_to_be_holes_is_answered_from_memory() -> None:
    with lane() as side:
        stream = trim(1, block_at(HEAD), 4 * BLOCK_SIZE)
        side.serve(stream)
        used = records(side)
        replies, _ = side.serve(stream)
        assert side.in_lane == 2
        assert errors_in(replies) == {1: 0}
        assert records(side) == used


def test_parts_of_blocks_between_neighbours_are_left_alone() -> None:
    """Two trims that meet within a block leave it, as each by itself does."""
    middle = block_at(HEAD, 2) + 512
    stream = trim(1, block_at(HEAD), middle - block_at(HEAD))
    stream += trim(2, middle, block_at(HEAD, 5) - middle)
    stream += trim(3, block_at(HEAD, 7) + 1, 2000)
    with simple_sides() as sides:
        contents = []
        for side, in_lane in zip(sides, (3, 0), strict=True):
            replies, _ = side.serve(stream)
            assert side.in_lane == in_lane
            assert errors_in(replies) == {1: 0, 2: 0, 3: 0}
            contents.append(side.content())
        assert contents[0] == contents[1]
        assert contents[0][block_at(HEAD, 2) :][:BLOCK_SIZE] == whole(b"h")


def test_changes_of_one_round_are_in_order() -> None:
    """Redirects and overwrites before and behind a trim of the same blocks."""
    with lane() as side:
        stream = b"".join(
            [
                wire.write(1, block_at(FROZEN), whole(b"1", 4)),
                wire.write(2, block_at(HEAD), whole(b"2", 4)),
                trim(3, block_at(FROZEN), 3 * BLOCK_SIZE),
                trim(4, block_at(HEAD), 3 * BLOCK_SIZE),
                wire.write(5, block_at(FROZEN), whole(b"5")),
                wire.write(6, block_at(HEAD, 2), whole(b"6")),
                trim(7, block_at(HEAD, 2), BLOCK_SIZE),
                wire.write(8, block_at(HEAD, 1), whole(b"8")),
            ]
        )
        side.serve(stream)
        assert side.in_lane == 8
        content = side.content()
        zeros = whole(b"\0")
        assert content[block_at(FROZEN) :][: 4 * BLOCK_SIZE] == (
            whole(b"5") + zeros + zeros + whole(b"1")
        )
        assert content[block_at(HEAD) :][: 4 * BLOCK_SIZE] == (
            zeros + whole(b"8") + zeros + whole(b"2")
        )
        assert side.content_after_death() == content


def test_a_read_behind_a_trim_sees_the_holes() -> None:
    with simple_sides() as sides:
        stream = trim(1, block_at(HEAD), BLOCK_SIZE) + wire.request(
            0, 2, block_at(HEAD), 2 * BLOCK_SIZE
        )
        for side in sides:
            replies, _ = side.serve(stream)
            assert whole(b"\0") + whole(b"h") in b"".join(replies)
        assert sides[0].in_lane == 1, "the read is of two layers: not the lane's"


def test_a_trim_of_locked_blocks_waits_and_nothing_overtakes_it() -> None:
    with lane() as side:
        first = block_at(HEAD) // BLOCK_SIZE
        held = run_inline(side.volume.locks.acquire(first, first + 1))
        stream = trim(1, block_at(HEAD, 4), BLOCK_SIZE) + trim(2, block_at(HEAD), BLOCK_SIZE)
        received = memoryview(bytearray(stream + trim(3, block_at(HEAD, 6), BLOCK_SIZE)))
        done = side.batch.serve_plain(received, 0, len(received), fastlane.Turn(), 128)
        assert done is not None
        assert done.trims == 1, "other blocks are not locked"
        assert [request[2] for request in done.rest] == [2, 3]
        side.volume.locks.release(held)
        replies = side.serve_requests(done.rest, received)
        assert errors_in(replies) == {1: 0, 2: 0, 3: 0}


def test_a_write_that_is_handed_back_is_not_overtaken_by_a_trim() -> None:
    with lane() as side:
        side.serve(wire.write(1, MIB - 512, b"n" * 1024) + trim(2, MIB, BLOCK_SIZE))
        assert side.in_lane == 0, "of two leaves"
        content = side.content()
        assert content[MIB - 512 :][: 512 + BLOCK_SIZE] == b"n" * 512 + whole(b"\0")
        assert side.content_after_death() == content


def test_more_than_a_round_takes_is_trimmed_in_rounds() -> None:
    """Neither very many nor very large ones hold up the loop for long."""
    with lane() as side:
        record = run_inline(side.pool.create_volume("wide", 16 * GIB, None))
        volume = run_inline(side.pool.registry.use_volume(record.id)).volume
        run_inline(volume.write(0, memoryview(whole(b"w"))))
        limits = RequestLimits(read_only=False, extended=False, chunked=False, allocation=False)
        serve = fastlane.lane_for(volume, encoder_for(structured=False, extended=False), limits)
        assert serve is not None
        reply = memoryview(bytearray(4096))
        for count, length, of_round in ((10, GIB, 4), (200, 64 * BLOCK_SIZE, 64)):
            received = memoryview(
                bytearray(b"".join(trim(n, n * length, length) for n in range(count)))
            )
            rounds, position = [], 0
            while position < len(received):
                done = serve.serve(received, position, len(received), reply, fastlane.Turn())
                assert not done.rest
                rounds.append(done.trims)
                position = done.position
                volume.commit()
            assert sum(rounds) == count
            assert max(rounds) == of_round


def test_trims_wait_for_room_in_the_journal() -> None:
    """A checkpoint makes it; they are not the lane's then."""
    with lane() as side:
        tail = side.volume.durability.tail
        for _ in range(tail.free() - ALLOWANCE_BLOCKS):
            tail.stage(Kind.HOLE, block_at(NEVER) // BLOCK_SIZE, 1)
        tail.commit()
        segment = tail.segment
        replies, _ = side.serve(trim(1, block_at(HEAD, 8), BLOCK_SIZE))
        assert side.in_lane == 0
        assert errors_in(replies) == {1: 0}
        assert tail.segment is not segment


def test_a_round_whose_journal_append_fails_is_not_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_segment: JournalSegment, _entries: object) -> None:
        raise OSError(EIO, "the disk is gone")

    stream = wire.write(1, block_at(HEAD), whole(b"n")) + trim(2, block_at(HEAD, 4), BLOCK_SIZE)
    with simple_sides() as sides:
        found = []
        monkeypatch.setattr(JournalSegment, "append", fail)
        for side in sides:
            replies, position = side.serve(stream)
            assert position == len(stream)
            assert errors_in(replies) == {1: EIO, 2: EIO}
            assert side.volume.durability.failed is not None
            found.append([getattr(side.statistics, n) for n in ("writes", "trims", "errors")])
        assert found[0] == found[1]


def test_a_trim_that_the_journal_was_not_told_of_fails_the_volume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the next one would be acknowledged, since the map has holes there."""

    def fail(_tail: JournalTail, *_change: object) -> None:
        raise RuntimeError("a defect")

    with lane() as side:
        with monkeypatch.context() as broken:
            broken.setattr(JournalTail, "stage", fail)
            with pytest.raises(RuntimeError, match="a defect"):
                side.serve(trim(1, block_at(HEAD), BLOCK_SIZE))
        replies, _ = side.serve(trim(2, block_at(HEAD), BLOCK_SIZE))
        assert errors_in(replies) == {2: EIO}


def test_zeros_behind_a_trim_in_one_round_are_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    """No barrier covers the change of their leaf: recovery would take them for lost."""
    with lane() as side:
        run_inline(side.volume.flush())
        assert not side.volume.durability.tail.exposed()
        zeros = wire.write(2, block_at(HEAD, 1), whole(b"\0"))
        side.serve(trim(1, block_at(HEAD), BLOCK_SIZE) + zeros)
        assert side.in_lane == 1
        expected = side.content()
        monkeypatch.setattr(Layer, "stayed_in_memory", lambda _: False)
        assert side.content_after_death() == expected


def test_a_trim_changes_the_time_of_the_volume() -> None:
    with lane() as side:
        descriptor = side.volume._head_descriptor
        os.utime(descriptor, ns=(0, 0))
        side.serve(trim(1, block_at(FROZEN), BLOCK_SIZE))
        assert side.in_lane == 1
        assert os.fstat(descriptor).st_mtime_ns


def test_what_was_in_the_head_is_punched() -> None:
    with lane() as side:
        head = side.layer(HEAD)
        run_inline(side.volume.flush())
        before = os.fstat(head.descriptors[0]).st_blocks
        side.serve(trim(1, block_at(HEAD), PLACE_BYTES))
        assert side.in_lane == 1
        assert os.fstat(head.descriptors[0]).st_blocks < before
