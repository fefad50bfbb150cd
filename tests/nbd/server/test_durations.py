"""How long requests took: the buckets, in Python and in the fast lane."""

from __future__ import annotations

from contextlib import closing
from itertools import pairwise

import pytest

from bockd.model import MIB
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.server.durations import (
    BOUNDS_NS,
    Durations,
    Operation,
    bucket_microseconds,
    bucket_of,
)
from tests.nbd.protocol import wire
from tests.nbd.server.sides import SIZE_BYTES, Line, two_sides

BLOCK = 4096


def place_of(nanoseconds: int) -> int:
    """By looking at the bounds."""
    return next((n for n, bound in enumerate(BOUNDS_NS) if nanoseconds < bound), len(BOUNDS_NS))


def test_bounds_are_from_16_microseconds_to_17_seconds() -> None:
    assert (BOUNDS_NS[0], BOUNDS_NS[-1]) == (16_384, 17_179_869_184)
    assert all(after == 2 * before for before, after in pairwise(BOUNDS_NS))


@pytest.mark.parametrize("nanoseconds", [2048, 2303, 12_345, 10**6, 10**9, 34 * 10**9])
def test_buckets_are_at_most_an_eighth_off(nanoseconds: int) -> None:
    microseconds = bucket_microseconds(bucket_of(nanoseconds))
    assert microseconds == pytest.approx(nanoseconds / 1000, rel=0.125)


def test_short_durations_are_64_nanoseconds_off_at_most() -> None:
    for nanoseconds in range(2048):
        assert abs(bucket_microseconds(bucket_of(nanoseconds)) * 1000 - nanoseconds) <= 64


@pytest.mark.parametrize(
    "nanoseconds",
    [0, 1, 16_383, 16_384, 16_385, 32_767, 32_768, 10**6, 17_179_869_183, 17_179_869_184, 10**12],
)
def test_each_duration_is_in_the_bucket_whose_bounds_hold_it(nanoseconds: int) -> None:
    durations = Durations()
    durations.add(Operation.FLUSH, nanoseconds, 3)
    expected = [0] * (len(BOUNDS_NS) + 1)
    expected[place_of(nanoseconds)] = 3
    assert durations.between_bounds(Operation.FLUSH) == expected
    assert durations.seconds(Operation.FLUSH) == 3 * nanoseconds / 1e9
    for other in (Operation.READ, Operation.WRITE, Operation.TRIM):
        assert (sum(durations.between_bounds(other)), durations.seconds(other)) == (0, 0)


def test_requests_are_entered_by_what_they_ask_for() -> None:
    durations = Durations()
    commands = [
        *(nbd.CMD_READ, nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_FLUSH, nbd.CMD_TRIM),
        *(nbd.CMD_WRITE_ZEROES, nbd.CMD_BLOCK_STATUS, nbd.CMD_CACHE, nbd.CMD_READ),
    ]
    durations.add_requests([(0, command, 7, 0, BLOCK, 0) for command in commands], 20_000)
    assert [sum(durations.between_bounds(one)) for one in Operation] == [3, 1, 1, 2]


def test_what_is_retired_is_kept_in_the_sum() -> None:
    one, other = Durations(), Durations()
    one.add(Operation.READ, 1000, 2)
    other.add(Operation.READ, 3_000_000, 5)
    one.merge(other)
    assert sum(one.between_bounds(Operation.READ)) == 7
    assert one.seconds(Operation.READ) == pytest.approx(0.015002)


def test_percentiles_are_of_recent_requests() -> None:
    durations = Durations()
    assert durations.percentiles(0.5) == [0.0]
    for number in range(990):
        durations.add(number % 4, 10_000)
    durations.add(Operation.FLUSH, 1_000_000, 10)
    p50, p99, p999 = durations.percentiles(0.5, 0.99, 0.999)
    assert p50 == pytest.approx(10, rel=0.13)
    assert p99 == pytest.approx(10, rel=0.13)
    assert p999 == pytest.approx(1000, rel=0.13)
    for _ in range(110):
        durations.add(Operation.READ, 50_000, 1000)
    assert durations.percentiles(0.0, 0.999) == pytest.approx([50, 50], rel=0.13)


def test_the_lane_enters_durations_where_python_would() -> None:
    """Each is told by the sum that it was added to."""
    with (
        two_sides(structured=False, extended=False) as (side, _),
        closing(Line(MIB)) as line,
    ):
        durations = side.statistics.durations
        for number in range(40):
            operation = (Operation.READ, Operation.WRITE, Operation.TRIM)[number % 3]
            before, seconds = durations.counts[:], durations.seconds(operation)
            offset = number * BLOCK
            if operation is Operation.WRITE:
                stream = wire.write(number, 5 * SIZE_BYTES // 16 + offset, b"x" * BLOCK)
            else:
                command = nbd.CMD_READ if operation is Operation.READ else nbd.CMD_TRIM
                stream = wire.request(command, number, offset, BLOCK)
            side.serve(stream, line)
            took = round((durations.seconds(operation) - seconds) * 1e9)
            expected = Durations()
            expected.add(operation, took)
            added = [
                after - earlier for after, earlier in zip(durations.counts, before, strict=True)
            ]
            assert added == expected.counts.tolist()
        assert side.in_lane == 40
