"""A client that writes to a volume over several connections at once and knows what was answered.

One thread drives all connections through libnbd's asynchronous calls. When the daemon dies, replies
that it had sent still count: they are read to the end before a connection is given up.
"""

from __future__ import annotations

import random
import select
from collections.abc import Callable, Iterable
from typing import Any

import nbd

from .history import ZEROS, History, Operation

DEPTH = 16
"""Requests under way on each connection."""

MIB = 1 << 20
"""Covered by a leaf of the block map, which is a group of its own in a small engine."""

LARGE_UNITS = 300
"""Of blocks, more than the server takes from the socket at once."""


class Load:
    """Random operations on one volume, for as long as it is driven."""

    def __init__(self, history: History, handles: list[Any], choose: random.Random) -> None:
        self.history = history
        self.handles = handles
        self.acknowledged = 0
        self._choose = choose
        self._in_flight = dict.fromkeys(range(len(handles)), 0)

    def fill(self) -> None:
        """Keep every connection busy."""
        for number, handle in enumerate(self.handles):
            while self._in_flight[number] < DEPTH and not handle.aio_is_dead():
                try:
                    self._send(number, handle)
                except nbd.Error:
                    # It found the daemon dead while sending: the operation may be there or not.
                    return

    def _send(self, number: int, handle: Any) -> None:
        kind = self._choose.random()
        history = self.history
        if kind < 0.02:
            handle.aio_flush(completion=self._completion(number, None))
            return
        per_block = max(1, 4096 // history.unit_bytes)
        count = self._choose.choice((1, 1, 1, 1, 1, 2, 5, 9, 16))
        # Half of all goes to a few places, so that operations meet.
        span = self._choose.choice((history.units, history.units // 32))
        if self._choose.random() < 0.003:
            count, span = LARGE_UNITS, history.units
        first = self._choose.randrange(span - count - 2 * per_block)
        if kind < 0.82:
            if self._choose.random() < 0.1:
                operation = history.send(ZEROS, first, count)
                data = bytearray(count * history.unit_bytes)
            else:
                operation, data = history.write(first, count)
            buffer = nbd.Buffer.from_bytearray(data)
            flags = nbd.CMD_FLAG_FUA if self._choose.random() < 0.01 else 0
            completion = self._completion(number, operation)
            offset = first * history.unit_bytes
            handle.aio_pwrite(buffer, offset, completion=completion, flags=flags)
            return
        whole = kind >= 0.91
        if whole:  # a trim: only whole blocks are given back
            first, count = first // per_block * per_block, -(-count // per_block) * per_block
            if self._choose.random() < 0.02:
                count = MIB // history.unit_bytes
                first = self._choose.randrange(history.units // count) * count
        operation = history.send(ZEROS, first, count)
        call = handle.aio_trim if whole else handle.aio_zero
        allocated = not whole and self._choose.random() < 0.5
        call(
            count * history.unit_bytes,
            first * history.unit_bytes,
            completion=self._completion(number, operation),
            flags=nbd.CMD_FLAG_NO_HOLE if allocated else 0,
        )

    def _completion(self, number: int, operation: Operation | None) -> Callable[[Any], int]:
        self._in_flight[number] += 1

        def complete(error: Any) -> int:
            self._in_flight[number] -= 1
            if error.value == 0:
                self.acknowledged += 1
                if operation is not None:
                    self.history.acknowledge(operation)
            return 1  # retired

        return complete

    @property
    def in_flight(self) -> int:
        return sum(self._in_flight.values())


def drive(loads: Iterable[Load], until: Callable[[], bool]) -> None:
    """Keep the loads going until the condition holds, with their requests still under way. A
    connection must not fail."""
    handles = [handle for load in loads for handle in load.handles]
    while not until():
        for load in loads:
            load.fill()
        assert not any(handle.aio_is_dead() for handle in handles)
        _turn(handles)


def _turn(handles: list[Any]) -> None:
    """Wait until something can be received or sent, and do it."""
    poller = select.poll()
    by_descriptor = {}
    for handle in handles:
        direction = handle.aio_get_direction()
        events = select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0
        events |= select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
        by_descriptor[handle.aio_get_fd()] = handle
        poller.register(handle.aio_get_fd(), events)
    for descriptor, events in poller.poll(10_000):
        handle = by_descriptor[descriptor]
        direction = handle.aio_get_direction()
        if events & ~select.POLLOUT and direction & nbd.AIO_DIRECTION_READ:
            handle.aio_notify_read()
        elif direction & nbd.AIO_DIRECTION_WRITE:
            handle.aio_notify_write()


def read_last_replies(load: Load) -> None:
    """The daemon is dead: take the replies that it had sent, until each connection ends."""
    for handle in load.handles:
        while not handle.aio_is_dead() and not handle.aio_is_closed():
            try:
                handle.poll(10_000)
            except nbd.Error:
                break
        assert handle.aio_is_dead() or handle.aio_is_closed()
    assert load.in_flight == 0
