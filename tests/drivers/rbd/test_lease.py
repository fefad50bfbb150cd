"""A lease counts from the question, and is renewed only while somebody asks for it."""

from __future__ import annotations

from bockd.drivers.rbd.lease import LEASE_SECONDS, RENEW_SECONDS, Lease
from bockd.errors import UnavailableError
from bockd.runtime.steps import Background


class Owner:
    """Says who has the lock, after a while."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ours = True
        self.takes = 0.0
        self.asked = 0
        self.silent = False
        self.background = Background()
        self.lease = Lease(self.confirm, self.background.spawn, lambda: self.now)

    def confirm(self) -> bool:
        self.asked += 1
        self.now += self.takes
        if self.silent:
            raise UnavailableError("for a test")
        return self.ours

    def held(self, after: float = 0.0) -> bool:
        """Ask after so many seconds, and let the question be answered."""
        self.now += after
        found = self.lease.held()
        self.background.run()
        return found


def test_nothing_is_held_before_the_first_answer() -> None:
    owner = Owner()
    assert not owner.held()
    assert owner.held()


def test_it_ends_a_second_after_the_question() -> None:
    owner = Owner()
    owner.takes = 0.4
    owner.held()
    owner.ours = False
    assert owner.held(LEASE_SECONDS - 0.41)
    assert not owner.held(0.02)


def test_it_is_asked_again_in_time_and_not_more_often() -> None:
    owner = Owner()
    owner.held()
    for _ in range(100):
        assert owner.held(RENEW_SECONDS / 10)
    assert 8 <= owner.asked <= 11


def test_nobody_asks_while_nothing_is_served() -> None:
    owner = Owner()
    owner.held()
    owner.now += 1000
    owner.background.run()
    assert owner.asked == 1
    assert not owner.held()
    assert owner.held()


def test_without_an_answer_it_ends() -> None:
    owner = Owner()
    owner.held()
    owner.silent = True
    assert owner.held(0.9)
    assert not owner.held(0.11)
    owner.silent = False
    owner.held(RENEW_SECONDS)
    assert owner.held()


def test_one_question_at_a_time() -> None:
    owner = Owner()
    for _ in range(5):
        owner.lease.held()
    owner.background.run()
    assert owner.asked == 1
