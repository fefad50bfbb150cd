"""Waiting for a turn: as long as it passes on."""

from __future__ import annotations

import pytest

from bockd.drivers.rbd import patience
from bockd.drivers.rbd.patience import wait_for_turn
from bockd.errors import ClusterUnavailableError
from bockd.runtime.steps import Within, run_inline
from bockd.runtime.waiting import Mutex


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.001)


def test_a_turn_that_does_not_pass_is_not_waited_for() -> None:
    mutex = Mutex()
    _ = mutex.join()
    with pytest.raises(ClusterUnavailableError, match="an earlier operation on volume 1 is not"):
        run_inline(wait_for_turn(mutex, mutex.join(), "volume 1"))


def test_many_operations_wait_for_each_other() -> None:
    """Each has its time: fifty clones of one snapshot, for example."""
    mutex = Mutex()
    _ = mutex.join()
    _ = mutex.join()
    steps = wait_for_turn(mutex, mutex.join(), "volume 1")
    for _ in range(2):
        step = steps.send(None)
        assert isinstance(step, Within)
        mutex.release()
        step.wait()
    with pytest.raises(StopIteration):
        steps.send(None)


def test_who_withdraws_leaves_the_mutex_to_the_next() -> None:
    mutex = Mutex()
    first, second, third = mutex.join(), mutex.join(), mutex.join()
    mutex.withdraw(second)
    assert not third.fired
    mutex.withdraw(first)
    assert third.fired
    mutex.withdraw(third)
    assert not mutex.held
