"""Requests that wait for completions (`runtime.steps`), without a task for each.

A device elsewhere answers many requests at once. What has *landed* in one burst of completions is
gone on with, one after the other, in the loop itself, and the replies of a connection go out in one
call. A request that then waits for something else, as a thread, goes on in a task.

The socket may not take all of a burst's replies. The rest is sent by a task, and nobody else sends
before it has (`Channel.send_at_once`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter_ns

import trio

from bockd.errors import VolumeTakenError
from bockd.nbd.protocol.replies import Buffer, ReplyEncoder
from bockd.nbd.server import work
from bockd.nbd.server.budget import Account
from bockd.nbd.server.channel import Channel, HungUpError
from bockd.nbd.server.flight import InFlight
from bockd.nbd.server.statistics import ExportStatistics
from bockd.nbd.server.work import Work
from bockd.runtime.steprunner import Endings, StepRunner
from bockd.runtime.steps import Completion

log = logging.getLogger(__name__)


class Landings:
    """Those of one connection. Each request counts as in flight until its reply is sent."""

    nursery: trio.Nursery

    def __init__(
        self,
        encoder: ReplyEncoder,
        statistics: ExportStatistics,
        channel: Channel,
        account: Account,
        runner: StepRunner,
        flight: InFlight,
        finish: Callable[[Work, int, int | None], Awaitable[None]],
    ) -> None:
        """`finish` is what a task does with a request that waits for something else; its arguments
        are those of `begin`."""
        self._encoder = encoder
        self._statistics = statistics
        self._channel = channel
        self._account = account
        self._runner = runner
        self._flight = flight
        self._finish = finish
        self._endings: Endings | None = None
        self._replies: list[Buffer] = []
        """Of this burst, not sent yet."""
        self._requests = self._charged_bytes = 0
        """Of those replies."""
        self._open = 0
        """Operations that have begun here, and not ended or gone to a task."""
        self._empty: trio.Event | None = None

    def begin(self, item: Work, started: int, change: int | None) -> bool:
        """Go on with an operation once what it waits for has ended. Return False, with nothing
        done, if it must have a task."""
        if not isinstance(item.step, Completion):
            return False
        if self._endings is None:
            if not self._channel.hand_on():
                return False
            self._endings = self._runner.endings()
        self._open += 1
        self._wait(item, item.step, started, change)
        return True

    async def all(self) -> None:
        """Return when all that has begun here has ended, or has a task. Nothing begins any more."""
        if self._open:
            self._empty = trio.Event()
            await self._empty.wait()

    def _wait(self, item: Work, step: Completion[object], started: int, change: int | None) -> None:
        assert self._endings is not None
        self._endings.subscribe(step, partial(self._go_on, item, started, change))

    def _go_on(self, item: Work, started: int, change: int | None) -> None:
        try:
            step = item.steps.send(None)
        except StopIteration as done:
            reply: Buffer = done.value
        except Exception as error:  # noqa: BLE001 - becomes the requests' answer
            try:
                reply = work.failed(self._encoder, self._statistics, item.requests, error)
            except VolumeTakenError as taken:
                self.nursery.start_soon(_end, taken)
                self._ended(change)
                self._sent(item.in_flight, item.charged_bytes)
                return
        else:
            if isinstance(step, Completion):
                self._wait(item, step, started, change)
            else:
                self.nursery.start_soon(self._finish, replace(item, step=step), started, change)
                self._left()
            return
        self._ended(change)
        self._statistics.answered(item.requests, started, perf_counter_ns())
        if not self._replies:
            assert self._endings is not None
            self._endings.at_end_of_burst(self._send)
        self._replies.append(reply)
        self._requests += item.in_flight
        self._charged_bytes += item.charged_bytes

    def _ended(self, change: int | None) -> None:
        if change is not None:
            self._flight.end_change(change)
        self._left()

    def _left(self) -> None:
        self._open -= 1
        if not self._open and self._empty is not None:
            self._empty.set()

    def _send(self) -> None:
        """Send the replies of a burst."""
        replies, requests, charged = self._replies, self._requests, self._charged_bytes
        self._replies, self._requests, self._charged_bytes = [], 0, 0
        rest: Sequence[Buffer] | None = ()
        try:
            rest = self._channel.send_at_once(replies)
        except HungUpError:
            log.debug("replies had no one to go to")
        if rest is None or rest:
            self.nursery.start_soon(self._send_slowly, replies, rest, requests, charged)
        else:
            self._sent(requests, charged)

    async def _send_slowly(
        self, replies: Sequence[Buffer], rest: Sequence[Buffer] | None, requests: int, charged: int
    ) -> None:
        try:
            if rest is None:
                await self._channel.send(*replies)
            else:
                await self._channel.send_rest(rest)
        except HungUpError:
            log.debug("replies had no one to go to")
        finally:
            self._sent(requests, charged)

    def _sent(self, requests: int, charged: int) -> None:
        self._account.discharge(charged)
        self._flight.done(requests)


async def _end(taken: VolumeTakenError) -> None:
    """End the connection in whose nursery this runs."""
    raise taken
