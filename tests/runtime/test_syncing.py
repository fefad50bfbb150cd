"""Compiled threads that sync: how many there are, and what they leave."""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.runtime import syncing
from bockd.runtime.compiled import VARIABLE
from bockd.runtime.syncing import Syncing

FOR_EVER_NS = 3_600 * 1_000_000_000

MAX_THREADS = 32
"""As in _syncing.c."""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    with (tmp_path / "file").open("wb") as opened:
        yield opened.fileno()


def never() -> None:
    raise AssertionError("a call where a thread does it")


def begun(*descriptors: int) -> Syncing:
    sync = Syncing(never, descriptors)
    assert sync.begin()
    return sync


def wait(sync: Syncing) -> None:
    while not sync.ended():
        select.select([sync.fileno()], [], [])


def count(what: str) -> int:
    return len(os.listdir(f"/proc/self/{what}"))


def test_the_environment_can_leave_the_threads_out() -> None:
    assert syncing.load({}) is not None
    assert syncing.load({VARIABLE: "off"}) is None


def test_many_syncs_at_once_share_a_bounded_number_of_threads_and_descriptors(file: int) -> None:
    threads, descriptors = count("task"), count("fd")
    for _ in range(3):
        syncs = [begun(file) for _ in range(300)]
        assert count("task") <= threads + MAX_THREADS
        for sync in syncs:
            wait(sync)
        del syncs, sync
    assert count("fd") <= descriptors + MAX_THREADS


def test_a_sync_that_nobody_waits_for_leaves_nothing_to_the_next(file: int) -> None:
    """An eventfd is used again; neither its count nor its error is."""
    reading, writing = os.pipe()
    for _ in range(200):
        del_me = begun(writing)
        del del_me
        sync = begun(file)
        wait(sync)
        assert sync._error == 0
    os.close(reading)
    os.close(writing)


def test_the_first_error_ends_a_sync(file: int) -> None:
    closed = os.dup(file)
    os.close(closed)
    sync = begun(file, closed)
    wait(sync)
    assert sync._error == errno.EBADF


def test_a_sync_of_more_files_than_any_layer_has_is_refused(file: int) -> None:
    assert not Syncing(never, [file] * 5).begin()


def test_a_child_has_threads_of_its_own(file: int) -> None:
    wait(begun(file))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            wait(begun(file))
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    wait(begun(file))


def test_a_child_takes_no_end_from_its_parent(file: int) -> None:
    """One that has a call of the parent's, and forgets it."""
    sync = begun(file)
    assert select.select([sync.fileno()], [], [], 10)[0]
    child = os.fork()
    if child == 0:
        del sync
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert sync.ended()


def test_without_a_thread_the_call_is_to_be_made(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoThreads:
        @staticmethod
        def begin(_: Any) -> None:
            return None

    monkeypatch.setattr(syncing, "compiled", NoThreads)
    assert not Syncing(never, [file]).begin()


@pytest.fixture
def silent() -> Iterator[int]:
    """A descriptor that is never readable."""
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


@pytest.fixture
def readable() -> Iterator[int]:
    reading, writing = os.pipe()
    os.write(writing, b"x")
    yield reading
    os.close(reading)
    os.close(writing)


def asked(file: int) -> Syncing:
    """One that says for ever that it has not ended: its end has been taken note of."""
    sync = begun(file)
    wait(sync)
    return sync


def test_the_end_of_a_sync_ends_the_wait_for_it(file: int, silent: int) -> None:
    assert begun(file).wait(silent, silent, FOR_EVER_NS)
    closed = os.dup(file)
    os.close(closed)
    sync = begun(file, closed)
    assert sync.wait(silent, silent, FOR_EVER_NS)
    assert sync._error == errno.EBADF


def test_what_others_have_to_do_ends_the_wait_for_a_sync(
    file: int, silent: int, readable: int
) -> None:
    assert not asked(file).wait(readable, silent, FOR_EVER_NS)
    assert not asked(file).wait(silent, readable, FOR_EVER_NS)


def test_the_wait_for_a_sync_ends_with_its_time(file: int, silent: int) -> None:
    assert not asked(file).wait(silent, silent, 1)


def test_a_signal_ends_the_wait_for_a_sync(file: int, silent: int) -> None:
    heard = []
    before = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    try:
        # Again and again: on a busy machine the first ones come before the wait.
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        assert not asked(file).wait(silent, silent, FOR_EVER_NS)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert set(heard) == {signal.SIGALRM}
