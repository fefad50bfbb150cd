"""Who passes a throttle, and when, in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bockd.model import NO_IO_LIMITS, IoLimits, IoRate
from bockd.throttle.bucket import NANO
from bockd.throttle.throttle import Throttle, Waiter

from .virtual import VirtualTime

A, B = "a volume", "another one"


def busy(
    throttle: Throttle, source: str, reads: bool, length: int, passed: Callable[[], None]
) -> None:
    """Have a client that sends its next request as soon as the last one has passed."""

    def again() -> None:
        passed()
        ask()

    def ask() -> None:
        throttle.wait(source, reads, length, again)

    ask()


def throttled(limits: IoLimits) -> tuple[VirtualTime, Throttle]:
    time = VirtualTime()
    throttle = time.throttle()
    throttle.configure(limits)
    return time, throttle


def test_nothing_waits_without_limits() -> None:
    _, throttle = throttled(NO_IO_LIMITS)
    assert not throttle.limited
    assert all(throttle.passes(A, True, 1 << 30) for _ in range(1000))


def test_requests_pass_at_the_rate() -> None:
    time, throttle = throttled(IoLimits(iops=IoRate(500)))
    passed: Counter[str] = Counter()
    for _ in range(8):
        busy(throttle, A, False, 4096, lambda: passed.update("x"))
    time.pass_until(10 * NANO)
    assert passed["x"] == 50 + 5000


def test_bytes_pass_at_the_rate() -> None:
    time, throttle = throttled(IoLimits(bps=IoRate(1 << 20)))
    passed: Counter[str] = Counter()
    busy(throttle, A, True, 256 << 10, lambda: passed.update("x"))
    time.pass_until(10 * NANO)
    # Each is larger than the bucket: the first is there at once, and each other one's bytes come.
    assert passed["x"] == 1 + 40


def test_a_large_request_counts_as_several_operations() -> None:
    _, throttle = throttled(IoLimits(iops=IoRate(100), iops_size=16384))
    assert throttle.passes(A, True, 9 * 16384 + 1)
    assert not throttle.passes(A, True, 1)


def test_trims_cost_an_operation_and_no_bytes() -> None:
    _, throttle = throttled(IoLimits(bps=IoRate(4096), write_iops=IoRate(20)))
    assert throttle.passes(A, False, 1 << 20)  # the bytes are in debt now
    assert throttle.passes(A, False, 0)
    assert not throttle.passes(A, False, 0)  # two operations are what a tenth of a second gives


def test_reads_pass_writes_whose_own_limit_is_used_up() -> None:
    time, throttle = throttled(IoLimits(write_iops=IoRate(10), iops=IoRate(1000)))
    passed: Counter[str] = Counter()
    busy(throttle, A, False, 4096, lambda: passed.update("w"))
    busy(throttle, A, True, 4096, lambda: passed.update("r"))
    time.pass_until(10 * NANO)
    assert passed["w"] == 1 + 100
    assert passed["w"] + passed["r"] == 100 + 10_000


def test_small_requests_do_not_starve_a_large_one() -> None:
    """The large one waits for the bytes that all share: the small ones leave them to it."""
    time, throttle = throttled(IoLimits(bps=IoRate(10 << 20)))
    passed: Counter[str] = Counter()
    busy(throttle, A, True, 4096, lambda: passed.update("s"))
    time.pass_until(NANO)
    throttle.wait(A, False, 1 << 20, lambda: passed.update("L"))
    time.pass_until(NANO + NANO // 5)
    assert passed["L"] == 1


def test_sources_are_served_in_turn() -> None:
    """One that has 64 requests waiting gets no more than one that has one."""
    time, throttle = throttled(IoLimits(iops=IoRate(1000)))
    passed: Counter[str] = Counter()
    for _ in range(64):
        busy(throttle, A, False, 4096, lambda: passed.update("a"))
    busy(throttle, B, False, 4096, lambda: passed.update("b"))
    time.pass_until(10 * NANO)
    assert abs(passed["a"] - passed["b"]) <= 100  # but for what there was at the beginning
    assert passed["a"] + passed["b"] == 10_100


def test_a_limit_that_is_lifted_lets_all_pass() -> None:
    _, throttle = throttled(IoLimits(iops=IoRate(1)))
    passed: list[int] = []
    assert throttle.passes(A, True, 1)
    for number in range(3):
        throttle.wait(A, True, 1, partial(passed.append, number))
    throttle.configure(NO_IO_LIMITS)
    assert passed == [0, 1, 2]
    assert not throttle.limited


def test_another_limit_does_not_give_a_burst_anew() -> None:
    time, throttle = throttled(IoLimits(iops=IoRate(100, burst=1000)))
    while throttle.passes(A, True, 1):
        pass
    throttle.configure(IoLimits(iops=IoRate(200, burst=2000)))
    assert not throttle.passes(A, True, 1)
    time.now += NANO // 100
    assert throttle.passes(A, True, 1)


def test_one_that_is_dropped_takes_nothing() -> None:
    time, throttle = throttled(IoLimits(iops=IoRate(10)))
    passed: list[str] = []
    assert throttle.passes(A, True, 1)
    given_up = throttle.wait(A, True, 1, lambda: passed.append("dropped"))
    throttle.wait(A, True, 1, lambda: passed.append("next"))
    throttle.drop([given_up])
    time.pass_until(NANO // 10)
    assert passed == ["next"]


def test_one_that_is_forced_is_paid_for_by_the_next() -> None:
    time, throttle = throttled(IoLimits(iops=IoRate(10)))
    passed: list[float] = []
    assert throttle.passes(A, True, 1)
    forced = throttle.wait(A, True, 1, lambda: passed.append(-1))
    throttle.wait(A, True, 1, lambda: passed.append(time.seconds))
    throttle.force(forced)
    assert throttle.solvent_at() == NANO // 10
    throttle.pump()
    time.pass_until(NANO)
    assert passed == [0.2]


limits_of_all_kinds = st.builds(
    IoLimits,
    iops=st.none() | st.builds(IoRate, st.integers(1, 1000)),
    read_iops=st.none() | st.builds(IoRate, st.integers(1, 1000)),
    write_bps=st.none() | st.builds(IoRate, st.integers(1, 1 << 20)),
    bps=st.none() | st.builds(IoRate, st.integers(1, 1 << 18), st.just(1 << 20), st.integers(1, 5)),
    iops_size=st.just(4096),
)
requests = st.tuples(
    st.sampled_from([A, B]), st.booleans(), st.integers(0, 1 << 17), st.integers(0, NANO)
)


@given(limits_of_all_kinds, st.lists(requests, max_size=50), st.integers(0, 49))
def test_everybody_passes_in_the_end_and_each_flow_in_order(
    limits: IoLimits, all_requests: list[tuple[str, bool, int, int]], dropped: int
) -> None:
    """Whoever waits is granted once, unless it is dropped, and not before it has waited."""
    time, throttle = throttled(limits)
    passed: list[tuple[str, bool, int]] = []
    waiters: dict[int, Waiter] = {}
    for number, (source, reads, length, pause) in enumerate(all_requests):
        time.pass_until(time.now + pause)
        key = (source, reads, number)
        if throttle.passes(source, reads, length):
            passed.append(key)
        else:
            waiters[number] = throttle.wait(source, reads, length, partial(passed.append, key))
    gone = set()
    if dropped in waiters and not any(number == dropped for _, _, number in passed):
        throttle.drop([waiters[dropped]])
        gone = {dropped}
    time.pass_until(time.now + 50 * (1 << 17) * NANO)
    assert sorted(number for _, _, number in passed) == [
        number for number in range(len(all_requests)) if number not in gone
    ]
    for source in (A, B):
        for reads in (False, True):
            flow = [number for *of, number in passed if of == [source, reads]]
            assert flow == sorted(flow)


def test_who_leaves_a_long_queue_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of connections to one volume have tens of thousands of requests wait, and a fence
    has those of one connection after the other pass: that must not hold the event loop."""
    compared = 0

    def counted(one: object, other: object) -> bool:
        nonlocal compared
        compared += 1
        return one is other

    _, throttle = throttled(IoLimits(iops=IoRate(1)))
    assert throttle.passes(A, True, 1)
    waiting = [throttle.wait(A, True, 1, lambda: None) for _ in range(1000)]
    monkeypatch.setattr(Waiter, "__eq__", counted)
    for waiter in reversed(waiting[500:]):
        throttle.force(waiter)
    throttle.drop(reversed(waiting[:500]))
    assert compared < 1000
