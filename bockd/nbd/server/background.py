"""Operations of one connection that a batch has begun, and that have to wait.

A flush that is all there is to do is waited for at once, without the loop (`sync_here`). Everything
else goes on beside the connection's own loop (`start`), and is answered out of order.

What waits for completions (`runtime.steps`) needs no task. A device elsewhere answers many requests
at once. What has *landed* in one burst of completions is gone on with, one after the other, in the
event loop itself, and the replies of a connection go out in one call. A request that then waits for
something else, as a thread, goes on in a task.

The socket may not take all of a burst's replies. The rest is sent by a task, and nobody else sends
before it has (`Channel.send_at_once`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from time import perf_counter_ns

import trio

from bockd.errors import VolumeTakenError
from bockd.nbd.protocol.replies import Buffer, ReplyEncoder
from bockd.nbd.protocol.transmission import Request
from bockd.nbd.server import work
from bockd.nbd.server.budget import Account
from bockd.nbd.server.channel import Channel, HungUpError
from bockd.nbd.server.flight import InFlight
from bockd.nbd.server.limits import TURN_NS
from bockd.nbd.server.pace import Polling
from bockd.nbd.server.statistics import ExportStatistics
from bockd.nbd.server.work import Work
from bockd.runtime.steprunner import Endings, Loop, StepRunner, running_loop
from bockd.runtime.steps import Completion, Step
from bockd.runtime.syncing import Syncing

log = logging.getLogger(__name__)


class Background:
    """Those of one connection. Each request counts as in flight until its reply is sent."""

    def __init__(
        self,
        begun: list[Work],
        large_reads: list[Request],
        read_large: Callable[[Request, int], Awaitable[None]],
        encoder: ReplyEncoder,
        statistics: ExportStatistics,
        channel: Channel,
        account: Account,
        runner: StepRunner,
        flight: InFlight,
        polling: Polling,
    ) -> None:
        """`begun` and `large_reads` are what the last batch has left, and taken from there;
        `read_large` serves one of the latter, which came at some time."""
        self._begun = begun
        self._large_reads = large_reads
        self._read_large = read_large
        self._encoder = encoder
        self._statistics = statistics
        self._channel = channel
        self._account = account
        self._runner = runner
        self._flight = flight
        self._polling = polling
        self._nursery: trio.Nursery
        self._loop: Loop | None = None
        self._endings: Endings | None = None
        self._replies: list[Buffer] = []
        """Of this burst, not sent yet."""
        self._requests = self._charged_bytes = 0
        """Of those replies."""
        self._landing = 0
        """Operations that have begun without a task, and not ended or gone to one."""
        self._empty: trio.Event | None = None

    def enter(self, nursery: trio.Nursery) -> None:
        """Take over the nursery of all tasks. To be called before all else, in the loop that serves
        the connection."""
        self._loop = running_loop()
        self._nursery = nursery

    # Without the loop.

    def sync_here(self, started: int) -> list[Buffer]:
        """Wait for the flush that the batch has begun, without the loop, if it is all that anybody
        has to do. Return its reply. If something else comes up, or it takes long, the flush is left
        to `start`, and nothing is returned.

        Nothing is awaited here, so for all others the flush is one with its batch.
        """
        begun, loop = self._begun, self._loop
        if (
            len(begun) != 1
            or not isinstance(begun[0].step, Syncing)
            or self._large_reads
            or self._flight.requests
            or loop is None
            or not self._polling.may_block(busy=not loop.rest_ns(TURN_NS))
        ):
            return []
        sock = self._channel.sock.fileno()
        while _awaited(begun[0].step, sock, loop):
            item = begun.pop()
            try:
                step = item.steps.send(None)
            except StopIteration as done:
                reply: Buffer = done.value
            except Exception as error:  # noqa: BLE001 - becomes the requests' answer
                reply = work.failed(self._encoder, self._statistics, item.requests, error)
            else:
                begun.append(replace(item, step=step))
                continue
            self._statistics.answered(item.requests, started, perf_counter_ns())
            return [reply]
        return []

    # Beside the connection's loop.

    def start(self, started: int) -> None:
        """Have all that the batch has begun go on by itself. Its requests came at `started`."""
        begun = self._begun
        for item in begun:
            if isinstance(item.step, Syncing):
                with suppress(Exception):  # the task begins it again, and has the operation know
                    item.step.begin()  # the disk works while the task is made
        while begun:
            item = begun.pop(0)
            self._flight.requests += item.in_flight
            self._account.charge(item.charged_bytes)
            changes = item.requests[0][1] in work.CHANGES
            change = self._flight.begin_change() if changes else None
            if not self._lands(item, started, change):
                self._nursery.start_soon(self._finish, item, started, change)
        for request in self._large_reads:
            self._flight.requests += 1
            self._nursery.start_soon(self._read_large, request, started)
        self._large_reads.clear()

    # In tasks.

    async def _finish(self, item: Work, started: int, change: int | None) -> None:
        """Finish an operation that has begun, and answer."""
        try:
            try:
                reply = await self._outcome(item)
            finally:
                if change is not None:
                    self._flight.end_change(change)
            self._statistics.answered(item.requests, started, perf_counter_ns())
            await self._channel.send(reply)
        except HungUpError:
            log.debug("a reply had no one to go to")
        finally:
            self._account.discharge(item.charged_bytes)
            self._flight.done(item.in_flight)

    async def _outcome(self, item: Work) -> Buffer:
        try:
            return await self._runner.finish(item.steps, item.step)
        except Exception as error:  # noqa: BLE001 - becomes the requests' answer
            return work.failed(self._encoder, self._statistics, item.requests, error)

    # In bursts.

    async def landed(self) -> None:
        """Return when all that waits for completions has ended, or has a task. Nothing begins any
        more."""
        if self._landing:
            self._empty = trio.Event()
            await self._empty.wait()

    def _lands(self, item: Work, started: int, change: int | None) -> bool:
        """Go on with an operation once what it waits for has ended. Return False, with nothing
        done, if it must have a task."""
        if not isinstance(item.step, Completion):
            return False
        if self._endings is None:
            if not self._channel.hand_on():
                return False
            self._endings = self._runner.endings()
        self._landing += 1
        self._wait(item, item.step, started, change)
        return True

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
                self._nursery.start_soon(_end, taken)
                self._ended(change)
                self._sent(item.in_flight, item.charged_bytes)
                return
        else:
            if isinstance(step, Completion):
                self._wait(item, step, started, change)
            else:
                self._nursery.start_soon(self._finish, replace(item, step=step), started, change)
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
        self._landing -= 1
        if not self._landing and self._empty is not None:
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
            self._nursery.start_soon(self._send_slowly, replies, rest, requests, charged)
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


def _awaited(step: Step, sock: int, loop: Loop) -> bool:
    """Wait, for a turn at most, for the end of a sync that runs without the interpreter, as long as
    the loop has nothing to do. Return whether it has come: the operation is to be resumed then.
    False for every other step."""
    try:
        if not (isinstance(step, Syncing) and step.begin()):
            return False
        return step.wait(sock, loop.descriptor, loop.rest_ns(TURN_NS))
    except Exception:  # noqa: BLE001 - not the operation's: met again by who does the step
        return False


async def _end(taken: VolumeTakenError) -> None:
    """End the connection in whose nursery this runs."""
    raise taken
