"""The ring in which the requests of one export are noted while somebody records them.

Requests are noted when their replies are ready, by the compiled fast lane (`_fastlane_trace.h`) or
here. Nothing ever waits for whoever takes them out: when the ring is full, requests are dropped and
counted, and a record says how many. Without a recording there is no ring, which is all that is
asked for each batch.

The ring is memory that the lane shares: five numbers of 64 bits (capacity in records, a power of
two; how many were written and taken since the beginning; how many were dropped since records were
taken last; `perf_counter_ns` at the beginning), then the records (bockd.trace.records).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from time import perf_counter_ns
from typing import Final

from bockd.nbd.protocol.constants import CMD_FLAG_PAYLOAD_LEN
from bockd.nbd.protocol.transmission import Request
from bockd.trace.records import MARK, RECORD, lost_record

RING_RECORDS: Final = 1 << 18
"""10 MiB: what a busy volume is sent within a second, or longer than whoever records is away."""

TAKEN_RECORDS: Final = 1 << 16
"""At most in one answer: to copy them holds the loop for a millisecond."""

_HEAD_WORDS: Final = 5
_HEAD_BYTES: Final = 8 * _HEAD_WORDS
_CAPACITY, _WRITTEN, _TAKEN, _DROPPED, _BEGAN = range(_HEAD_WORDS)


class Ring:
    """See the module's docstring. All methods are for the owner's thread."""

    def __init__(self, capacity: int = RING_RECORDS) -> None:
        # Anonymous memory, so that pages cost nothing until they are used.
        self.memory = memoryview(mmap.mmap(-1, _HEAD_BYTES + capacity * RECORD.size))
        self._head = self.memory[:_HEAD_BYTES].cast("Q")
        self._head[_CAPACITY] = capacity
        self._head[_BEGAN] = perf_counter_ns()

    def add(self, requests: Iterable[Request], started: int, now: int) -> None:
        """Note requests that came at `started` and whose replies are ready `now`, unless they came
        before the recording began."""
        head = self._head
        capacity, began = head[_CAPACITY], head[_BEGAN]
        if started < began:
            return
        for flags, command, _, offset, length, body in requests:
            written = head[_WRITTEN]
            if written - head[_TAKEN] >= capacity:
                head[_DROPPED] += 1
                continue
            place = _HEAD_BYTES + written % capacity * RECORD.size
            told = flags & ~CMD_FLAG_PAYLOAD_LEN & 0xFF
            values = (started - began, offset, length, now - started, body, command, told, MARK)
            RECORD.pack_into(self.memory, place, *values)
            head[_WRITTEN] = written + 1

    def take(self, most: int = TAKEN_RECORDS) -> bytes:
        """Take out the oldest records, and behind the last of all one that says how many were
        dropped, if any were."""
        head, capacity = self._head, self._head[_CAPACITY]
        taken = head[_TAKEN]
        end = min(head[_WRITTEN], taken + most)
        parts = []
        while taken < end:
            at = taken % capacity
            count = min(end - taken, capacity - at)
            begin = _HEAD_BYTES + at * RECORD.size
            parts.append(self.memory[begin : begin + count * RECORD.size])
            taken += count
        if taken == head[_WRITTEN] and head[_DROPPED]:
            parts.append(memoryview(lost_record(self.age_ns(), head[_DROPPED])))
            head[_DROPPED] = 0
        content = b"".join(parts)
        head[_TAKEN] = taken
        return content

    def age_ns(self) -> int:
        """Return how long ago the recording began, in nanoseconds."""
        return perf_counter_ns() - self._head[_BEGAN]
