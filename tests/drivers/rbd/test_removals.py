"""What nothing names any more is removed in the background, and the end does not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import DeviceError, UnavailableError
from tests.drivers.rbd.ceph import need_modules

need_modules()

from bockd.drivers.rbd import removals  # noqa: E402
from bockd.drivers.rbd.connection import Connected  # noqa: E402
from bockd.drivers.rbd.errors import ShutOutError  # noqa: E402
from bockd.drivers.rbd.removals import (  # noqa: E402
    AGAIN_SECONDS,
    COUNTED_SECONDS,
    OWED_AT_MOST,
    THREADS,
    Removals,
)


class FakeConnection:
    """A connection that says whether it is open."""

    def __init__(self, *_arguments: object) -> None:
        self.closed = False

    @contextmanager
    def use(self) -> Iterator[Connected]:
        assert not self.closed
        yield Connected(None, None)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> FakeConnection:
    one = FakeConnection()
    monkeypatch.setattr(removals, "CommonConnection", lambda *_arguments: one)
    return one


class Large:
    """Removals that take as long as the test says."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.done: list[str] = []

    def put(self, into: Removals, name: str, image: str | None = None) -> None:
        def remove(_connected: Connected) -> None:
            self.begun.release()
            self.go_on.wait()
            self.done.append(name)

        into.put(image or name, f"removing {name}", remove)


def test_the_end_waits_for_no_large_image(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removals, "END_SECONDS", 0.0)
    large, some = Large(), Removals(RbdSettings())
    for number in range(THREADS + 1):
        large.put(some, str(number))
    for _ in range(THREADS):
        large.begun.acquire()
    some.close()
    large.put(some, "too late")
    # They go on, with their connection, as long as the process lives.
    assert (large.done, connection.closed) == ([], False)
    large.go_on.set()
    some.wait()
    assert sorted(large.done) == [str(number) for number in range(THREADS)]


def test_what_is_done_soon_is_done_before_the_end(connection: FakeConnection) -> None:
    large, some = Large(), Removals(RbdSettings())
    large.go_on.set()
    names = [str(number) for number in range(3 * THREADS)]
    for name in names:
        large.put(some, name)
    some.close()
    assert sorted(large.done) == sorted(names)
    assert connection.closed


def test_what_fails_is_logged_and_the_next_one_begins(
    connection: FakeConnection, caplog: pytest.LogCaptureFixture
) -> None:
    some, large = Removals(RbdSettings()), Large()
    large.go_on.set()

    def refuse(_connected: Connected) -> None:
        raise UnavailableError("no answer")

    def break_off(_connected: Connected) -> None:
        raise ZeroDivisionError

    some.put("a", "removing a", refuse)
    some.put("b", "removing b", break_off)
    large.put(some, "c")
    some.close()
    assert "removing a is put off: no answer" in caplog.text
    assert "removing b failed" in caplog.text
    assert large.done == ["c"]
    assert connection.closed


def test_of_one_image_one_after_the_other_and_others_meanwhile(connection: FakeConnection) -> None:
    some, slow, quick = Removals(RbdSettings()), Large(), Large()
    quick.go_on.set()
    slow.put(some, "snap", image="a")
    slow.begun.acquire()
    quick.put(some, "image", image="a")
    quick.put(some, "b")
    quick.begun.acquire()
    slow.go_on.set()
    some.wait()
    assert (slow.done, quick.done) == (["snap"], ["b", "image"])
    some.close()


def test_nothing_of_an_image_is_begun_while_a_taking_keeps_it_off(
    connection: FakeConnection,
) -> None:
    some, quick = Removals(RbdSettings()), Large()
    quick.go_on.set()
    with some.kept_off("a"):
        with some.kept_off("a"):
            quick.put(some, "snap", image="a")
        quick.put(some, "b")
        quick.begun.acquire()
        assert not some.wait(0)
    some.wait()
    assert quick.done == ["b", "snap"]
    some.close()


