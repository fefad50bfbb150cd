"""The log of failed I/O: a kind once a minute, with how many there were and what to do."""

from __future__ import annotations

import errno

import pytest

from bockd.errors import (
    BockdError,
    InvalidRequestError,
    NotSupportedError,
    UnavailableError,
    from_os_error,
)
from bockd.failurelog import PERIOD_SECONDS, FailureLog


class Time:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def system(number: int) -> BockdError:
    """What the engine raises for an error of the system."""
    cause = OSError(number, "as the system says")
    try:
        raise from_os_error(cause, "reading layer 7") from cause
    except BockdError as error:
        return error


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def failures(time: Time) -> FailureLog:
    return FailureLog(time)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said since the last look."""
    said = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return said


def test_the_first_of_a_kind_is_logged_at_once_and_the_rest_counted(
    failures: FailureLog, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    full = system(errno.ENOSPC)
    failures.note("volume 3", "write", full)
    (line,) = lines(caplog)
    assert line.startswith("volume 3: a write failed with ENOSPC: reading layer 7: ")
    assert "free some space" in line
    for _ in range(5):
        failures.note("volume 3", "write", full, 100)
    time.now += PERIOD_SECONDS - 1
    failures.log_due()
    assert lines(caplog) == []
    time.now += 1
    failures.log_due()
    (line,) = lines(caplog)
    assert line.startswith("volume 3: 500 writes failed with ENOSPC: ")
    failures.note("volume 3", "write", full)
    assert lines(caplog) == []
    failures.close()
    assert [line.split(" failed")[0] for line in lines(caplog)] == ["volume 3: a write"]


def test_a_failure_after_a_minute_tells_of_those_before_it(
    failures: FailureLog, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(8):
        failures.note("volume 3", "read", system(errno.EIO))
    time.now += PERIOD_SECONDS
    failures.note("volume 3", "read", system(errno.EIO))
    first, second = lines(caplog)
    assert first.startswith("volume 3: a read failed with EIO: ")
    assert second.startswith("volume 3: 8 reads failed with EIO: ")
    # After a quiet minute the next one is news again.
    time.now += PERIOD_SECONDS
    failures.log_due()
    failures.note("volume 3", "read", system(errno.EIO))
    (line,) = lines(caplog)
    assert line.startswith("volume 3: a read failed")


def test_volumes_operations_and_errors_are_told_apart(
    failures: FailureLog, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        for called in ("volume 1", "volume 2"):
            for operation in ("read", "write"):
                for number in (errno.EIO, errno.EMFILE):
                    failures.note(called, operation, system(number))
    said = lines(caplog)
    assert len(said) == 8
    assert sum("LimitNOFILE" in line for line in said) == 4
    assert sum("kernel's log" in line for line in said) == 4


def test_an_error_that_is_no_failure_is_not_logged(
    failures: FailureLog, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in (InvalidRequestError, NotSupportedError, UnavailableError):
        failures.note("volume 1", "read", kind("no"))
    assert lines(caplog) == []


def test_an_error_of_ours_brings_its_traceback_once(
    failures: FailureLog, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (ZeroDivisionError("oh"), ZeroDivisionError("oh"), MemoryError()):
        failures.note("volume 1", "flush", error)
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]
    assert lines(caplog) == [
        "volume 1: a flush failed with ZeroDivisionError: oh",
        "volume 1: a flush failed with MemoryError: MemoryError",
    ]


def test_it_says_when_there_is_something_to_look_at(failures: FailureLog, time: Time) -> None:
    """So that nobody looks where nothing has failed."""
    called: list[bool] = []
    failures.on_first = lambda: called.append(failures.watching)
    assert not failures.watching
    failures.note("volume 3", "write", system(errno.ENOSPC))
    failures.note("volume 3", "read", system(errno.EIO))
    assert called == [True]
    time.now += PERIOD_SECONDS
    failures.log_due()
    assert not failures.watching
    failures.note("volume 3", "write", system(errno.ENOSPC))
    assert called == [True, True]
