"""Requests too large for a batch: payloads received, and reads sent, in pieces of at most 1 MiB.

A piece ends where a multiple of `PIECE_BYTES` in the volume does. A write's piece arrives in memory
of its own and is one engine write; a snapshot or a fence waits for engine writes, never for the
socket between them. Where the compiled fast lane can write, it does so from the receive buffer as
the payload comes, in parts of 64 KiB at most, each an engine write; then memory of its own is only
for a piece that it left. A read's pieces are chunks of their own where chunks were negotiated; in a
simple reply they follow one header, and an error behind it can only close the connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from time import perf_counter_ns
from typing import Protocol

import trio

from bockd.errors import VolumeTakenError
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol.errors import ProtocolError
from bockd.nbd.protocol.limits import MAX_PAYLOAD_BYTES
from bockd.nbd.protocol.replies import ReplyEncoder
from bockd.nbd.protocol.transmission import Request, RequestLimits, refusal
from bockd.nbd.server.budget import Account
from bockd.nbd.server.channel import Channel, HungUpError, reading_failed
from bockd.nbd.server.fastlane import Why, payload_lane_for
from bockd.nbd.server.flight import InFlight
from bockd.nbd.server.limits import PIECE_BYTES, TURN_NS, ServerLimits
from bockd.nbd.server.statistics import ExportStatistics
from bockd.nbd.server.work import failed
from bockd.pool.device import BlockDevice
from bockd.profiles.device import Plan
from bockd.runtime.steprunner import StepRunner

MAX_DISCARDED_BYTES = 2 * MAX_PAYLOAD_BYTES
"""A refused payload is received and forgotten up to here; a longer one closes the connection."""


def pieces(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of the pieces of a range, in bytes."""
    end = offset + length
    while offset < end:
        piece = min(end - offset, PIECE_BYTES - offset % PIECE_BYTES)
        yield offset, piece
        offset += piece


class Received(Protocol):
    """Counts what is received from the socket; implemented by the connection."""

    def count_received(self, length: int, unserved: int = 0) -> None:
        """Count bytes that have been received. Of all that were, so many are not served."""
        ...

    async def yield_if_due(self) -> None:
        """Let the loop turn if this connection has had its time."""
        ...

    def undisturbed(self) -> int:
        """Return the number of attempts to receive that may be made without letting others run."""
        ...

    def left_ns(self) -> int:
        """Return how long until the loop must turn, in nanoseconds."""
        ...

    def parked(self) -> AbstractContextManager[None]:
        """Mark the connection as parked for the duration of a `with` block: it waits for the socket
        because those attempts were in vain."""
        ...


class Delaying(Protocol):
    """What a device profile does with large writes; see delaying.py."""

    def plan_large(self, request: Request) -> Plan | None:
        """Return what becomes of a large write; None if the volume has no profile."""
        ...

    def failure(self, request: Request, error: str) -> bytes:
        """Count a request that the profile lets fail. Return the answer to it."""
        ...

    def answer_large(self, plan: Plan, request: Request, started: int, reply: bytes) -> None:
        """Have the answer to a large write go out when it is due."""
        ...


class Incoming:
    """What a connection has received and not served: `buffer[position:end]`."""

    __slots__ = ("buffer", "end", "position")

    def __init__(self, buffer: memoryview, position: int, end: int) -> None:
        self.buffer = buffer
        self.position = position
        self.end = end

    def skip(self, length: int) -> int:
        """Drop at most `length` bytes. Return how many there were."""
        here = min(length, self.end - self.position)
        self.position += here
        return here

    def take(self, into: memoryview) -> int:
        """Move bytes to the front of `into`. Return how many."""
        start = self.position
        here = self.skip(len(into))
        into[:here] = self.buffer[start : start + here]
        return here

    def room(self) -> memoryview:
        """Return the room behind what is there, which moves to the buffer's front."""
        kept = self.end - self.position
        if self.position:
            self.buffer[:kept] = self.buffer[self.position : self.end]
            self.position, self.end = 0, kept
        return self.buffer[kept:]


class _LargeWrite:
    """One write whose pieces are under way; answered when the last is done."""

    __slots__ = ("error", "left_bytes", "offset", "pending", "plan", "request", "started")

    def __init__(self, request: Request, started: int, plan: Plan | None) -> None:
        self.request = request
        self.plan = plan
        """What the device profile of the volume says, if it has one."""
        self.started = started
        self.offset = request[3]
        """Of what comes next of the payload."""
        self.left_bytes = request[4]
        self.pending = 1  # the receiving itself
        self.error: Exception | None = None

    def advance(self, length: int) -> None:
        """Note that `length` bytes of the payload have been taken off the stream."""
        self.offset += length
        self.left_bytes -= length


def _left_early() -> HungUpError:
    return HungUpError("the client left in the middle of a payload")


