"""What nothing names any more is removed in the background, and the end does not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import UnavailableError
from tests.drivers.rbd.ceph import need_modules

need_modules()

from bockd.drivers.rbd import removals  # noqa: E402
from bockd.drivers.rbd.connection import Connected  # noqa: E402
from bockd.drivers.rbd.errors import ShutOutError  # noqa: E402
from bockd.drivers.rbd.removals import THREADS, Removals  # noqa: E402


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
