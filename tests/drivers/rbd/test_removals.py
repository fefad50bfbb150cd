"""What nothing names any more is removed in the background, and the end does not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import UnavailableError
from tests.drivers.rbd.ceph import need_modules

need_modules()

from bockd.drivers.rbd import removals  # noqa: E402
from bockd.drivers.rbd.connection import Connected  # noqa: E402
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

    def put(self, into: Removals, name: str) -> None:
        def remove(_connected: Connected) -> None:
            self.begun.release()
            self.go_on.wait()
            self.done.append(name)

        into.put(f"removing {name}", remove)


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

    some.put("removing a", refuse)
    some.put("removing b", break_off)
    large.put(some, "c")
    some.close()
    assert "removing a is put off: no answer" in caplog.text
    assert "removing b failed" in caplog.text
    assert large.done == ["c"]
    assert connection.closed
