"""Buckets in virtual time: never more than they hold and what has come, and all of that."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bockd.errors import InvalidRequestError
from bockd.model import IoLimits, IoRate
from bockd.throttle.bucket import NANO, Bucket, buckets_of
from bockd.validation import check_io_limits

costs = st.integers(1, 5000)
pauses = st.integers(0, 3 * NANO)


@given(
    st.integers(1, 100_000),
    st.integers(1, 1000),
    st.lists(st.tuples(pauses, costs), max_size=60),
)
def test_no_window_has_more_than_the_bucket_and_the_rate(
    per_second: int, capacity: int, requests: list[tuple[int, int]]
) -> None:
    """Whatever is asked when: between any two moments no more passes than what the bucket holds, or
    the largest request, and the rate."""
    bucket, now = Bucket(per_second, capacity, 0), 0
    passed: list[tuple[int, int]] = []
    for pause, cost in requests:
        now += pause
        bucket.fill(now)
        if bucket.has(cost):
            bucket.take(cost)
            passed.append((now, cost))
    for first in range(len(passed)):
        total = 0
        for at, cost in passed[first:]:
            total += cost
            most = max(capacity, *(one for _, one in passed[first:]))
            assert total <= most + Fraction(per_second * (at - passed[first][0]), NANO)


@given(st.integers(1, 10**12), st.integers(1, 10**12), st.lists(costs, min_size=1, max_size=40))
def test_a_request_passes_at_the_very_nanosecond(
    per_second: int, capacity: int, sizes: list[int]
) -> None:
    """Who always waits until it is ready gets the whole rate: nothing is lost to rounding."""
    bucket, now = Bucket(per_second, capacity, 0), 0
    for cost in sizes:
        at = bucket.ready_at(cost)
        if at > now:
            bucket.fill(at - 1)
            assert not bucket.has(cost)
        now = max(now, at)
        bucket.fill(now)
        assert bucket.has(cost)
        bucket.take(cost)
    # All that has come was taken, but for what came within the last nanosecond of each wait.
    spent = sum(sizes) * NANO
    assert spent >= per_second * max(0, now - len(sizes)) - capacity * NANO
    assert spent <= per_second * now + max(capacity, *sizes) * NANO


def test_a_request_larger_than_the_bucket_passes_when_it_is_full() -> None:
    bucket = Bucket(per_second=10, capacity=5, now=0)
    bucket.take(1)
    assert not bucket.has(100)
    assert bucket.ready_at(100) == NANO // 10
    bucket.fill(NANO // 10)
    assert bucket.has(100)
    bucket.take(100)
    assert bucket.ready_at(1) == NANO // 10 + (100 - 5 + 1) * NANO // 10
    assert bucket.solvent_at() == NANO // 10


def test_what_is_owed_is_what_was_missing_for_those_who_did_not_wait() -> None:
    bucket = Bucket(per_second=10, capacity=5, now=0)
    bucket.charge(4)
    assert bucket.solvent_at() == 0
    bucket.charge(3)
    bucket.charge(1)
    assert bucket.solvent_at() == 3 * NANO // 10
    bucket.fill(NANO // 10)
    assert bucket.solvent_at() == 3 * NANO // 10
    other = Bucket(per_second=20, capacity=5, now=0)
    other.inherit(bucket, NANO // 10)
    assert other.solvent_at() == 2 * NANO // 10
    bucket.fill(NANO)
    bucket.take(100)
    bucket.charge(1)
    assert bucket.solvent_at() == 11 * NANO // 10


def test_a_bucket_does_not_save_more_than_it_holds() -> None:
    bucket = Bucket(per_second=10, capacity=5, now=0)
    bucket.fill(3600 * NANO)
    bucket.take(5)
    assert not bucket.has(1)


def test_a_limit_without_a_burst_holds_a_tenth_of_a_second() -> None:
    (bucket,) = buckets_of(IoRate(500), 0)
    bucket.take(50)
    assert not bucket.has(1)
    (small,) = buckets_of(IoRate(3), 0)
    assert small.has(1)


def test_a_burst_of_a_second_may_come_at_once() -> None:
    (bucket,) = buckets_of(IoRate(100, burst=2000), 0)
    bucket.take(2000)
    assert not bucket.has(1)


@pytest.mark.parametrize("seconds", [2, 10, 60])
def test_a_burst_lasts_as_long_as_qemus(seconds: int) -> None:
    """A tenth of a second's worth at once, then its full rate until what comes meanwhile is used
    up, too: max * length / (max - average) seconds, as docs/throttle.txt of QEMU computes it."""
    rate, burst = 100, 2000
    buckets = buckets_of(IoRate(rate, burst, seconds), 0)
    now = passed = 0
    while True:
        at = max(bucket.ready_at(1) for bucket in buckets)
        if at - now > NANO // (2 * rate):  # one at the average, not at the burst's rate
            break
        now = max(now, at)
        for bucket in buckets:
            bucket.fill(now)
            bucket.take(1)
        passed += 1
    expected = burst * (seconds - 0.1) / (burst - rate)
    assert now / NANO == pytest.approx(expected, rel=0.001)
    assert passed == pytest.approx(burst * (expected + 0.1), rel=0.001)


def test_a_bucket_in_anothers_place_begins_with_what_that_one_had() -> None:
    old = Bucket(per_second=100, capacity=10, now=0)
    old.take(30)
    new = Bucket(per_second=1000, capacity=1000, now=0)
    new.inherit(old, NANO // 10)
    assert new.ready_at(1) == NANO // 10 + 11 * NANO // 1000


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (IoLimits(iops=IoRate(0)), "iops is 0"),
        (IoLimits(bps=IoRate(10**13)), "bps is"),
        (IoLimits(iops=IoRate(100, burst=50)), "the burst of iops is 50"),
        (IoLimits(read_bps=IoRate(100, burst=200, burst_seconds=0)), "lasts 0 s"),
        (IoLimits(write_iops=IoRate(100, burst_seconds=5)), "has the length of a burst"),
        (IoLimits(iops=IoRate(5), iops_size=100), "iops_size is 100"),
        (IoLimits(bps=IoRate(5), iops_size=4096), "means nothing without"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: IoLimits, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        check_io_limits(limits)
