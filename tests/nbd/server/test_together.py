"""Turns that several connections take together in the compiled lane: the same replies and bytes as
one by one, and what is left to their owners."""

from __future__ import annotations

from contextlib import ExitStack, closing
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from bockd.model import BLOCK_SIZE, MIB
from bockd.nbd.server import fastlane
from bockd.nbd.server.fastlane import LaneArguments, Served
from bockd.nbd.server.limits import MAX_LANES, RECEIVE_BUFFER_BYTES
from bockd.nbd.server.pace import Pace
from bockd.nbd.server.together import Together
from bockd.runtime.steps import run_inline
from tests.nbd.protocol import wire
from tests.nbd.server.lanes import COUNTED, STYLES, streams
from tests.nbd.server.replies import cut
from tests.nbd.server.serving import in_trio
from tests.nbd.server.sides import PLACE_BYTES, SIZE_BYTES, Line, Side, drop, two_sides
from tests.nbd.server.turns import (
    SECOND_NS,
    VOLUMES,
    Lane,
    LaneMember,
    requests,
    serve_together,
    several_sides,
)


def judge(lane: Lane, without: Side, stream: bytes, replies: list[bytes]) -> None:
    """Together, and then by itself what that has left, a lane gives the same replies as the other
    side, and counts the same."""
    with_it = lane.side
    with_it.batch.disconnect = without.batch.disconnect = False
    rest = lane.rest()
    left, _ = with_it.serve(rest)
    theirs, _ = without.serve(stream)
    served = len(stream) - len(rest)
    ours = cut(replies, stream[:served], with_it.extended)
    ours += cut(left, rest, with_it.extended)
    assert sorted(ours) == sorted(cut(theirs, stream, with_it.extended))
    for name in COUNTED:
        assert getattr(with_it.statistics, name) == getattr(without.statistics, name)
    assert with_it.content() == without.content()


