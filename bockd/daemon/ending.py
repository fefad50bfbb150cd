"""The signals that end the daemon."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from bockd.daemon.readiness import has_manager

log = logging.getLogger(__name__)


@contextmanager
def ending_signals() -> Iterator[Callable[[], Awaitable[None]]]:
    """Hold SIGTERM, SIGINT and SIGHUP back for the duration. Yield what waits for one that ends the
    daemon.

    SIGHUP, by which the kernel and the shell say that the terminal was closed, ends the daemon like
    SIGTERM. It does not when it was ignored before (nohup), nor under a service manager: that ends
    a daemon otherwise, and people who send it there want a configuration to be read again.

    Afterwards a second SIGTERM or SIGINT ends a stop that is slow. A second SIGHUP is ignored,
    because a terminal that is closed often sends two.
    """
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
        # What the receiver restores.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with trio.open_signal_receiver(*numbers) as signals:
        yield lambda: _wait(signals)


async def _wait(signals: AsyncIterator[int]) -> None:
    async for number in signals:
        if number != signal.SIGHUP or not has_manager():
            return
        log.info(
            "SIGHUP is ignored: certificates are read again by themselves when they change; "
            "for the rest of the configuration restart the service"
        )
