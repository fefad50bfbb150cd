"""The hot path: one receive buffer's requests, served without waiting, one reply buffer out.

`serve` goes through the requests in order. Reads go straight into the reply buffer behind their
headers. Writes and trims go to the device and are *staged*: their replies are made by `finish`,
after one `commit` for all of them, so that a failed commit acknowledges none. What the device
cannot do at once becomes `background` work. Nothing here waits, so between a write and its commit
no other connection runs.

Flushes and FUA changes of a batch share one flush, which begins after the commit: all of them were
received before it.

Where the compiled fast lane is there, `serve_plain` comes first. What it serves needs no commit:
either it changes no map, or the lane has committed it. The rest comes after it: requests in flight
have no order, but the lane lets no write overtake a change.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from operator import sub
from time import perf_counter_ns

from bockd.model import BLOCK_SIZE
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol.replies import MAX_STATUS_BYTES, Buffer, ReplyEncoder
from bockd.nbd.protocol.transmission import Request, RequestLimits, refusal
from bockd.nbd.server import work
from bockd.nbd.server.channel import reading_failed
from bockd.nbd.server.durations import requests_by_operation
from bockd.nbd.server.fastlane import LaneArguments, MissedReads, Served, Turn, lane_for
from bockd.nbd.server.limits import (
    MAX_BATCH_REQUESTS,
    MAX_INLINE_READ_BYTES,
    MAX_SMALL_REPLY_BYTES,
    PIECE_BYTES,
    REPLY_BUFFER_BYTES,
    TURN_NS,
)
from bockd.nbd.server.statistics import ExportStatistics
from bockd.nbd.server.work import Work
from bockd.pool.device import BlockDevice
from bockd.runtime.steps import Steps


class Batch:
    """Serves batches of one connection, one after another; see the module's docstring."""

    def __init__(
        self,
        device: BlockDevice,
        encoder: ReplyEncoder,
        limits: RequestLimits,
        statistics: ExportStatistics,
    ) -> None:
        self._device = device
        self._encoder = encoder
        self._limits = limits
        self._statistics = statistics
        # Anonymous memory, so that the pages of a large buffer cost nothing until they are used.
        self._reply = memoryview(mmap.mmap(-1, REPLY_BUFFER_BYTES))
        self._filled = self._sent = 0
        self._lane = lane_for(device, encoder, limits, statistics.durations)
        self._before = statistics.by_operation()
        """When `serve` began."""
        self.half_sent = False
        """The lane may have sent a part of a reply, of which `finish` returns the rest. The caller
        resets it when that is sent."""
        self._small: list[Buffer] = []
        self._small_bytes = 0
        self._staged: list[Request] = []
        self._durable: list[Request] = []
        self._background_bytes = 0
        self.background: list[Work] = []
        """Operations that have begun and have to wait. The caller takes them."""
        self.large_reads: list[Request] = []
        """Reads too large for a batch. The caller takes them."""
        self.disconnect = False
        """The client said DISC: nothing follows, what is in flight is finished."""

    def serve_plain(
        self,
        received: memoryview,
        start: int,
        end: int,
        turn: Turn,
        room: int = 0,
        *,
        write_back: bool = False,
    ) -> Served | None:
        """Serve what the fast lane can of the requests in received[start:end], and of what comes
        after them. Up to `room` reads that wait for the disk go to the background, as one
        operation. `write_back` is as in `FastLane.serve`. None when there is no lane.

        `serve`, with what it left, and `finish` must follow before anything is awaited, if it left
        anything. Raises ProtocolError when a reply that has begun could not be finished.
        """
        if self._lane is None:
            return None
        self.half_sent = True  # for all that is known if this fails
        try:
            done = self._lane.serve(
                received,
                start,
                end,
                self._reply,
                turn,
                room,
                write_back=write_back,
                trace=self._statistics.trace,
            )
        except OSError as error:
            self._statistics.failed("read", error)
            raise reading_failed(error) from error
        self.took(done)
        if done.missed:
            self._begin_missed(self._lane.missed(done.missed))
        return done

    @property
    def has_lane(self) -> bool:
        """Whether there is a fast lane."""
        return self._lane is not None

    def lane(self, received: memoryview, start: int, end: int, sock: int) -> LaneArguments | None:
        """Return what a turn with other connections is to serve; see together.py. None when there
        is no lane."""
        if self._lane is None:
            return None
        return self._lane.arguments(received, start, end, self._reply, sock, self._statistics.trace)

    def took(self, done: Served) -> None:
        """Note what the lane has done, in `serve_plain` or in a turn with others."""
        statistics = self._statistics
        statistics.reads += done.reads
        statistics.read_bytes += done.read_bytes
        statistics.writes += done.writes
        statistics.written_bytes += done.written_bytes
        statistics.trims += done.trims
        statistics.durations.entered(done.reads + done.writes + done.trims)
        self._sent, self._filled = done.sent, done.filled
        self.half_sent = done.sent < done.filled or bool(done.acknowledgements)
        if done.acknowledgements:
            self._answer(done.acknowledgements)

    def serve(
        self, requests: Sequence[Request], index: int, received: memoryview, room: int
    ) -> int:
        """Serve requests from `index` on, behind what `serve_plain` served; the index of the first
        that was not served.

        Stops early when the reply buffer is full, when `room` operations or a piece's worth of
        memory have gone to the background, and behind a request that is neither a plain read nor
        a plain write when a turn's time is over: a few bytes may ask for milliseconds of work.
        `received` holds the payloads. `finish` must follow before anything is awaited.
        """
        self._before = self._statistics.by_operation()
        device, limits, reply = self._device, self._limits, self._reply
        try_read, try_write = device.try_read, device.try_write
        pack_read, header = self._encoder.pack_read, self._encoder.data_header_bytes
        size = device.size_bytes
        writable = -1 if limits.read_only else size
        write_flags = nbd.CMD_FLAG_PAYLOAD_LEN if limits.extended else 0
        staged, background, large = self._staged, self.background, self.large_reads
        filled = before = self._filled
        reads = self._background_bytes = 0
        count = min(len(requests), index + MAX_BATCH_REQUESTS)
        until = perf_counter_ns() + TURN_NS
        while index < count:
            request = requests[index]
            flags, command, _, offset, length, body = request
            if command == 0 and not flags and 0 < length <= MAX_INLINE_READ_BYTES:
                data = filled + header
                end = data + length
                if end > REPLY_BUFFER_BYTES:
                    break
                index += 1
                if offset + length > size:
                    self._unusual(request, received)
                    continue
                try:
                    if try_read(offset, reply[data:end]):
                        pack_read(reply, filled, request)
                        filled = end
                        reads += 1
                        continue
                except Exception as error:  # noqa: BLE001 - becomes the request's answer
                    self._fail([request], error)
                    continue
                self._begin_read(request)
            elif command == 1 and flags == write_flags and length and offset + length <= writable:
                index += 1
                try:
                    if try_write(offset, received[body : body + length]):
                        staged.append(request)
                        continue
                except Exception as error:  # noqa: BLE001 - becomes the request's answer
                    self._fail([request], error)
                    continue
                self._begin_write(request, received)
            else:
                index += 1
                self._unusual(request, received)
            if len(background) + len(large) >= room or self._background_bytes > PIECE_BYTES:
                break
            if self.disconnect or self._small_bytes >= MAX_SMALL_REPLY_BYTES:
                break
            if perf_counter_ns() > until:
                break
        self._filled = filled
        self._statistics.reads += reads
        self._statistics.read_bytes += filled - before - reads * header
        return index

    def finish(self) -> list[Buffer]:
        """Commit, begin the flush if one is due, and return the replies to send.

        They are valid until the next `serve`.
        """
        if self._staged:
            self._commit()
        if self._durable:
            durable, self._durable = self._durable, []
            self._begin(durable, work.flush(self._device, self._encoder, durable))
        parts: list[Buffer] = []
        if self._filled > self._sent:
            parts.append(self._reply[self._sent : self._filled])
        if self._small:
            parts.append(b"".join(self._small))
            self._small.clear()
            self._small_bytes = 0
        self._filled = self._sent = 0
        return parts

    def enter(self, asked: Sequence[Request], started: int, now: int) -> None:
        """Enter how long it took until the replies of `finish` were made, for those of the requests
        that `serve` has taken, `asked`, that they answer: all but what waits in the background. To
        be called between `finish` and whatever takes the background's work or awaits. Without
        replies there is nothing to enter."""
        statistics = self._statistics
        answered = list(map(sub, statistics.by_operation(), self._before))
        if self.background:
            begun = [request for work in self.background for request in work.requests]
            answered = list(map(sub, answered, requests_by_operation(begun)))
        for operation, requests in enumerate(answered):
            if requests:
                statistics.durations.add(operation, now - started, requests)
        if statistics.trace is not None:
            statistics.trace.add(self._answered(asked), started, now)

    def _answered(self, asked: Sequence[Request]) -> list[Request]:
        """Return those requests of a batch that `finish` has answered, and that were not
        refused."""
        waiting = {id(one) for item in self.background for one in item.requests}
        waiting.update(map(id, self.large_reads))
        size = self._device.size_bytes
        return [
            one
            for one in asked
            if id(one) not in waiting
            and one[1] != nbd.CMD_DISC
            and not refusal(one, self._limits, size)
        ]

    def _commit(self) -> None:
        """Acknowledge what was staged, or refuse all of it."""
        staged = self._staged.copy()
        self._staged.clear()
        durable = [request for request in self._durable if request[1] != nbd.CMD_FLUSH]
        try:
            self._device.commit()
        except Exception as error:  # noqa: BLE001 - becomes the requests' answer
            self._durable = [r for r in self._durable if r[1] == nbd.CMD_FLUSH]
            self._fail([r for r in staged if not r[0] & nbd.CMD_FLAG_FUA] + durable, error)
            return
        written = [request[4] for request in staged if request[1] == nbd.CMD_WRITE]
        self._statistics.writes += len(written)
        self._statistics.written_bytes += sum(written)
        if durable:  # answered by the flush
            staged = [request for request in staged if not request[0] & nbd.CMD_FLAG_FUA]
        if staged:
            self._answer(self._encoder.all_done(staged))

    def _unusual(self, request: Request, received: memoryview) -> None:
        """Everything but plain reads and writes: judge it, then do it."""
        command, length = request[1], request[4]
        if command == nbd.CMD_DISC:
            self.disconnect = True
        elif refused := refusal(request, self._limits, self._device.size_bytes):
            self._statistics.errors += 1
            self._answer(self._encoder.error(request, *refused))
        elif command == nbd.CMD_FLUSH:
            self._statistics.flushes += 1
            self._durable.append(request)
        elif not length:
            self._answer(self._encoder.done(request))
        elif command == nbd.CMD_READ:
            self._unusual_read(request)
        elif command == nbd.CMD_WRITE:
            self._write_durably(request, received)
        elif command == nbd.CMD_BLOCK_STATUS:
            self._status(request)
        elif command == nbd.CMD_TRIM or command == nbd.CMD_WRITE_ZEROES:
            self._erase(request)
        else:
            self._other(request)

    def _unusual_read(self, request: Request) -> None:
        """A read with FUA (which means nothing to it) or DF, or a large one."""
        flags, _, _, _, length, _ = request
        if length > MAX_INLINE_READ_BYTES:
            if flags & nbd.CMD_FLAG_DF:
                self._statistics.errors += 1
                message = f"{length} bytes in one chunk; at most {MAX_INLINE_READ_BYTES}"
                self._answer(self._encoder.error(request, nbd.EOVERFLOW, message))
            else:
                self.large_reads.append(request)
            return
        self._begin_read(request)

    def _write_durably(self, request: Request, received: memoryview) -> None:
        """A write with FUA."""
        _, _, _, offset, length, body = request
        try:
            written = self._device.try_write(offset, received[body : body + length])
        except Exception as error:  # noqa: BLE001 - becomes the request's answer
            self._fail([request], error)
            return
        if written:
            self._staged.append(request)
            self._durable.append(request)
        else:
            self._begin_write(request, received)

    def _status(self, request: Request) -> None:
        _, _, _, offset, length, _ = request
        try:
            found = self._device.try_extents(offset, length, work.extents_wanted(request))
        except Exception as error:  # noqa: BLE001 - becomes the request's answer
            self._fail([request], error)
            return
        if found is not None:
            self._answer(self._encoder.status(request, found))
        else:
            steps = work.status(self._device, self._encoder, request)
            self._begin([request], steps, charged_bytes=MAX_STATUS_BYTES)

    def _begin_read(self, request: Request) -> None:
        self._statistics.reads += 1
        self._statistics.read_bytes += request[4]
        steps = work.read(self._device, self._encoder, request)
        self._begin([request], steps, charged_bytes=request[4])

    def _begin_missed(self, missed: MissedReads) -> None:
        requests = missed.requests
        self._statistics.reads += len(requests)
        self._statistics.read_bytes += sum([request[4] for request in requests])
        steps = work.read_missed(self._device, self._encoder, self._statistics, missed)
        self._begin(requests, steps, charged_bytes=len(missed.reply), in_flight=len(requests))

    def _begin_write(self, request: Request, received: memoryview) -> None:
        """A write that has to wait: its payload moves out of the receive buffer."""
        body, length = request[5], request[4]
        self._statistics.writes += 1
        self._statistics.written_bytes += length
        payload = bytes(received[body : body + length])
        steps = work.write(self._device, self._encoder, request, payload)
        self._begin([request], steps, charged_bytes=length)

    def _erase(self, request: Request) -> None:
        """A trim, or a write of zeroes, which is one too if it covers whole blocks and may leave
        holes."""
        flags, command, _, offset, length, _ = request
        self._statistics.trims += 1
        ends_in_blocks = (offset | length) % BLOCK_SIZE
        if command == nbd.CMD_TRIM or not (flags & nbd.CMD_FLAG_NO_HOLE or ends_in_blocks):
            try:
                trimmed = self._device.try_trim(offset, length)
            except Exception as error:  # noqa: BLE001 - becomes the request's answer
                self._fail([request], error)
                return
            if trimmed:
                self._staged.append(request)
                if flags & nbd.CMD_FLAG_FUA:
                    self._durable.append(request)
                return
        self._begin([request], work.change(self._device, self._encoder, request))

    def _other(self, request: Request) -> None:
        assert request[1] == nbd.CMD_CACHE
        self._begin([request], work.cache(self._device, self._encoder, request))

    def _begin(
        self,
        requests: Sequence[Request],
        steps: Steps[Buffer],
        *,
        charged_bytes: int = 0,
        in_flight: int = 1,
    ) -> None:
        """Start an operation; answer at once if it ends at once."""
        if self._staged:  # an operation may flush or commit: what is staged must not be in between
            self._commit()
        try:
            step = steps.send(None)
        except StopIteration as done:
            self._answer(done.value)
        except Exception as error:  # noqa: BLE001 - becomes the requests' answer
            self._fail(requests, error)
        else:
            self.background.append(Work(requests, steps, step, charged_bytes, in_flight))
            self._background_bytes += charged_bytes

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        self._answer(work.failed(self._encoder, self._statistics, requests, error))

    def _answer(self, reply: Buffer) -> None:
        self._small.append(reply)
        self._small_bytes += len(reply)
