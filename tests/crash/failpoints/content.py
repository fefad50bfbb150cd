"""What each volume and snapshot of a scenario may hold, while one client does one thing at a time.

Of a volume the first WINDOW_BYTES are known byte for byte; nothing is ever written behind them that
is not named. A request under way may have been applied or not, sector by sector; an operation like
a revert, as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import nbd

WINDOW_BYTES = 4 << 20
SECTOR_BYTES = 512
DEPTH = 64
"""Requests under way at once, in a batch."""

Pread = Callable[[int, int], bytes]
"""(length, offset)"""


class GoneError(Exception):
    """Requests under way were not answered with success."""


class Disk:
    """One volume's window. `size_bytes` may be less than the window or far more."""

    def __init__(self, size_bytes: int, content: bytes = b"") -> None:
        self.content = bytearray(min(size_bytes, WINDOW_BYTES))
        self.content[: len(content)] = content[: len(self.content)]
        self._writing = self.content
        """What it will be when all requests under way are applied."""
        self._replacement: bytes | None = None
        """What it is as a whole, if the operation under way was done."""

    def frozen(self) -> bytes:
        """A snapshot's content, taken while nothing is under way."""
        return bytes(self.content)

    # -- requests ----------------------------------------------------------------------------

    def batch(self, client: Any, requests: list[tuple[int, bytes]]) -> None:
        """Write pieces that do not overlap, many under way at once. nbd.Error, GoneError."""
        self._writing = bytearray(self.content)
        for offset, data in requests:
            _put(self._writing, offset, data)
        failed: list[int] = []
        for offset, data in requests:
            buffer = nbd.Buffer.from_bytearray(bytearray(data))
            client.aio_pwrite(buffer, offset, completion=self._applied(offset, data, failed))
            while client.aio_in_flight() >= DEPTH:
                client.poll(-1)
        while client.aio_in_flight():
            client.poll(-1)
        if failed:
            raise GoneError(f"{len(failed)} writes failed")

    def _applied(self, offset: int, data: bytes, failed: list[int]) -> Callable[[Any], int]:
        def complete(error: Any) -> int:
            if error.value == 0:
                _put(self.content, offset, data)
            else:
                failed.append(offset)
            return 1  # retired

        return complete

    def write(self, client: Any, offset: int, data: bytes, flags: int = 0) -> None:
        """One write."""
        with self._request(offset, data):
            client.pwrite(data, offset, flags)

    def trim(self, client: Any, offset: int, length: int) -> None:
        """Whole blocks, which read as zeros afterwards: bockd's trims do that."""
        with self._request(offset, bytes(length)):
            client.trim(length, offset)

    def zero(self, client: Any, offset: int, length: int, flags: int = 0) -> None:
        with self._request(offset, bytes(length)):
            client.zero(length, offset, flags)

    @contextmanager
    def _request(self, offset: int, data: bytes) -> Iterator[None]:
        self._writing = bytearray(self.content)
        _put(self._writing, offset, data)
        yield
        self.content = self._writing

    # -- operations --------------------------------------------------------------------------

    @contextmanager
    def becoming(self, size_bytes: int, content: bytes) -> Iterator[None]:
        """While an operation replaces it as a whole."""
        new = Disk(size_bytes, content).content
        self._replacement = bytes(new)
        yield
        self.content = self._writing = new
        self._replacement = None

    # -- afterwards --------------------------------------------------------------------------

    def verify(self, name: str, pread: Pread) -> None:
        """It holds what was acknowledged, or what was under way."""
        found = pread(len(self.content), 0)
        if self._replacement is not None:
            if len(self._replacement) > len(found):
                found += bytes(len(self._replacement) - len(found))
            settled = bytes(self.content).ljust(len(found), b"\0")
            assert found in (settled, self._replacement), f"{name} is neither old nor new"
            return
        if found == self.content:
            return
        for at in range(0, len(found), SECTOR_BYTES):
            sector = found[at : at + SECTOR_BYTES]
            assert sector in (
                self.content[at : at + SECTOR_BYTES],
                self._writing[at : at + SECTOR_BYTES],
            ), f"{name}: the sector at {at} is neither what was acknowledged nor what was sent"


def _put(window: bytearray, offset: int, data: bytes) -> None:
    """Write what lies in the window."""
    if offset < len(window):
        kept = data[: len(window) - offset]
        window[offset : offset + len(kept)] = kept