@contextmanager
def waiting_for(some: Removals) -> Iterator[threading.Event]:
    """Happens when somebody begins to wait for removals in the `with` block."""
    waits, wait_for = threading.Event(), some._changed.wait_for

    def noted(*arguments: Any) -> Any:
        waits.set()
        return wait_for(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(some._changed, "wait_for", noted)
        yield waits


def test_a_taking_waits_for_what_is_at_work(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removals, "KEPT_OFF_SECONDS", 60.0)
    some, slow = Removals(RbdSettings()), Large()
    slow.put(some, "snap", image="a")
    slow.begun.acquire()

    def take() -> None:
        with some.kept_off("a"):
            slow.done.append("taken")

    taking = threading.Thread(target=take)
    with waiting_for(some) as waits:
        taking.start()
        assert waits.wait(60)
    slow.go_on.set()
    taking.join()
    assert slow.done == ["snap", "taken"]
    some.close()


def test_a_taking_does_not_wait_for_ever(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removals, "KEPT_OFF_SECONDS", 0.0)
    some, slow = Removals(RbdSettings()), Large()
    slow.put(some, "snap", image="a")
    slow.begun.acquire()
    with some.kept_off("a"):
        assert slow.done == []
    slow.go_on.set()
    some.close()


@pytest.mark.parametrize("times", [1, 2])
def test_what_was_shut_out_is_done_once_more(
    connection: FakeConnection, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    some, calls = Removals(RbdSettings()), list[int]()

    def remove(_connected: Connected) -> None:
        calls.append(1)
        if len(calls) <= times:
            raise ShutOutError("shut out")

    some.put("a", "removing a", remove)
    some.close()
    assert len(calls) == 2
    assert ("removing a is put off: shut out" in caplog.text) == (times == 2)


class Refused:
    """Removals that fail as long as the test says, and the clock of those who try again."""

    def __init__(self) -> None:
        self.now = 0.0
        self.full = True
        self.calls: list[str] = []

    def remove(self, name: str, error: Exception) -> Callable[[Connected], None]:
        def removal(_connected: Connected) -> None:
            self.calls.append(name)
            if self.full:
                raise error

        return removal

    def owes(self, some: Removals, seconds: float) -> bool:
        """Ask when so much time has passed, and let what that begins end."""
        self.now += seconds
        owes = some.owes_space()
        assert some.wait(60)
        return owes


@pytest.mark.parametrize("error", [DeviceError("the cluster is full"), ZeroDivisionError()])
def test_space_is_owed_until_what_has_failed_is_removed(
    connection: FakeConnection, error: Exception
) -> None:
    refused = Refused()
    some = Removals(RbdSettings(), lambda: refused.now)
    assert not some.owes_space()
    some.put("a", "removing a", refused.remove("a", error))
    some.wait()
    assert refused.owes(some, AGAIN_SECONDS - 1)
    assert refused.calls == ["a"]
    for times in (2, 3):
        assert refused.owes(some, AGAIN_SECONDS)
        assert refused.calls == times * ["a"]
    refused.full = False
    assert refused.owes(some, AGAIN_SECONDS)
    assert refused.owes(some, COUNTED_SECONDS - 1)
    assert not refused.owes(some, 1)
    assert refused.calls == 4 * ["a"]
    some.close()


def test_failures_do_not_put_off_the_next_try(connection: FakeConnection) -> None:
    refused = Refused()
    some = Removals(RbdSettings(), lambda: refused.now)
    for name in ("a", "b"):
        some.put(name, f"removing {name}", refused.remove(name, UnavailableError("no answer")))
        some.wait()
        refused.now += AGAIN_SECONDS / 2
    assert refused.owes(some, 0)
    assert sorted(refused.calls) == ["a", "a", "b", "b"]
    some.close()


def test_an_image_has_its_turn_again_after_its_snap_that_had_failed(
    connection: FakeConnection,
) -> None:
    """It had stayed because of that, and that is no error."""
    refused, quick = Refused(), Large()
    quick.go_on.set()
    some = Removals(RbdSettings(), lambda: refused.now)
    some.put("a", "removing a snap", refused.remove("snap", DeviceError("full")))
    some.wait()
    quick.done = refused.calls
    quick.put(some, "image", image="a")
    some.wait()
    refused.full = False
    assert refused.owes(some, AGAIN_SECONDS)
    assert refused.calls == ["snap", "image", "snap", "image"]
    assert not refused.owes(some, COUNTED_SECONDS)
    some.close()


def test_what_could_not_be_put_in_is_owed(connection: FakeConnection) -> None:
    refused = Refused()
    refused.full = False
    some = Removals(RbdSettings(), lambda: refused.now)
    some.owe("a", "removing a", refused.remove("a", ZeroDivisionError()))
    assert refused.owes(some, AGAIN_SECONDS - 1)
    assert refused.calls == []
    assert refused.owes(some, 1)
    assert refused.calls == ["a"]
    assert not refused.owes(some, COUNTED_SECONDS)
    some.close()


def test_of_many_that_fail_the_last_are_tried_again(connection: FakeConnection) -> None:
    refused = Refused()
    some = Removals(RbdSettings(), lambda: refused.now)
    names = [str(number) for number in range(OWED_AT_MOST + 2)]
    for name in names:
        some.put(name, f"removing {name}", refused.remove(name, DeviceError("full")))
        some.wait()
    assert refused.calls == names
    assert refused.owes(some, AGAIN_SECONDS)
    assert sorted(refused.calls[len(names) :]) == sorted(names[2:])
    some.close()
