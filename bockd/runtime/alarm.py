"""A wait in the event loop that ends within some 50 us of its time.

trio's own deadlines are kept by epoll_wait(2), whose timeout is in milliseconds and rounded up, so
that a sleep ends up to 1 ms late. Here a timer of the kernel with a descriptor (timerfd_create(2))
ends the same wait on time. Where there is none (no Linux, no glibc), the wait ends as trio's do.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import trio

SECOND_NS = 1_000_000_000

_CLOCK_MONOTONIC = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


_libc = ctypes.CDLL(None)


class Alarm:
    """One timer, for one task that waits. Times are the event loop's, in nanoseconds."""

    def __init__(self) -> None:
        """Raises nothing: without a descriptor it is as late as trio."""
        self._timer = -1
        with suppress(AttributeError):
            self._timer = _libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        self._scope: trio.CancelScope | None = None

    def close(self) -> None:
        """Give the descriptor back. Nobody waits any more."""
        if self._timer >= 0:
            os.close(self._timer)
            self._timer = -1

    async def wait_until(self, at: int) -> None:
        """Wait until `at`, or what `move_to` says meanwhile."""
        try:
            with trio.CancelScope(deadline=at / SECOND_NS) as self._scope:
                if self._timer < 0:
                    await trio.sleep_forever()
                self._set(at)
                await trio.lowlevel.wait_readable(self._timer)
        finally:
            self._scope = None

    def move_to(self, at: int) -> None:
        """Have the wait that goes on end at another time."""
        if self._scope is not None:
            self._scope.deadline = at / SECOND_NS
            if self._timer >= 0:
                self._set(at)

    def _set(self, at: int) -> None:
        """Have the descriptor be readable from then on, and not before."""
        left = max(1, at - int(trio.current_time() * SECOND_NS))  # 0 would switch it off
        value = _Timespec(left // SECOND_NS, left % SECOND_NS)
        _libc.timerfd_settime(self._timer, 0, ctypes.byref(_Itimerspec(_Timespec(), value)), None)
