"""The requests of a trace sent to an export, many on their way, at their times.

One thread sends, another one receives: the server may answer late while it waits for us to take
what it has answered.
"""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections.abc import Iterable, Iterator
from time import perf_counter_ns
from typing import Final

from bockd.errors import UnavailableError
from bockd.model import MIB
from bockd.nbd.client import MAX_STATUS_BYTES, Export
from bockd.trace.records import FUA, NO_HOLE, Kind, Record

MAX_DATA_BYTES: Final = 32 * MIB
"""Of one read or write, as most servers take; a longer one is sent in pieces, and so is a longer
trim than 32 bits can say."""

LATE_NS: Final = 1_000_000
"""A request that is sent later than this was not sent in time."""

_REQ_ONE: Final = 8
_SENT_FLAGS: Final = FUA | NO_HOLE | _REQ_ONE
"""DF and FAST_ZERO ask for a refusal in some cases, and are left out."""


class WriteData:
    """What is written: zeros, or bytes that depend on the seed and the place alone."""

    def __init__(self, seed: int | None, longest: int) -> None:
        """`seed` None: zeros. `longest` is that of all writes, in bytes."""
        room = min(longest, MAX_DATA_BYTES)
        self._random = seed is not None
        content = bytes(room) if seed is None else random.Random(seed).randbytes(room + MIB)  # noqa: S311 - no secret
        self._content = memoryview(content)

    def at(self, offset: int, length: int) -> memoryview:
        """Return what is to be written at an offset."""
        begin = offset // 512 * 7919 % MIB if self._random else 0
        return self._content[begin : begin + length]


class Issuing:
    """Sends the requests of a trace."""

    def __init__(self, export: Export, depth: int, data: WriteData, speed: float | None) -> None:
        """`depth` is how many may be on their way. `speed` divides the time between requests; None:
        as fast as possible."""
        self.latencies: dict[Kind, array[int]] = {kind: array("Q") for kind in Kind}
        """Nanoseconds until the reply was here, of each request that was sent."""
        self.late = 0
        """Requests that were not sent in time."""
        self.seconds = 0.0
        self._export = export
        self._depth = depth
        self._data = data
        self._speed = speed
        self._free = threading.Semaphore(depth)
        self._sent = threading.Semaphore(0)
        self._over = False
        self._error: Exception | None = None

    def run(self, records: Iterable[Record]) -> None:
        """Send all of them, and return when all are answered. Raises BockdError for the first that
        failed; others may not have been sent then."""
        receiver = threading.Thread(target=self._receive_all, name="replies")
        receiver.start()
        started = perf_counter_ns()
        try:
            self._send_all(records, started)
        except UnavailableError as error:
            self._export.hang_up()
            self._end(receiver)
            if self._error is not None:
                raise self._error from error
            raise
        except BaseException:
            self._export.hang_up()
            self._end(receiver)
            raise
        self._end(receiver)
        if self._error is not None:
            raise self._error
        self.seconds = (perf_counter_ns() - started) / 1e9

    def _end(self, receiver: threading.Thread) -> None:
        self._over = True
        self._sent.release()
        receiver.join()

    def _send_all(self, records: Iterable[Record], started: int) -> None:
        first: int | None = None
        for record in records:
            if first is None:
                first = record.time_ns
            if self._speed is not None:
                due = started + round((record.time_ns - first) / self._speed)
                self._wait_until(due)
            for offset, length in pieces(record):
                self._free.acquire()
                if self._error is not None:
                    return
                self._send(record, offset, length)

    def _wait_until(self, due: int) -> None:
        now = perf_counter_ns()
        if now < due:
            time.sleep((due - now) / 1e9)
        elif now - due > LATE_NS:
            self.late += 1

    def _send(self, record: Record, offset: int, length: int) -> None:
        payload = self._data.at(offset, length) if record.kind is Kind.WRITE else None
        flags = record.flags & _SENT_FLAGS
        self._export.ask(record.kind, offset, length, payload, flags=flags)
        self._sent.release()

    def _receive_all(self) -> None:
        try:
            while True:
                self._sent.acquire()
                if self._over and not self._export.pending:
                    return
                while not (part := self._export.receive()).last:
                    pass
                request = part.request
                self.latencies[Kind(request.command)].append(perf_counter_ns() - request.asked_at)
                self._free.release()
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self._error = error
            self._export.hang_up()  # the sender may wait for room in the socket
            self._free.release(self._depth)


def pieces(record: Record) -> Iterator[tuple[int, int]]:
    """Yield offset and length of the requests that a record is sent as: one, unless it is too
    long."""
    data = record.kind in (Kind.READ, Kind.WRITE)
    most = MAX_DATA_BYTES if data else MAX_STATUS_BYTES
    offset, end = record.offset, record.offset + record.length
    yield offset, min(end - offset, most)
    for begin in range(offset + most, end, most):
        yield begin, min(end - begin, most)
