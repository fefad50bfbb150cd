"""Recordings of exports: who has begun one takes the records out of its ring, and ends it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

import trio

from bockd.errors import InUseError, NotFoundError, OverLimitError
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.statistics import ExportStatistics
from bockd.nbd.server.tracering import RING_RECORDS, Ring
from bockd.trace.records import end_record

MAX_RECORDINGS: Final = 4
"""At once, or their rings would take much memory."""

LEASE_SECONDS: Final = 30.0
"""A recording that nobody asks for so long has lost whoever began it, and is ended."""


@dataclass(slots=True)
class Recording:
    """One that is under way."""

    key: ExportKey
    statistics: ExportStatistics
    ring: Ring
    asked_at: float
    """By trio's clock."""


class Recordings:
    """All that are under way, by an id that only whoever began one knows."""

    def __init__(self) -> None:
        self._running: dict[str, Recording] = {}
        self._begun = trio.Event()

    def begin(self, key: ExportKey, statistics: ExportStatistics) -> str:
        """Begin to record an export, and return the recording's id. Raises InUseError if that is
        recorded already, OverLimitError when too many are."""
        if any(one.key == key for one in self._running.values()):
            raise InUseError(
                f"{key.kind} {key.id} is being recorded already; a recorder that died is forgotten "
                f"after {LEASE_SECONDS:g} seconds"
            )
        if len(self._running) >= MAX_RECORDINGS:
            raise OverLimitError(
                f"{MAX_RECORDINGS} recordings are under way, which is the most: end one of them"
            )
        made = secrets.token_hex(8)
        ring = Ring()
        self._running[made] = Recording(key, statistics, ring, trio.current_time())
        statistics.trace = ring
        self._begun.set()
        return made

    def take(self, recording: str) -> bytes:
        """Return what was recorded since the last call, or the oldest part of it if that is much.
        Raises NotFoundError when the recording has ended."""
        found = self._find(recording)
        found.asked_at = trio.current_time()
        return found.ring.take()

    def end(self, recording: str) -> bytes:
        """End a recording, and return all that is left of it, with the record that ends it. Raises
        NotFoundError when it has ended."""
        found = self._find(recording)
        self._stop(recording)
        return found.ring.take(RING_RECORDS) + end_record(found.ring.age_ns())

    async def watch(self) -> None:
        """End recordings that nobody asks for any more, until cancelled. Without any it waits for
        one: a daemon that records nothing does not wake up for it."""
        while True:
            await self._begun.wait()
            self._begun = trio.Event()
            while self._running:
                oldest = min(one.asked_at for one in self._running.values())
                await trio.sleep_until(oldest + LEASE_SECONDS)
                now = trio.current_time()
                for name, one in list(self._running.items()):
                    if one.asked_at + LEASE_SECONDS <= now:  # rounded as above, or it may never be
                        self._stop(name)

    def _find(self, recording: str) -> Recording:
        found = self._running.get(recording)
        if found is None:
            raise NotFoundError(
                "the recording has ended: the daemon was started again, or nobody has asked for "
                f"records for {LEASE_SECONDS:g} seconds"
            )
        return found

    def _stop(self, recording: str) -> None:
        self._running.pop(recording).statistics.trace = None