class LargeTransfers:
    """The large requests of one connection."""

    nursery: trio.Nursery
    delaying: Delaying
    """Set by the connection, as the nursery is."""

    def __init__(
        self,
        device: BlockDevice,
        encoder: ReplyEncoder,
        judged_by: RequestLimits,
        statistics: ExportStatistics,
        channel: Channel,
        account: Account,
        runner: StepRunner,
        flight: InFlight,
        limits: ServerLimits,
    ) -> None:
        self._device = device
        self._encoder = encoder
        self._judged_by = judged_by
        self._statistics = statistics
        self._channel = channel
        self._account = account
        self._runner = runner
        self._flight = flight
        self._limits = limits
        self._lane = payload_lane_for(device)

    # Writes.

    async def receive(
        self, request: Request, started: int, incoming: Incoming, counter: Received
    ) -> None:
        """Take the payload, which comes next, of a request that came at `started` off the stream,
        and write it.

        Raises ProtocolError when the client stalls, leaves, or sends too much.
        """
        if refused := refusal(request, self._judged_by, self._device.size_bytes):
            self._statistics.errors += 1
            await self._discard(request[4], incoming, counter)
            await self._channel.send(self._encoder.error(request, *refused))
            await counter.yield_if_due()
            return
        await self._flight.wait_below(self._limits.max_in_flight)
        self._statistics.writes += 1
        self._statistics.written_bytes += request[4]
        plan = self.delaying.plan_large(request)
        if plan is not None and plan.error is not None:
            reply = self.delaying.failure(request, plan.error)
            await self._discard(request[4], incoming, counter)
            self.delaying.answer_large(plan, request, started, reply)
            return
        write = _LargeWrite(request, started, plan)
        while write.left_bytes:
            if not await self._write_parts(write, incoming, counter):
                await self._receive_piece(write, incoming, counter)
            await counter.yield_if_due()
        if not request[0] & nbd.CMD_FLAG_FUA:
            await self._piece_done(write)
            return
        # In a task: a FUA write's flush must not hold up the requests behind it.
        self._flight.requests += 1
        self.nursery.start_soon(self._end_receiving, write)

    async def _write_parts(self, write: _LargeWrite, incoming: Incoming, counter: Received) -> bool:
        """Write what comes next of a payload from the receive buffer, in the fast lane. Return
        whether that can go on; if not, the next piece is for `_receive_piece`."""
        if self._lane is None or write.error is not None:
            return False
        turn = self._channel.payload_turn(counter.undisturbed(), counter.left_ns())
        buffer, position, end = incoming.buffer, incoming.position, incoming.end
        taken = self._lane.take(buffer, position, end, write.offset, write.left_bytes, turn)
        incoming.position, incoming.end = taken.position, taken.end
        write.advance(taken.written_bytes)
        try:
            self._device.commit()
        except Exception as error:  # noqa: BLE001 - becomes the request's answer
            write.error = error
        if taken.why is Why.FOR_PYTHON or not write.left_bytes:
            counter.count_received(taken.received_bytes, incoming.end - incoming.position)
            return taken.why is not Why.FOR_PYTHON
        # What is left is less than a part: a fence need not wait for more.
        counter.count_received(taken.received_bytes)
        if taken.why is Why.NOTHING_CAME:
            await self._receive_more(incoming, counter, polled=turn.sock >= 0)
        return True

    async def _receive_more(self, incoming: Incoming, counter: Received, *, polled: bool) -> None:
        """Receive behind what has come of a part."""
        into = incoming.room()
        received = None if polled else self._channel.poll(into, counter.undisturbed())
        if received is None:
            with counter.parked():
                received = await self._channel.receive(into)
        if not received:
            raise _left_early()
        incoming.end += received
        counter.count_received(received, received)

    async def _receive_piece(
        self, write: _LargeWrite, incoming: Incoming, counter: Received
    ) -> None:
        """Receive the next piece into memory of its own, and write that."""
        _, length = next(pieces(write.offset, write.left_bytes))
        await self._account.acquire(length)
        try:
            piece = memoryview(bytearray(length))
            await self._fill(piece[incoming.take(piece) :], counter)
        except BaseException:
            self._account.release(length)
            raise
        self._write_piece(write, write.offset, piece)
        write.advance(length)

    async def _end_receiving(self, write: _LargeWrite) -> None:
        try:
            await self._piece_done(write)
        finally:
            self._flight.done()

    async def _fill(self, into: memoryview, counter: Received) -> None:
        until = perf_counter_ns() + TURN_NS
        if into:
            counter.count_received(0)  # what came before is taken: a fence need not wait for more
        while into:
            received = self._channel.poll(into, counter.undisturbed())
            if received is None:
                with counter.parked():
                    received = await self._channel.receive(into)
            if not received:
                raise _left_early()
            counter.count_received(received)
            into = into[received:]
            if perf_counter_ns() > until:  # the bytes may come one at a time, and never stop
                await trio.lowlevel.checkpoint()
                until = perf_counter_ns() + TURN_NS

    async def _discard(self, length: int, incoming: Incoming, counter: Received) -> None:
        if length > MAX_DISCARDED_BYTES:
            raise ProtocolError(f"a payload of {length} bytes")
        left = length - incoming.skip(length)
        if not left:
            return
        await self._account.acquire(PIECE_BYTES)
        try:
            scratch = memoryview(bytearray(PIECE_BYTES))
            while left:
                await self._fill(scratch[: min(left, PIECE_BYTES)], counter)
                left -= min(left, PIECE_BYTES)
                await trio.lowlevel.checkpoint()
        finally:
            self._account.release(PIECE_BYTES)

    def _write_piece(self, write: _LargeWrite, offset: int, piece: memoryview) -> None:
        """One engine write: at once, or in a task that gives the memory back when it is done."""
        if write.error is None:
            try:
                if not self._device.try_write(offset, piece):
                    write.pending += 1
                    self._flight.requests += 1
                    change = self._flight.begin_change()
                    self.nursery.start_soon(self._write_slowly, write, offset, piece, change)
                    return
                self._device.commit()
            except Exception as error:  # noqa: BLE001 - becomes the request's answer
                write.error = error
        self._account.release(len(piece))

    async def _write_slowly(
        self, write: _LargeWrite, offset: int, piece: memoryview, change: int
    ) -> None:
        try:
            try:
                await self._runner.run(self._device.write(offset, piece))
            except Exception as error:  # noqa: BLE001 - becomes the request's answer
                write.error = write.error or error
            finally:
                self._flight.end_change(change)
                self._account.release(len(piece))
            await self._piece_done(write)
        finally:
            self._flight.done()  # with its answer, if it was the last: who takes none gets no more

    async def _piece_done(self, write: _LargeWrite) -> None:
        write.pending -= 1
        if write.pending:
            return
        if write.request[0] & nbd.CMD_FLAG_FUA and write.error is None:
            try:
                with self._flight.change():
                    await self._runner.run(self._device.flush())
            except Exception as error:  # noqa: BLE001 - becomes the request's answer
                write.error = error
        if write.error is None:
            reply = self._encoder.done(write.request)
        else:
            reply = failed(self._encoder, self._statistics, [write.request], write.error)
        if write.plan is not None:
            self.delaying.answer_large(write.plan, write.request, write.started, reply)
            return
        self._statistics.answered([write.request], write.started, perf_counter_ns())
        await self._send_if_there(reply)

    async def _send_if_there(self, reply: bytes) -> None:
        with suppress(HungUpError):  # the loop finds out by itself
            await self._channel.send(reply)

    # Reads.

    async def read(self, request: Request, started: int) -> None:
        """Serve a read in pieces that came at `started`. Raises ProtocolError when that has to end
        the connection."""
        self._statistics.reads += 1
        self._statistics.read_bytes += request[4]
        try:
            with suppress(HungUpError):  # the loop finds out by itself
                if self._encoder.chunked:
                    await self._read_in_chunks(request)
                else:
                    await self._stream(request)
            self._statistics.answered([request], started, perf_counter_ns())
        finally:
            self._flight.done()

    async def _read_in_chunks(self, request: Request) -> None:
        end = request[3] + request[4]
        for offset, length in pieces(request[3], request[4]):
            await self._account.acquire(length)
            try:
                data = await self._read_piece(offset, length)
                header = self._encoder.data_header(
                    request, offset, length, last=offset + length == end
                )
                await self._channel.send(header, data)
            except ProtocolError:
                raise
            except Exception as error:  # noqa: BLE001 - becomes the request's answer
                reply = failed(self._encoder, self._statistics, [request], error)
                await self._channel.send(reply)
                return
            finally:
                self._account.release(length)

    async def _stream(self, request: Request) -> None:
        """One simple reply in pieces: nothing else may be sent between them."""
        first, *others = pieces(request[3], request[4])
        memory = min(request[4], PIECE_BYTES)  # one piece at a time
        await self._account.acquire(memory)
        try:
            try:
                data = await self._read_piece(*first)
            except Exception as error:  # noqa: BLE001 - becomes the request's answer
                reply = failed(self._encoder, self._statistics, [request], error)
                await self._channel.send(reply)
                return
            header = self._encoder.data_header(request, *first, last=False)
            async with self._channel.streaming() as stream:
                await stream.send(header, data)
                for offset, length in others:
                    del data  # one piece at a time is what was acquired
                    data = await self._read_promised(offset, length)
                    await stream.send(data)
        finally:
            self._account.release(memory)

    async def _read_promised(self, offset: int, length: int) -> memoryview:
        """A further piece of a reply whose header said success."""
        try:
            return await self._read_piece(offset, length)
        except VolumeTakenError:
            raise
        except Exception as error:
            self._statistics.failed("read", error)
            raise reading_failed(error) from error

    async def _read_piece(self, offset: int, length: int) -> memoryview:
        data = memoryview(bytearray(length))
        if not self._device.try_read(offset, data):
            await self._runner.run(self._device.read(offset, data))
        return data
