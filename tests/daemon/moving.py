"""A client of an attached volume that goes on at another gateway when its connection ends.

It has many writes under way and connects again by the next URI, as a host's multipath or a
restarted process would. What it has sent without an answer it sends again. An error in a reply is
what its file system would see: there must be none.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import nbd

BLOCK_BYTES = 4096
BLOCKS = 16
RETRY_SECONDS = 0.02
PATIENCE_SECONDS = 60.0


class MovingClient:
    """Writes to its blocks, again and again, in a thread; each write is one number higher."""

    def __init__(self, uris: Sequence[str], first_block: int = 0) -> None:
        self.answered = [0] * BLOCKS
        """By block: the highest number whose write was answered."""
        self.errors: list[str] = []
        """In replies, or where it got stuck."""
        self.pauses: list[float] = []
        """From the end of a connection to the first answer by the next one, in seconds."""
        self.at = 0
        """Which URI it is connected by."""
        self._uris = uris
        self._offset = first_block * BLOCK_BYTES
        self._number = 0
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)

    # -- for the test ------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[MovingClient]:
        """Write for the duration. Afterwards no error must have come."""
        self._thread.start()
        try:
            self.wait_for_writes()
            yield self
        finally:
            self._stop.set()
            self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        assert self.errors == []

    def wait_for_writes(self) -> None:
        """Wait until each block was written again, twice."""
        with self._changed:
            goal = self._number + 3
            assert self._changed.wait_for(
                lambda: bool(self.errors) or min(self.answered) >= goal, PATIENCE_SECONDS
            )
        assert self.errors == []

    def check(self, client: Any) -> None:
        """Read by another connection what is there: all that was answered, or later."""
        for block, number in enumerate(self.answered):
            data = bytes(client.pread(BLOCK_BYTES, self._offset + block * BLOCK_BYTES))
            assert data == data[:8] * (BLOCK_BYTES // 8)
            assert number <= int.from_bytes(data[:8], "big") <= self._number

    # -- in its thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                handle = self._connect()
                if handle is None:
                    return
                ended = self._write_on(handle)
                if not ended:
                    handle.shutdown()
                    return
                self.at = (self.at + 1) % len(self._uris)
                self.pauses.append(time.monotonic())
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self._fail(repr(error))

    def _fail(self, why: str) -> None:
        with self._changed:
            self.errors.append(why)
            self._changed.notify_all()

    def _connect(self) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._stop.is_set():
            handle = nbd.NBD()
            try:
                handle.connect_uri(self._uris[self.at])
            except nbd.Error as error:
                if time.monotonic() > deadline:
                    self._fail(f"could not connect: {error}")
                    return None
                self.at = (self.at + 1) % len(self._uris)
                time.sleep(RETRY_SECONDS)
            else:
                return handle
        return None

    def _write_on(self, handle: Any) -> bool:
        """Write until it shall stop, or the connection has ended: True."""
        while not self._stop.is_set():
            self._number += 1
            if not self._write_all(handle, self._number):
                return True
        return False

    def _write_all(self, handle: Any, number: int) -> bool:
        """Write to all blocks at once. Return False if the connection has ended."""
        left = set(range(BLOCKS))

        def done(block: int, error: Any) -> int:
            code = int(getattr(error, "value", error))
            left.discard(block)
            if code == 0:
                self._note(block, number)
            elif code != errno.ENOTCONN:  # what libnbd gives up for want of a connection
                self._fail(f"block {block}: {errno.errorcode.get(code, code)} in a reply")
            return 1

        data = number.to_bytes(8, "big") * (BLOCK_BYTES // 8)
        try:
            for block in range(BLOCKS):
                handle.aio_pwrite(
                    nbd.Buffer.from_bytearray(bytearray(data)),
                    self._offset + block * BLOCK_BYTES,
                    completion=lambda error, block=block: done(block, error),
                )
            while left:
                handle.poll(1000)
                if handle.aio_is_dead() or handle.aio_is_closed():
                    return False
        except nbd.Error:
            if handle.aio_is_ready():
                raise
            return False
        return True

    def _note(self, block: int, number: int) -> None:
        with self._changed:
            self.answered[block] = number
            if self.pauses and self.pauses[-1] > 1e3:  # a time, not yet a duration
                self.pauses[-1] = time.monotonic() - self.pauses[-1]
            self._changed.notify_all()
