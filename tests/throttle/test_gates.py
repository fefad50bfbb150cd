"""What gates count of requests that wait, in virtual time."""

from __future__ import annotations

from bockd.model import NO_IO_LIMITS, IoLimits, IoRate, VolumeId
from bockd.throttle.bucket import NANO
from bockd.throttle.gates import Applied, Gate, Gates, Waiting
from bockd.throttle.held import Held

from .virtual import VirtualTime

A, B = VolumeId(1), VolumeId(2)
TEN = IoLimits(iops=IoRate(10))
"""One at first, then one each tenth of a second."""
TENTH = NANO // 10


def gates_of(time: VirtualTime, limits: IoLimits, tenant_limits: IoLimits) -> Gates:
    """Gates of volumes of one tenant."""
    gates = Gates(clock=time)
    gates.look_up = lambda _: Applied(limits, "acme", tenant_limits)
    return gates


def wait(gate: Gate) -> Waiting | None:
    return gate.ask(reads=True, length_bytes=4096, granted=lambda: None)


def counted(held: Held, now: int) -> tuple[int, int, float]:
    return held.requests, held.waiting, held.seconds(now)


def test_who_passes_at_once_has_not_waited() -> None:
    time = VirtualTime()
    gates = gates_of(time, TEN, NO_IO_LIMITS)
    assert wait(gates.gate(A)) is None
    assert counted(gates.held, time.now) == (0, 0, 0)


def test_a_wait_counts_while_it_lasts_and_once_when_it_is_over() -> None:
    time = VirtualTime()
    gates = gates_of(time, TEN, NO_IO_LIMITS)
    gate = gates.gate(A)
    waiting = [wait(gate) for _ in range(3)][1:]
    for passed, seconds in ((0, 0.0), (1, 0.2), (2, 0.3), (2, 0.3)):
        assert counted(gate.held, time.now) == (2, 2 - passed, seconds)
        time.now += TENTH
        gates.look()
    assert None not in waiting
    assert counted(gate.held_by_tenant, time.now) == (0, 0, 0)


def test_what_is_forced_or_given_up_waits_no_more() -> None:
    time = VirtualTime()
    gates = gates_of(time, TEN, NO_IO_LIMITS)
    gate = gates.gate(A)
    _, forced, dropped = (wait(gate) for _ in range(3))
    assert forced is not None
    assert dropped is not None
    time.now += TENTH // 2
    forced.force()
    Waiting.drop([dropped])
    Waiting.drop([dropped])
    time.now += NANO
    gates.look()
    assert counted(gate.held, time.now) == (2, 0, 0.1)


def test_a_request_waits_for_its_volumes_limits_and_then_for_its_tenants() -> None:
    time = VirtualTime()
    gates = gates_of(time, TEN, IoLimits(iops=IoRate(2)))
    first, second = gates.gate(A), gates.gate(B)
    assert wait(first) is None
    wait(first)  # its volume lets it pass after a tenth, and its tenant after five
    wait(second)  # waits for the tenant alone, behind nobody
    for _ in range(10):
        time.now += TENTH
        gates.look()
    assert counted(first.held, time.now) == (1, 0, 0.1)
    assert counted(second.held, time.now) == (0, 0, 0)
    of_tenant = (first.held_by_tenant, second.held_by_tenant)
    assert [held.requests for held in of_tenant] == [1, 1]
    assert counted(gates.held_by_tenants, time.now) == (2, 0, 0.9 + 0.5)


def test_what_was_counted_stays_in_the_sum_when_a_gate_is_forgotten() -> None:
    time = VirtualTime()
    gates = gates_of(time, TEN, NO_IO_LIMITS)
    wait(gates.gate(A))
    wait(gates.gate(A))
    gates.forget(A)
    assert gates.find(A) is None
    assert gates.gate(A).held.requests == 0
    time.now += TENTH
    gates.look()
    assert counted(gates.held, time.now) == (1, 0, 0.1)
