"""What a profiled device answers, and when, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest

from bockd.model import DeviceErrno, ErrorRule, IoLimits, IoRate, Stall
from bockd.profiles.builtin import BUILT_IN

from .sampling import BLOCK, DISK, FLUSH, MS, READ, SIZE, TRIM, WRITE, Sent, profile

SECOND = 1000 * MS


# -- latencies -------------------------------------------------------------------------------------


def test_each_operation_has_its_own_latency() -> None:
    sent = Sent(profile(read_us=1000, write_us=2000, trim_us=3000, flush_us=4000))
    taken = [sent.took(operation) for operation in (READ, WRITE, TRIM, FLUSH)]
    assert taken == [1 * MS, 2 * MS, 3 * MS, 4 * MS]


def test_write_with_fua_takes_a_flush_too() -> None:
    sent = Sent(profile(write_us=2000, flush_us=4000))
    assert sent.plan(WRITE, fua=True).due_ns == 6 * MS


def test_requests_overlap_unless_the_device_works_on_few_at_a_time() -> None:
    free, two = Sent(profile(read_us=1000)), Sent(profile(read_us=1000, parallel=2))
    assert [free.plan().due_ns for _ in range(5)] == [MS] * 5
    assert [two.plan().due_ns // MS for _ in range(5)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("name", BUILT_IN)
def test_same_seed_and_requests_are_answered_the_same(name: str) -> None:
    """To the nanosecond and the error; and with another seed not so."""
    found = BUILT_IN[name]

    def answers(seed: int) -> list[tuple[int, str | None]]:
        sent = Sent(replace(found, seed=seed))
        plans = []
        for number, offset in enumerate(sent.places(3000)):
            plan = sent.plan((READ, READ, WRITE, FLUSH)[number % 4], offset)
            plans.append((plan.due_ns - sent.now, plan.error))
            sent.now = plan.due_ns
        return plans

    assert answers(7) == answers(7)
    assert answers(7) != answers(8)


def test_errors_of_a_profile_do_not_change_its_latencies() -> None:
    latency = {"0": 100, "100": 100_000}
    plain = Sent(profile(read_us=latency))
    failing = Sent(profile(read_us=latency, errors=(ErrorRule(percent=50),)))
    pairs = [(plain.plan(), failing.plan()) for _ in range(500)]
    assert [one.due_ns for one, _ in pairs] == [other.due_ns for _, other in pairs]
    assert 150 < sum(other.error is not None for _, other in pairs) < 350


# -- the disk --------------------------------------------------------------------------------------


def test_mean_seek_of_the_disk_is_the_data_sheet_s() -> None:
    """Random reads of 4 KiB: the average seek, half a revolution, and next to no transfer."""
    sent = Sent(profile(disk=DISK))
    expected_ms = 8.5 + 60_000 / 7200 / 2 + 4096 / 120_000
    assert mean(sent.random_reads(20_000)) / MS == pytest.approx(expected_ms, rel=0.02)


def test_seeks_reach_from_a_track_to_the_whole_stroke() -> None:
    revolution_ms = 60_000 / 7200
    ordered = Sent(profile(disk=DISK), 1 << 42).random_reads(20_000)
    assert 1 <= ordered[0] / MS < 4
    assert 15 < ordered[-1] / MS < 15 + revolution_ms + 0.1


def test_sequential_reads_run_at_the_speed_of_the_place() -> None:
    mib = 1 << 20
    for begin, per_second in ((0, 160_000_000), (SIZE - 64 * mib, 80_000_000)):
        sent = Sent(profile(disk=DISK))
        sent.took(READ, begin, mib)
        taken = sum(sent.took(READ, begin + number * mib, mib) for number in range(1, 60))
        assert 59 * mib / (taken / SECOND) == pytest.approx(per_second, rel=0.1)


def test_place_near_by_needs_no_seek() -> None:
    sent = Sent(profile(disk=DISK))
    sent.took(READ, 0)
    assert sent.took(READ, 100 * BLOCK) < 60 * SECOND / 7200 + MS


def test_disk_does_one_request_at_a_time() -> None:
    sent = Sent(profile(disk=DISK))
    due = [sent.plan(READ, offset).due_ns for offset in sent.places(100)]
    assert due == sorted(due)
    assert due[-1] / 100 / MS == pytest.approx(12.7, rel=0.15)


# -- limits ----------------------------------------------------------------------------------------


def served_within(sent: Sent, seconds: int, length: int = BLOCK) -> int:
    """How many reads, sent together, are answered in so many seconds."""
    count = 0
    while sent.plan(READ, 0, length).due_ns <= seconds * SECOND:
        count += 1
    return count


def test_limits_hold_requests_in_order() -> None:
    sent = Sent(profile(read_us=1000, limits=IoLimits(iops=IoRate(100))))
    # A tenth of a second's worth at once, and then a hundred a second.
    assert served_within(sent, 10) == pytest.approx(10 + 1000, abs=2)


def test_burst_lasts_as_long_as_its_credits() -> None:
    """2000 x 3 credits: at 2000 a second they last 3.33 s while 200 a second come."""
    limits = IoLimits(iops=IoRate(200, burst=2000, burst_seconds=3))
    assert served_within(Sent(profile(limits=limits)), 2) == pytest.approx(4200, abs=5)
    assert served_within(Sent(profile(limits=limits)), 13) == pytest.approx(6000 + 2600, abs=5)
    spent = Sent(profile(limits=limits, credits_percent=0))
    assert served_within(spent, 13) == pytest.approx(2600, abs=5)


def test_cloud_burst_has_credits_for_half_an_hour() -> None:
    limits = BUILT_IN["cloud-burst"].limits
    assert limits is not None
    assert limits.iops == IoRate(100, burst=3000, burst_seconds=5_400_000 // 3000)
    assert served_within(Sent(BUILT_IN["cloud-burst"]), 2) == pytest.approx(6300, abs=50)


def test_bytes_are_limited_and_flushes_are_not() -> None:
    sent = Sent(profile(limits=IoLimits(bps=IoRate(1 << 20))))
    assert served_within(sent, 10, 1 << 16) == pytest.approx(160 + 1, abs=2)
    assert sent.plan(FLUSH, 0, 0).due_ns == sent.now


# -- errors ----------------------------------------------------------------------------------------


def test_only_requests_that_touch_the_range_fail() -> None:
    rule = ErrorRule(offset_bytes=8 * BLOCK, length_bytes=2 * BLOCK)
    sent = Sent(profile(errors=(rule,)))
    failed = [number for number in range(20) if sent.plan(READ, number * BLOCK).error]
    assert failed == [8, 9]
    assert sent.plan(WRITE, 0, 8 * BLOCK).error is None
    assert sent.plan(WRITE, 0, 8 * BLOCK + 1).error == "EIO"
    assert sent.plan(TRIM, 0, SIZE).error is None  # only what was asked for fails


def test_errors_begin_after_so_many_requests() -> None:
    sent = Sent(profile(errors=(ErrorRule(after_requests=5, errno=DeviceErrno.ENOSPC),)))
    assert [sent.plan(WRITE).error for _ in range(7)] == [None] * 5 + ["ENOSPC"] * 2


def test_flush_fails_where_it_is_asked_for() -> None:
    sent = Sent(profile(errors=(ErrorRule(operations=(FLUSH,), offset_bytes=BLOCK),)))
    assert (sent.plan(FLUSH, 0, 0).error, sent.plan(WRITE, BLOCK).error) == ("EIO", None)


@pytest.mark.parametrize("percent", [0.3, 1, 10, 40, 99])
def test_bad_blocks_are_as_many_as_asked_for_and_stay_bad(percent: float) -> None:
    tested = profile(errors=(ErrorRule(operations=(READ,), bad_blocks_percent=percent),))
    sent, blocks = Sent(tested), 20_000
    bad = {number for number in range(blocks) if sent.plan(READ, number * BLOCK).error}
    assert len(bad) == pytest.approx(blocks * percent / 100, rel=0.1)
    again = {number for number in range(blocks) if sent.plan(READ, number * BLOCK).error}
    assert again == bad
    starts = range(0, blocks - 7, 7)
    runs = {number for number in starts if sent.plan(READ, number * BLOCK, 7 * BLOCK).error}
    assert runs == {number for number in starts if bad & {*range(number, number + 7)}}


def test_failing_request_takes_the_time_of_its_rule() -> None:
    sent = Sent(profile(read_us=1000, errors=(ErrorRule(latency_us=50_000, length_bytes=BLOCK),)))
    assert (sent.took(READ, 0), sent.took(READ, BLOCK)) == (50 * MS, MS)


# -- stalls ----------------------------------------------------------------------------------------


def test_device_is_stuck_for_all_that_comes_meanwhile() -> None:
    sent = Sent(profile(read_us=1000, stalls=(Stall(seconds=5, after_requests=2),)))
    assert [sent.took() for _ in range(2)] == [MS, MS]
    assert [sent.plan().due_ns for _ in range(3)] == [5 * SECOND + 3 * MS] * 3
    sent.now = 6 * SECOND
    assert sent.took() == MS


def test_device_is_stuck_again_and_again() -> None:
    sent = Sent(profile(stalls=(Stall(seconds=1, after_requests=3, every_requests=4),)))
    assert [sent.took() // SECOND for _ in range(12)] == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
