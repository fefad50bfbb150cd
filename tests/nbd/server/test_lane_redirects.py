"""Whole blocks that the head does not hold, written by the fast lane: as without it, in memory, in
the journal and after a death."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bockd import failpoints
from bockd.drivers.local.format.journal import JournalSegment, Kind
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.volume.room import ALLOWANCE_BLOCKS
from bockd.drivers.local.volume.slots import HOLE_SLOT
from bockd.errors import DeviceError, VolumeFailedError
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import run_inline
from tests.amounts import amount
from tests.nbd.protocol import wire
from tests.nbd.server.sides import PLACE_BYTES, PLACES, WRITTEN, Line, Side, two_sides

pytestmark = pytest.mark.usefixtures("heads")

FROZEN, HEAD, NEVER = 1, 8, WRITTEN
"""A place of each kind."""
EIO = 5


def block_at(place: int, number: int = 0) -> int:
    return place * PLACE_BYTES + number * BLOCK_SIZE


def whole(value: bytes, blocks: int = 1) -> bytes:
    return value * (BLOCK_SIZE * blocks)


def errors_in(replies: list[bytes]) -> dict[int, int]:
    """Of simple replies to writes: the error of each cookie."""
    return {cookie: error for _, error, cookie in struct.iter_unpack(">IIQ", b"".join(replies))}


@contextmanager
def simple_sides() -> Iterator[tuple[Side, Side]]:
    with two_sides(structured=False, extended=False) as sides:
        yield sides


@contextmanager
def lane() -> Iterator[Side]:
    with simple_sides() as (side, _):
        yield side


def mapped(side: Side) -> dict[int, list[int]]:
    """The map in memory, without leaves that are all holes."""
    leaves = {number: leaf.tolist() for number, leaf in side.volume.map.leaves.items()}
    return {number: leaf for number, leaf in leaves.items() if set(leaf) != {HOLE_SLOT}}


@pytest.mark.parametrize(("piece_bytes", "in_lane"), [(4096, 1), (3 * 4096, 1), (MIB, 1), (0, 0)])
def test_the_lane_writes_in_the_pieces_that_it_is_told(piece_bytes: int, in_lane: int) -> None:
    with lane() as side:
        redirects = side.volume._redirects
        assert redirects is not None
        redirects.piece_bytes = piece_bytes
        data = bytes(range(1, 17)) * (BLOCK_SIZE)
        side.serve(wire.write(1, block_at(NEVER, 0), data))
        assert side.in_lane == in_lane
        found = bytearray(len(data))
        run_inline(side.volume.read(block_at(NEVER, 0), memoryview(found)))
        assert found == data


@pytest.mark.parametrize("place", [FROZEN, NEVER], ids=["frozen", "never written"])
@pytest.mark.parametrize("blocks", [1, 2, 5, 16])
def test_whole_blocks_are_redirected_in_the_lane(place: int, blocks: int) -> None:
    with simple_sides() as sides:
        data = whole(b"n", blocks)
        for side, in_lane in zip(sides, (1, 0), strict=True):
            run_inline(side.volume.flush())
            assert not side.volume.durability.flusher.unsynced
            side.serve(wire.write(1, block_at(place, 3), data))
            assert side.in_lane == in_lane
            expected = side.content()
            assert expected[block_at(place, 3) :][: len(data)] == data
            assert side.volume.durability.flusher.unsynced
            assert side.content_after_death() == expected


def test_a_leaf_that_is_not_in_memory_by_itself_is_made() -> None:
    """Of what was never written nothing is in memory but that it is all holes."""
    with lane() as side:
        number = block_at(NEVER + 1) // MIB
        leaves = side.volume.map.leaves
        leaves.pop(number, None)
        side.volume.map.dirty.pop(number, None)
        assert side.volume.map.find(number) is not None
        side.serve(wire.write(1, block_at(NEVER + 1), whole(b"n")))
        assert side.in_lane == 1
        assert number in side.volume.map.dirty
        assert leaves[number] is not side.volume.map.uniform(HOLE_SLOT)
        assert set(side.volume.map.uniform(HOLE_SLOT)) == {HOLE_SLOT}


def drop_leaves(side: Side) -> None:
    run_inline(side.volume.durability.checkpoint())
    for group in list(side.volume.map._groups):
        side.volume.map._drop(group)


def test_a_leaf_that_stands_in_many_places_is_copied() -> None:
    with lane() as side:
        drop_leaves(side)
        side.content()  # loads them, equal ones as one
        cache, number = side.volume.map, block_at(FROZEN) // MIB
        shared = cache.leaves[number]
        before = shared.tolist()
        assert shared is cache.uniform(before[0])
        side.serve(wire.write(1, block_at(FROZEN), whole(b"n")))
        assert side.in_lane == 1
        assert cache.leaves[number] is not shared
        assert shared.tolist() == before


def test_a_leaf_that_must_be_loaded_is_for_others() -> None:
    with lane() as side:
        drop_leaves(side)
        number = block_at(FROZEN) // MIB
        assert side.volume.map.find(number) is None
        side.serve(wire.write(1, block_at(FROZEN), whole(b"n")))
        assert side.in_lane == 0
        assert side.content()[block_at(FROZEN) :][:BLOCK_SIZE] == whole(b"n")


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (block_at(FROZEN) + 512, whole(b"n")),
        (block_at(FROZEN), b"n" * 512),
        (block_at(FROZEN), whole(b"\0")),
        (block_at(FROZEN), whole(b"n") + whole(b"\0") + whole(b"n")),
        (MIB - BLOCK_SIZE, whole(b"n", 2)),
    ],
    ids=["unaligned", "part", "zeros", "zeros within", "two leaves"],
)
def test_what_needs_more_than_a_redirect_is_for_others(offset: int, data: bytes) -> None:
    with lane() as side:
        side.serve(wire.write(1, offset, data))
        assert side.in_lane == 0
        expected = side.content()
        assert expected[offset:][: len(data)] == data
        assert side.content_after_death() == expected


@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """Batches of requests, each of which meets a block once."""
    batches = []
    for _ in range(draw(st.integers(1, 6))):
        parts, taken = [], set[tuple[int, int]]()
        for cookie in range(draw(st.integers(1, 12))):
            place, number = draw(st.integers(0, PLACES - 1)), draw(st.integers(0, 20))
            blocks = draw(st.sampled_from([1, 1, 1, 2, 7]))
            touched = {(place, number + n) for n in range(blocks)}
            if touched & taken:
                continue
            taken |= touched
            offset, length = block_at(place, number), blocks * BLOCK_SIZE
            value = draw(st.sampled_from([b"\0", bytes([cookie + 1]), bytes([cookie + 101])]))
            how = draw(st.sampled_from(["whole"] * 6 + ["part", "trim", "flush"]))
            if how == "whole":
                parts.append(wire.write(cookie, offset, value * length))
            elif how == "part":
                parts.append(wire.write(cookie, offset + 512, value * (length - 600)))
            elif how == "trim":
                parts.append(wire.request(4, cookie, offset, length))
            else:
                parts.append(wire.request(3, cookie))
        batches.append(b"".join(parts))
    return batches


@settings(max_examples=amount(10), deadline=None)
@given(histories())
def test_histories_leave_the_same_in_both_lanes(history: list[bytes]) -> None:
    """In memory, and after a death, even if recovery looks at each block for lost pages."""
    with simple_sides() as (with_it, without), pytest.MonkeyPatch.context() as patch:
        for batch in history:
            ours, theirs = with_it.serve(batch)[0], without.serve(batch)[0]
            assert errors_in(ours) == errors_in(theirs)
            assert mapped(with_it) == mapped(without)
            assert with_it.volume.map.dirty.keys() == without.volume.map.dirty.keys()
            assert with_it.content() == without.content()
        assert without.in_lane == 0
        expected = with_it.content()
        patch.setattr(Layer, "stayed_in_memory", lambda _: False)
        assert with_it.content_after_death() == expected
        assert without.content_after_death() == expected


def test_more_redirects_than_the_allowance_are_counted_in_the_journal() -> None:
    with lane() as side:
        count = ALLOWANCE_BLOCKS + 100
        blocks = [block_at(NEVER + n // 60, n % 60) for n in range(count // 2)]
        blocks += [block_at(n // 60, n % 60) for n in range(count - len(blocks))]
        stream = b"".join(wire.write(n, at, whole(b"n")) for n, at in enumerate(blocks))
        used, tail = side.volume.durability.tail.segment.used, side.volume.durability.tail
        side.serve(stream)
        assert side.in_lane == count
        assert tail.free() == tail.segment.free
        assert 0 < tail.segment.used - used <= count
        assert 0 <= tail.allowance < ALLOWANCE_BLOCKS
        expected = side.content()
        assert side.content_after_death() == expected


def test_redirects_wait_for_room_in_the_journal() -> None:
    """A checkpoint makes it; they are not the lane's then."""
    with lane() as side:
        tail = side.volume.durability.tail
        for _ in range(tail.free() - ALLOWANCE_BLOCKS):
            tail.stage(Kind.HOLE, block_at(NEVER) // BLOCK_SIZE, 1)
        tail.commit()
        tail.allowance, segment = 0, tail.segment
        replies, _ = side.serve(wire.write(1, block_at(FROZEN), whole(b"n")))
        assert side.in_lane == 0
        assert errors_in(replies) == {1: 0}
        assert tail.segment is not segment


def test_what_prevents_a_checkpoint_is_met_by_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with lane() as side:

        def fail() -> bool:
            raise DeviceError("no threads")

        side.volume.durability.tail.allowance = 0
        monkeypatch.setattr(side.volume.durability.room, "may_redirect", fail)
        replies, _ = side.serve(wire.write(1, block_at(FROZEN), whole(b"n")))
        assert errors_in(replies) == {1: EIO}


def test_a_round_whose_journal_append_fails_is_not_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None of its writes, be it one in place (promise D1). Reads are answered."""

    def fail(_segment: JournalSegment, _entries: object) -> None:
        raise OSError(EIO, "the disk is gone")

    stream = b"".join(
        [
            wire.write(1, block_at(HEAD), whole(b"n")),
            wire.write(2, block_at(FROZEN), whole(b"n")),
            wire.request(0, 3, block_at(HEAD, 5), BLOCK_SIZE),
            wire.write(4, block_at(HEAD, 1), whole(b"n")),
        ]
    )
    with simple_sides() as sides:
        found = []
        monkeypatch.setattr(JournalSegment, "append", fail)
        for side in sides:
            replies, position = side.serve(stream)
            assert position == len(stream)
            answer = b"".join(replies)
            read = answer.index(struct.pack(">IIQ", 0x67446698, 0, 3))
            assert answer[read + 16 :][:BLOCK_SIZE] == whole(b"h")
            rest = answer[:read] + answer[read + 16 + BLOCK_SIZE :]
            assert errors_in([rest]) == {1: EIO, 2: EIO, 4: EIO}
            assert side.volume.durability.failed is not None
            found.append([getattr(side.statistics, n) for n in ("reads", "writes", "errors")])
        assert found[0] == found[1]


def test_rounds_before_the_one_that_fails_are_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the client hears nothing of the one that fails before it is refused."""
    with lane() as side, closing(Line(MIB)) as line:
        append, calls = JournalSegment.append, 0

        def fail_second(segment: JournalSegment, entries: list[object]) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise OSError(EIO, "the disk is gone")
            append(segment, entries)  # type: ignore[arg-type]

        monkeypatch.setattr(JournalSegment, "append", fail_second)
        replies, _ = side.serve(wire.write(1, block_at(FROZEN), whole(b"n")), line)
        assert errors_in(replies) == {1: 0}
        replies, _ = side.serve(wire.write(2, block_at(FROZEN, 1), whole(b"n")), line)
        assert replies[0] == b""
        assert errors_in(replies) == {2: EIO}


def test_zeros_behind_a_redirect_in_one_round_are_foretold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No barrier covers the redirect: recovery would take the block for lost."""
    with lane() as side:
        run_inline(side.volume.flush())
        assert not side.volume.durability.tail.exposed()
        at = block_at(FROZEN)
        side.serve(wire.write(1, at, whole(b"n")) + wire.write(2, at, whole(b"\0")))
        assert side.in_lane == 1
        expected = side.content()
        assert expected[at:][:BLOCK_SIZE] == whole(b"\0")
        monkeypatch.setattr(Layer, "stayed_in_memory", lambda _: False)
        assert side.content_after_death() == expected


def test_a_redirected_block_is_not_punched_any_more(heads: str) -> None:
    """In a packed head it has another cell by then."""
    with lane() as side:
        run_inline(side.volume.trim(block_at(HEAD), 4 * BLOCK_SIZE))
        before = None if heads == "packed" else side.volume._puncher.pending
        assert before is None or before
        side.serve(wire.write(1, block_at(HEAD, 1), whole(b"n", 2)))  # then runs the punching
        assert side.in_lane == 1
        assert not before
        kept = whole(b"\0") + whole(b"n", 2) + whole(b"\0")
        assert side.content()[block_at(HEAD) :][: 4 * BLOCK_SIZE] == kept


def test_a_redirect_is_journalled_when_serving_fails_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a later write in place, which is acknowledged, would be lost with it."""
    with lane() as side, closing(Line(MIB)) as line:

        def fail(_layer: Layer, _offset: int) -> None:
            raise RuntimeError("a defect")

        at = block_at(FROZEN + 1)
        with monkeypatch.context() as broken:
            broken.setattr(Layer, "window", fail)
            read = wire.request(0, 2, block_at(FROZEN), 65_536)
            with pytest.raises(RuntimeError, match="a defect"):
                side.serve(wire.write(1, at, whole(b"n")) + read, line)
        side.serve(wire.write(3, at, whole(b"o")))
        assert side.content_after_death()[at:][:BLOCK_SIZE] == whole(b"o")


def test_a_write_that_fails_leaves_the_map() -> None:
    """What the lane could not write Python writes again, and meets the error."""
    with lane() as side:
        head = side.layer(HEAD).first_descriptor
        before, expected = mapped(side), side.content()
        good, reading = os.dup(head), os.open(f"/proc/self/fd/{head}", os.O_RDONLY)
        try:
            os.dup2(reading, head)
            replies, _ = side.serve(wire.write(1, block_at(FROZEN), whole(b"n")))
        finally:
            os.dup2(good, head)
            os.close(good)
            os.close(reading)
        assert side.in_lane == 0
        assert list(errors_in(replies).values()) != [0]
        assert mapped(side) == before
        assert side.content() == expected
        # What may have been written of it is nobody's.
        replies, _ = side.serve(wire.write(1, block_at(FROZEN), whole(b"n")))
        assert errors_in(replies) == {1: 0}
        expected = side.content()
        assert side.content_after_death() == expected


def test_nothing_is_redirected_in_the_lane_while_a_failpoint_is_armed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with lane() as side:
        assert side.volume.fast_view().redirects is not None
        with monkeypatch.context() as armed:
            armed.setattr(failpoints, "armed", failpoints.Failpoint.FLUSH_DONE)
            assert side.volume.fast_view().redirects is None


def test_a_redirect_that_cannot_be_noted_fails_the_volume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The map leads to the head then, and the journal never learns it."""

    def cannot(*_: object) -> None:
        raise MemoryError

    with lane() as side:
        redirects = side.volume._redirects
        assert redirects is not None
        monkeypatch.setattr(redirects, "_stage", cannot)
        with pytest.raises(MemoryError):
            side.serve(wire.write(1, block_at(NEVER), whole(b"n")))
        with pytest.raises(VolumeFailedError):
            side.volume.try_write(block_at(NEVER), memoryview(whole(b"m")))
