"""How long requests took: the buckets, in Python and in the fast lane."""

from __future__ import annotations

from contextlib import closing
from itertools import pairwise

import pytest

from bockd.model import MIB
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.server.durations import BOUNDS_NS, BUCKETS, Durations, Operation
from tests.nbd.protocol import wire
from tests.nbd.server.sides import SIZE_BYTES, Line, two_sides

BLOCK = 4096


def bucket_holding(nanoseconds: int) -> int:
    """By looking at the bounds."""
    return next((n for n, bound in enumerate(BOUNDS_NS) if nanoseconds < bound), BUCKETS - 1)


def test_bounds_are_from_16_microseconds_to_17_seconds() -> None:
    assert (BOUNDS_NS[0], BOUNDS_NS[-1]) == (16_384, 17_179_869_184)
    assert all(after == 2 * before for before, after in pairwise(BOUNDS_NS))
    assert len(BOUNDS_NS) == BUCKETS - 1


@pytest.mark.parametrize(
    "nanoseconds",
    [0, 1, 16_383, 16_384, 16_385, 32_767, 32_768, 10**6, 17_179_869_183, 17_179_869_184, 10**12],
)
def test_each_duration_is_in_the_bucket_whose_bounds_hold_it(nanoseconds: int) -> None:
    durations = Durations()
    durations.add(Operation.FLUSH, nanoseconds, 3)
    expected = [0] * BUCKETS
    expected[bucket_holding(nanoseconds)] = 3
    assert durations.buckets(Operation.FLUSH) == expected
    assert durations.seconds(Operation.FLUSH) == 3 * nanoseconds / 1e9
    for other in (Operation.READ, Operation.WRITE, Operation.TRIM):
        assert (sum(durations.buckets(other)), durations.seconds(other)) == (0, 0)


def test_requests_are_entered_by_what_they_ask_for() -> None:
    durations = Durations()
    commands = [
        *(nbd.CMD_READ, nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_FLUSH, nbd.CMD_TRIM),
        *(nbd.CMD_WRITE_ZEROES, nbd.CMD_BLOCK_STATUS, nbd.CMD_CACHE, nbd.CMD_READ),
    ]
    durations.add_requests([(0, command, 7, 0, BLOCK, 0) for command in commands], 20_000)
    assert [sum(durations.buckets(one)) for one in Operation] == [3, 1, 1, 2]


def test_what_is_retired_is_kept_in_the_sum() -> None:
    one, other = Durations(), Durations()
    one.add(Operation.READ, 1000, 2)
    other.add(Operation.READ, 3_000_000, 5)
    one.merge(other)
    assert sum(one.buckets(Operation.READ)) == 7
    assert one.seconds(Operation.READ) == pytest.approx(0.015002)


def test_the_lane_enters_durations_where_python_would() -> None:
    """Each is told by the sum that it was added to."""
    with (
        two_sides(structured=False, extended=False) as (side, _),
        closing(Line(MIB)) as line,
    ):
        durations = side.statistics.durations
        for number in range(40):
            operation = (Operation.READ, Operation.WRITE, Operation.TRIM)[number % 3]
            before, seconds = durations.buckets(operation), durations.seconds(operation)
            offset = number * BLOCK
            if operation is Operation.WRITE:
                stream = wire.write(number, 5 * SIZE_BYTES // 16 + offset, b"x" * BLOCK)
            else:
                command = nbd.CMD_READ if operation is Operation.READ else nbd.CMD_TRIM
                stream = wire.request(command, number, offset, BLOCK)
            side.serve(stream, line)
            took = round((durations.seconds(operation) - seconds) * 1e9)
            after = durations.buckets(operation)
            changed = [place for place in range(BUCKETS) if after[place] != before[place]]
            assert changed == [bucket_holding(took)]
            assert sum(after) == sum(before) + 1
        assert side.in_lane == 40