@pytest.mark.usefixtures("heads")
@pytest.mark.parametrize("send_buffer_bytes", [20_000, 4 * MIB], ids=["small", "large"])
@pytest.mark.parametrize(("structured", "extended"), STYLES)
def test_the_replies_and_content_are_those_of_one_after_another(
    structured: bool, extended: bool, send_buffer_bytes: int
) -> None:
    """For volumes side by side, whatever they are asked, whether it is received already or comes
    meanwhile, and whether the replies can be sent or not."""
    with (
        several_sides(structured=structured, extended=extended) as pairs,
        ExitStack() as lines,
    ):
        lanes = [
            Lane(with_it, lines.enter_context(closing(Line(send_buffer_bytes))))
            for with_it, _ in pairs
        ]
        together = 0

        @settings(max_examples=25, deadline=None)
        @given(
            st.lists(
                st.tuples(st.integers(0, 8), streams(extended, but=10)),
                min_size=VOLUMES,
                max_size=VOLUMES,
            ),
            st.sampled_from([0, 0, 1, 2]),
            st.sampled_from([False, False, True]),
        )
        def run(drawn: list[tuple[int, bytes]], part: int, cold: bool) -> None:
            nonlocal together
            said = [
                requests(plain, extended=extended, first=100, places=(10,)) + stream
                for plain, stream in drawn
            ]
            for lane, stream in zip(lanes, said, strict=True):
                if cold:
                    run_inline(lane.side.volume.flush())
                    drop(lane.side)
                lane.hear(stream, min(len(stream) * part // 2, RECEIVE_BUFFER_BYTES))
            before = [lane.side.statistics.reads + lane.side.statistics.writes for lane in lanes]
            replies = serve_together(lanes)
            for lane, (_, without), stream, answers, count in zip(
                lanes, pairs, said, replies, before, strict=True
            ):
                together += lane.side.statistics.reads + lane.side.statistics.writes - count
                judge(lane, without, stream, answers)

        run()
        assert together > 10


@pytest.mark.parametrize("extended", [False, True])
def test_all_of_many_plain_requests_are_served_together(extended: bool) -> None:
    """In as many rounds as their replies take, and with nothing left to be done."""
    with (
        several_sides(structured=True, extended=extended) as pairs,
        ExitStack() as lines,
    ):
        lanes = [Lane(one, lines.enter_context(closing(Line(4 * MIB)))) for one, _ in pairs]
        stream = requests(50, extended=extended)
        for _ in range(10):
            for lane in lanes:
                lane.hear(stream, 0)
            replies = serve_together(lanes, polled_ns=1_000_000)
            for lane, (_, without), answers in zip(lanes, pairs, replies, strict=True):
                assert lane.rest() == b""
                assert lane.received_bytes == len(stream)
                judge(lane, without, stream, answers)


def test_connections_of_one_volume_are_served_one_after_another() -> None:
    """One writes and reads what the other one does, and nothing is torn."""
    with two_sides(structured=False, extended=False) as (side, _), ExitStack() as lines:
        lanes = [Lane(side, lines.enter_context(closing(Line(4 * MIB)))) for _ in range(4)]
        offset = 9 * PLACE_BYTES
        for turn in range(60):
            for number, lane in enumerate(lanes):
                data = bytes([1 + (turn + number) % 250]) * BLOCK_SIZE
                lane.hear(wire.write(1, offset, data) + wire.request(0, 2, offset, BLOCK_SIZE), 0)
            for number, answers in enumerate(serve_together(lanes)):
                data = bytes([1 + (turn + number) % 250]) * BLOCK_SIZE
                assert data in b"".join(answers)


def test_what_is_not_plain_ends_a_lane_and_no_write_overtakes_it() -> None:
    """It is left where it stands, with all that comes behind it."""
    with (
        two_sides(structured=False, extended=False) as (side, _),
        closing(Line(4 * MIB)) as line,
    ):
        lane, offset = Lane(side, line), 8 * PLACE_BYTES
        plain = wire.write(1, offset, b"p" * BLOCK_SIZE)
        behind = wire.write(3, offset, b"b" * BLOCK_SIZE)
        for other in (
            wire.request(3, 2),  # flush
            wire.request(4, 2, offset, BLOCK_SIZE),  # trim
            wire.write(2, offset, b"f" * BLOCK_SIZE, 1),  # FUA
            wire.write(2, 2 * PLACE_BYTES, b"n" * BLOCK_SIZE),  # new to the head
            wire.request(0, 2, SIZE_BYTES, BLOCK_SIZE),  # beyond the end
            wire.request(2),
        ):
            lane.hear(plain + other + behind, 0)
            (answers,) = serve_together([lane])
            assert b"".join(answers) == b"\x67\x44\x66\x98" + bytes(4) + (1).to_bytes(8)
            assert lane.rest() == other + behind
            into = bytearray(BLOCK_SIZE)
            run_inline(side.volume.read(offset, memoryview(into)))
            assert into == b"p" * BLOCK_SIZE


@pytest.mark.usefixtures("heads")
def test_zeros_and_what_failed_are_left_to_the_owner() -> None:
    """Blocks that must not become zeros silently do not, and a failed volume is not written to."""
    with (
        two_sides(structured=False, extended=False) as (side, _),
        closing(Line(4 * MIB)) as line,
    ):
        lane, offset = Lane(side, line), 8 * PLACE_BYTES
        zeros = wire.write(1, offset, bytes(BLOCK_SIZE))
        assert side.volume.fast_view().minds_zeros
        lane.hear(zeros, 0)
        assert b"".join(serve_together([lane])[0]) == b""
        assert lane.rest() == zeros
        side.volume._failure.declare("a test")
        data = wire.write(1, offset, b"d" * BLOCK_SIZE)
        lane.hear(data, 0)
        serve_together([lane])
        assert lane.rest() == data


def test_a_write_in_place_is_noted_for_the_next_flush() -> None:
    with (
        two_sides(structured=False, extended=False) as (side, _),
        closing(Line(4 * MIB)) as line,
    ):
        run_inline(side.volume.flush())
        flusher = side.volume.fast_view().journal
        assert flusher is not None
        assert not flusher.unsynced
        lane = Lane(side, line)
        lane.hear(wire.request(0, 1, 8 * PLACE_BYTES, BLOCK_SIZE), 0)
        serve_together([lane])
        assert not flusher.unsynced
        lane.hear(wire.write(1, 8 * PLACE_BYTES, b"d" * BLOCK_SIZE), 0)
        serve_together([lane])
        assert flusher.unsynced


def test_more_lanes_than_a_turn_takes_are_refused() -> None:
    assert fastlane.compiled is not None
    with pytest.raises(ValueError, match="too many lanes"):
        fastlane.compiled.serve_together([()] * (MAX_LANES + 1), -1, 0, 0, 0, 1)
    with pytest.raises(ValueError, match="no thread"):
        fastlane.compiled.serve_together([()] * MAX_LANES, -1, 0, 0, 0, 0)
    refused = fastlane.compiled.serve_together([()] * MAX_LANES, -1, 0, 0, 0, 1)
    assert [type(error) for error in refused] == [
        TypeError
    ] * MAX_LANES  # no lanes, but not too many


def test_a_lane_that_is_refused_does_not_keep_another_from_being_served() -> None:
    assert fastlane.compiled is not None
    with (
        two_sides(structured=False, extended=False) as (side, without),
        closing(Line(4 * MIB)) as line,
    ):
        lane = Lane(side, line)
        stream = requests(20, extended=False)
        lane.hear(stream, len(stream))
        good = lane.arguments()
        bad = (*good[:3], b"no buffer to write to", *good[4:])
        refused, served = fastlane.compiled.serve_together([bad, good], -1, 0, SECOND_NS, 0, 1)
        assert isinstance(refused, TypeError)
        assert not isinstance(served, BaseException)
        done, goes_on, looks = served
        assert looks
        sent = line.heard()
        judge(lane, without, stream, [sent, *lane.took(Served._make(done), goes_on=goes_on)])
        assert lane.rest() == b""


@pytest.mark.parametrize("connections", [1, 4])
def test_volumes_in_one_thread_are_served_alike(connections: int) -> None:
    """However many connections each has, and however many requests they have under way."""
    assert fastlane.compiled is not None
    asked = 192
    with several_sides(structured=False, extended=False) as pairs, ExitStack() as lines:
        (many, _), (few, _) = pairs
        sides = [many] * connections + [few]
        lanes = [Lane(side, lines.enter_context(closing(Line(4 * MIB)))) for side in sides]
        for lane in lanes[:-1]:
            lane.hear(small_reads(10 * asked), 0)
        lanes[-1].hear(small_reads(asked) + wire.request(3, 1), 0)  # whose flush ends the turn
        results = fastlane.compiled.serve_together(
            [lane.arguments() for lane in lanes], -1, 0, 60 * SECOND_NS, 0, 1
        )
    reads = list[int]()
    for result in results:
        assert not isinstance(result, BaseException)
        reads.append(Served._make(result[0]).reads)
    assert reads.pop() == asked
    assert asked <= sum(reads) < asked + 50
    assert min(reads) > 0


def small_reads(count: int) -> bytes:
    """Whose replies take up little room."""
    return b"".join(wire.request(0, number, 8 * PLACE_BYTES, 64) for number in range(count))


@pytest.mark.parametrize("count", [5, MAX_LANES, MAX_LANES + 4])
@in_trio
async def test_all_have_their_turn_when_there_is_time_for_few_of_them(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Of connections of one volume, each before another one has its next."""
    compiled = cast(Any, fastlane.compiled)
    turns = 0

    def serve_together(
        lanes: list[LaneArguments], loop: int, poll_ns: int, _: int, *rest: int
    ) -> object:
        nonlocal turns
        turns += 1
        return compiled.serve_together(lanes, loop, poll_ns, 0, *rest)  # for one

    with (
        two_sides(structured=False, extended=False) as (side, _),
        ExitStack() as lines,
        monkeypatch.context() as patch,
    ):
        lanes = [Lane(side, lines.enter_context(closing(Line(4 * MIB)))) for _ in range(count)]
        patch.setattr(fastlane, "compiled", SimpleNamespace(serve_together=serve_together))
        members = [LaneMember(lane, 3, lambda: turns) for lane in lanes]
        together = Together(Pace(), SECOND_NS)
        async with trio.open_nursery() as nursery:
            for member in members:
                nursery.start_soon(together.join, member)
        for member in members:
            assert len(member.served_in) == 3
            assert member.served_in[0] <= count
            assert all(after - before <= count for before, after in pairwise(member.served_in)), (
                member.served_in
            )
