"""One client in the transmission phase: receive, serve the batch, send, poll, park.

The loop runs plain calls from one batch to the next; it awaits only when a socket would block, when
something must wait, and once per turn, so that other connections get theirs. What a batch could not
do at once goes on beside it (background.py) and is answered out of order.

proto.md, "Transmission", "Ordering of messages and writes", "Terminating the transmission phase".
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns

import trio

from bockd.nbd.protocol.handshake import Negotiated
from bockd.nbd.protocol.replies import encoder_for
from bockd.nbd.protocol.transmission import Request, RequestLimits, RequestParser
from bockd.nbd.server.background import Background
from bockd.nbd.server.batch import Batch
from bockd.nbd.server.budget import Account
from bockd.nbd.server.channel import Channel, HungUpError
from bockd.nbd.server.delaying import Delaying
from bockd.nbd.server.exports import OpenExport
from bockd.nbd.server.fastlane import LaneArguments, Served
from bockd.nbd.server.fences import Fences
from bockd.nbd.server.flight import InFlight
from bockd.nbd.server.flushhabit import FlushHabit
from bockd.nbd.server.holding import Holding
from bockd.nbd.server.large import Incoming, LargeTransfers
from bockd.nbd.server.limits import RECEIVE_BUFFER_BYTES, TURN_NS, ServerLimits
from bockd.nbd.server.pace import Polling
from bockd.nbd.server.statistics import ExportStatistics
from bockd.nbd.server.together import Together
from bockd.runtime.steprunner import StepRunner
from bockd.throttle.gates import Gate

log = logging.getLogger(__name__)

_WORTH_JOINING = 32
"""Requests that turns with others should serve, or the way into them costs more than they save."""
_MOST_BY_ITSELF = 64
"""Rounds after one that was not worth it, at most: one in so many is a try."""


class Connection:
    """A `registry.Member`; `run` is its life."""

    def __init__(
        self,
        channel: Channel,
        account: Account,
        runner: StepRunner,
        limits: ServerLimits,
        together: Together,
    ) -> None:
        self.closed = trio.Event()
        self.export_name = ""
        self._channel = channel
        self._account = account
        self._runner = runner
        self._limits = limits
        self._scope = trio.CancelScope()
        self._polling = Polling(together.pace, limits.poll_tries)
        self._flight = InFlight()
        self._habit = FlushHabit()
        self._buffer = memoryview(mmap.mmap(-1, RECEIVE_BUFFER_BYTES))
        self._fences = Fences()
        self._stopped = False
        self._together = together
        self._position = self._end = 0
        self._served_together = self._by_itself = self._next_by_itself = 0
        self._holding: Holding | None = None
        """While the volume has limits, or a device profile, and until all that the limits have held
        up was served."""
        self._forcings = 0
        """How many want what was sent carried out, whatever the limits, which may come and go
        meanwhile."""

    def prepare(
        self,
        export: OpenExport,
        negotiated: Negotiated,
        statistics: ExportStatistics,
        leftover: bytes,
        gate: Gate,
    ) -> None:
        """Take over what the handshake has negotiated. `leftover` are the first requests' bytes;
        the `gate` is that of the volume's limits."""
        info = export.info
        self._gate = gate
        self._device = export.device
        self.export_name = info.name
        encoder = encoder_for(structured=negotiated.structured, extended=negotiated.extended)
        judged_by = RequestLimits(
            read_only=info.read_only,
            extended=negotiated.extended,
            chunked=encoder.chunked,
            allocation=negotiated.allocation,
        )
        self._statistics = statistics
        self._parser = RequestParser(extended=negotiated.extended)
        self._batch = Batch(export.device, encoder, judged_by, statistics)
        self._large = LargeTransfers(
            export.device,
            encoder,
            judged_by,
            statistics,
            self._channel,
            self._account,
            self._runner,
            self._flight,
            self._limits,
        )
        self._background = Background(
            self._batch.background,
            self._batch.large_reads,
            self._large.read,
            encoder,
            statistics,
            self._channel,
            self._account,
            self._runner,
            self._flight,
            self._polling,
        )
        self._delaying = Delaying(
            export.device,
            encoder,
            judged_by,
            statistics,
            self._channel,
            self._account,
            self._runner,
            self._flight,
            gate,
            self._read_large,
            lambda: self._forcings > 0,
        )
        self._large.delaying = self._delaying
        # TLS shows only how much is unread at most.
        self._channel.on_empty(self._fences.pass_all)
        self._buffer[: len(leftover)] = leftover
        self._leftover_bytes = self._fences.received_bytes = len(leftover)

    # What the registry asks.

    def stop_receiving(self) -> None:
        """See `registry.Member`."""
        self._force()  # for good
        self._delaying.end()
        self._stopped = True
        self._channel.stop_receiving()

    def drop(self) -> None:
        """See `registry.Member`."""
        self._scope.cancel()

    def abandon(self) -> None:
        """See `registry.Member`."""
        self._channel.abort()
        self._scope.cancel()

    def hung_up(self) -> bool:
        """See `registry.Member`."""
        return self.closed.is_set() or self._channel.hung_up()

    def in_flight(self) -> int:
        """See `registry.Member`."""
        return self._flight.requests

    def idle(self) -> bool:
        """See `registry.Member`."""
        return self.closed.is_set() or (
            self._fences.all_served(self._channel.unread_bytes())
            and not self._flight.changing
            and (self._holding is None or self._holding.idle)
            and not self._channel.hung_up()
        )

    async def received_all(self) -> None:
        """See `registry.Member`."""
        if self.closed.is_set():
            return
        self._force()
        try:
            await self._fences.reached(self._channel.unread_bytes())
            if (holding := self._holding) is not None:
                await holding.begun()
        finally:
            self._forcings -= 1

    def _force(self) -> None:
        """Let pass all that the limits hold up, or a device profile for want of room; so with what
        comes until `_forcings` is less again."""
        self._forcings += 1
        if self._holding is not None:
            self._holding.pass_all()
        self._delaying.hurry()

    async def writes_finished(self) -> None:
        """See `registry.Member`."""
        await self._flight.changes_finished()

    def finished(self) -> None:
        """Mark the connection as closed, and let waiting fences pass. The socket is closed and
        nothing runs any more."""
        if self._parser.unflagged:
            log.debug("a client of %s sent writes without PAYLOAD_LEN", self.export_name)
        self.closed.set()
        self._polling.ended()
        self._fences.end()

    def count_received(self, length: int, unserved: int = 0) -> None:
        """See `large.Received`."""
        self._fences.received_bytes += length
        self._fences.served(unserved)

    async def yield_if_due(self) -> None:
        """See `large.Received`."""
        if self._polling.worked(perf_counter_ns()):
            await trio.lowlevel.checkpoint()
            self._polling.turned()

    def undisturbed(self) -> int:
        """See `large.Received`."""
        return 0 if self._flight.requests else self._polling.undisturbed()

    def left_ns(self) -> int:
        """See `large.Received`."""
        return self._polling.left_ns()

    @contextmanager
    def parked(self) -> Iterator[None]:
        """See `large.Received`."""
        self._polling.parks()
        yield
        self._polling.woke()

    # Its life.

    def waits_outside(self) -> bool:
        """Return whether a client may be kept waiting that has not been let in: not if somebody
        needs what it has sent carried out. Raises HungUpError if it is not there any more, or was
        told to go."""
        if self._stopped or self._channel.peer_left():
            raise HungUpError("the client left before what others owe to the limits was paid")
        return not self._forcings

    async def run(self, enter: Callable[[], Awaitable[None]]) -> None:
        """Admit the client with `enter`, and serve it until it leaves. Raises ProtocolError when it
        broke the rules. Operations that have begun are finished in any case."""
        with self._scope:
            await enter()
            if self._scope.cancel_called:
                return  # dropped on the threshold: the requests behind its greeting do not count
            async with trio.open_nursery() as nursery:
                self._nursery = self._large.nursery = self._delaying.nursery = nursery
                self._background.enter(nursery)
                try:
                    await self._serve_all()
                finally:
                    with trio.CancelScope(shield=True):
                        await self._background.landed()

    async def _serve_all(self) -> None:
        try:
            await self._serve()
            if self._holding is not None:
                await self._end_holding(self._holding)
        except BaseException:
            if self._batch.half_sent:
                self._channel.break_off()  # what is finished after this would be sent behind it
            raise
        finally:  # what a batch had begun when something unforeseen ended it
            self._background.start(perf_counter_ns())
            if self._holding is not None:
                self._holding.drop()
            self._forcings += 1  # for good
            self._delaying.end()  # nobody is there any more who has answers wait
        self._fences.end()  # nothing more is read

    async def _end_holding(self, holding: Holding) -> None:
        """Finish what is held, unless the client has just gone."""
        if self._batch.disconnect or self._stopped:
            await holding.finished()

    def _limit(self) -> None:
        """Begin to hold requests up when the volume has got limits; stop when it has none any
        more."""
        if self._gate.limited:
            self._holding = Holding(
                self._gate,
                self._device,
                self._channel,
                self._limits.max_in_flight,
                self._nursery,
                self._serve_held,
                lambda: self._forcings > 0,
            )
        elif self._holding is not None and self._holding.idle:
            self._holding = None

    async def _serve(self) -> None:
        buffer, gate = self._buffer, self._gate
        end = self._leftover_bytes
        while True:
            if gate.limited != (self._holding is not None):
                self._limit()
            position, end, progressed, polled = await self._serve_plain(end)
            if position < end:
                position, end, parsed = await self._serve_parsed(position, end)
                progressed = progressed or parsed
            if self._batch.disconnect:
                return
            end = self._move_leftover(position, end)
            if end and progressed:
                continue  # behind a payload, or bytes that are no request: look before waiting
            self._fences.served()
            received = await self._receive(buffer[end:], polled=polled)
            if not received:
                return
            self._fences.received_bytes += received
            end += received
            if (heat := self._statistics.heat) is not None:
                heat.look(buffer, end)
            if not progressed and self._polling.due():
                # Who sends a byte at a time keeps us receiving, with no batch to turn after.
                await trio.lowlevel.checkpoint()
                self._polling.turned()

    async def _serve_parsed(self, position: int, end: int) -> tuple[int, int, bool]:
        """Serve what the lane has left between `position` and `end` in the receive buffer, and the
        large write that comes after it, if there is one. Return where what is not served begins
        and ends, and whether anything was served."""
        buffer, parser, started = self._buffer, self._parser, perf_counter_ns()
        requests, position = parser.parse(buffer, position, end)
        if self._holding is None:
            index = 0
            while index < len(requests):
                index = await self._serve_batch(requests, index, started, buffer)
        else:
            await self._holding.serve(requests, started, buffer)
        if parser.large is None or self._batch.disconnect:
            return position, end, bool(requests)
        if self._holding is not None:
            await self._holding.payload_passed(parser.large)
            await self._delaying.room(self._limits.max_in_flight)
        incoming = Incoming(buffer, position, end)
        await self._large.receive(parser.large, started, incoming, self)
        return incoming.position, incoming.end, True

    async def _serve_plain(self, end: int) -> tuple[int, int, bool, bool]:
        """Serve what is in the receive buffer up to `end`, and what comes after it, the plain
        requests in the fast lane.

        Returns how far it came, from where on the parser must look; the end of what has been
        received; whether anything was served; and whether it polled for more in vain.
        """
        position, progressed, polling, polled = 0, False, self._polling, False
        while position < end:
            if self._gate.limited or self._holding is not None:
                break  # the lane knows no limits
            counted = self._statistics
            write_back = self._habit.expects_flush(counted.writes, counted.flushes)
            if not write_back and self._joins():
                polled = await self._serve_together(position, end)
                position, end = self._position, self._end
                progressed = progressed or self._served_together > 0
                if polled or position == end:
                    break
            turn = self._channel.turn(self.undisturbed(), polling.left_ns())
            room = self._limits.max_in_flight - self._flight.requests
            done = self._batch.serve_plain(
                self._buffer, position, end, turn, room, write_back=write_back
            )
            if done is None:
                break
            position, end = done.position, done.end
            self._note(done)
            any_served = done.reads or done.writes or done.trims
            if not (any_served or done.rest or done.missed or done.received_bytes):
                return position, end, progressed, bool(done.polled)
            progressed = True
            if done.missed:
                self._background.start(done.started)
            if done.rest or done.served or done.missed:
                index = await self._serve_batch(done.rest, 0, done.started, self._buffer)
                while index < len(done.rest):
                    index = await self._serve_batch(done.rest, index, done.started, self._buffer)
            elif polling.worked(perf_counter_ns()):
                await trio.lowlevel.checkpoint()
                polling.turned()
            self._fences.served(end - position)  # who waits need not wait for a pause
            if done.polled:
                return position, end, progressed, True
        return position, end, progressed, polled

    def _note(self, done: Served) -> None:
        """Note what the fast lane has received."""
        if done.unflagged:
            self._parser.unflagged = True
        if done.received_bytes:
            self._fences.received_bytes += done.received_bytes
            self._polling.found()

    def _joins(self) -> bool:
        """Return whether the next turn is one with others who work, and are worth it of late."""
        if self._by_itself:
            self._by_itself -= 1
            return False
        return (
            self._batch.has_lane
            and not (self._polling.alone() or self._flight.requests)
            and self._channel.turn(self._polling.tries, 0).poll_ns > 0
        )

    @property
    def volume(self) -> object:
        """See `together.Member`."""
        return self._device

    def lane(self) -> LaneArguments | None:
        """See `together.Member`."""
        self._polling.turned()  # just now
        turn = self._channel.turn(self._polling.tries, TURN_NS)
        if not turn.poll_ns or self._flight.requests or self._gate.limited:
            return None
        return self._batch.lane(self._buffer, self._position, self._end, turn.sock)

    def took(self, done: Served) -> None:
        """See `together.Member`."""
        self._batch.took(done)
        self._note(done)
        self._position, self._end = done.position, done.end
        self._served_together += done.reads + done.writes
        if not done.served:  # else when it is answered
            self._fences.served(done.end - done.position)
        self._polling.worked(perf_counter_ns())

    async def _serve_together(self, position: int, end: int) -> bool:
        """Take part in turns with others; what was received and not served is between `_position`
        and `_end` then. Return whether they polled for more in vain."""
        self._position, self._end, self._served_together = position, end, 0
        done = await self._together.join(self)
        if self._served_together < _WORTH_JOINING:
            self._next_by_itself = min(2 * self._next_by_itself + 1, _MOST_BY_ITSELF)
        else:
            self._next_by_itself = 0
        self._by_itself = self._next_by_itself
        if done is None:
            return False
        if done.served:
            await self._serve_batch([], 0, done.started, self._buffer)
            self._fences.served(done.end - done.position)
        return bool(done.polled)

    async def _serve_batch(
        self,
        requests: list[Request],
        index: int,
        started: int,
        payloads: memoryview,
    ) -> int:
        """Serve what fits one reply buffer, and send what it has of the lane's. Return the index of
        the first request not served."""
        batch, flight = self._batch, self._flight
        first = index
        room = self._limits.max_in_flight - flight.requests
        index = batch.serve(requests, index, payloads, room)
        replies = batch.finish()
        now = perf_counter_ns()
        if replies:
            batch.enter(requests[first:index], started, now)
        else:
            replies = self._background.sync_here(started)
            now = perf_counter_ns()  # it may have waited in vain, too
        if batch.background or batch.large_reads:
            self._background.start(started)
        if replies:
            await self._channel.send(*replies)
        batch.half_sent = False
        if self._polling.worked(now):
            await trio.lowlevel.checkpoint()
            self._polling.turned()
        if flight.requests:
            await flight.wait_below(self._limits.max_in_flight)
            await self._account.repay()
            if self._channel.broken:  # a receive buffer asks for terabytes, in large reads
                raise HungUpError("the client is gone")
        return index

    async def _serve_held(
        self, requests: list[Request], index: int, started: int, payloads: memoryview
    ) -> int:
        """Serve what its limits let pass, as `_serve_batch` does, or as the device profile of the
        volume says if it has one."""
        first = index
        while (device := self._gate.device) is not None and index < len(requests):
            if self._delaying.takes(requests[index]):
                self._delaying.serve(device, requests[index], started, payloads)
                await self._delaying.room(self._limits.max_in_flight)
            else:
                await self._serve_batch(requests[index : index + 1], 0, started, payloads)
            index += 1
        if index > first and self._polling.worked(perf_counter_ns()):
            await trio.lowlevel.checkpoint()
            self._polling.turned()
        if index == len(requests):
            return index
        return await self._serve_batch(requests, index, started, payloads)

    def _read_large(self, request: Request, started: int) -> None:
        self._nursery.start_soon(self._large.read, request, started)

    def _move_leftover(self, position: int, end: int) -> int:
        """Move an incomplete request to the front of the buffer. Return its length in bytes."""
        leftover = end - position
        if leftover and position:
            self._buffer[:leftover] = self._buffer[position:end]
        return leftover

    async def _receive(self, into: memoryview, *, polled: bool) -> int:
        """Receive at least one byte: poll, unless that was done, then park. 0 when the client is
        gone."""
        polling, channel = self._polling, self._channel
        # While something is under way, to poll would hold up its end.
        rounds, tries = (0, 0) if polled or self._flight.requests else polling.plan()
        for turn in range(rounds):
            if turn:
                await trio.lowlevel.checkpoint()
                polling.turned()
            received = channel.poll(into, tries)
            if received is not None:
                polling.found()
                return received
        polling.parks()
        received = await channel.receive(into)
        polling.woke()
        return received
