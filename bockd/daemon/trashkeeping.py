"""The trash, looked after while the daemon runs: what is due is deleted for good, one by one.

When something is due is a matter of the machine's clock, which may be wrong when the machine
starts, and is set then, by years too. What is gone for good does not come back when it is right
again. So the time must have passed by a clock that nobody sets, too, since the daemon has first
seen the record (`Promises`).

Where several gateways serve a pool, each of them deletes what is due, by what it knows of the
index: each deletion judges the record again, and who comes second finds that it is gone, or was
restored. Room is made by one of them, the first by name of those that are there, so that no more
goes than has to.

If the pool is nearly full, the oldest of the tenant that has most there goes early, one at each
look, and the next one not before reclaim has returned the space of all that was deleted: while it
cannot, because a backup is made, to delete more would help nobody. Without that, what users have
deleted would make the writes of others fail.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable

import trio
from prometheus_client.core import GaugeMetricFamily, Metric

from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.trash import Trash
from bockd.blockstorage.trashbounds import by_need, latest
from bockd.blockstorage.trashrecords import NOTHING_IN_TRASH, TrashCount, TrashRecord, counted
from bockd.daemon.capacity import filled_percent
from bockd.daemon.retrying import MAY_PASS
from bockd.errors import BockdError, NotFoundError, UnavailableError
from bockd.runtime.steprunner import StepRunner

log = logging.getLogger(__name__)

LOOK_SECONDS = 20.0
"""Between two looks: an hour is the unit in which users say how long to keep something."""

FULL_LOOK_SECONDS = 5.0
"""The same while the pool is nearly full."""


GRACE_SECONDS = 3600.0
"""How long the daemon keeps what is due already when it first sees it: long enough for the clock to
be set, and for who has restored a backup to restore what was in its trash."""


class Promises:
    """How long records are kept at least, whatever becomes of the machine's clock."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._until: dict[tuple[int, float], float] = {}
        """By id and time of deletion: one that was restored may be deleted again."""
        self._asked = False
        """`due` was asked before."""

    def due(self, records: Iterable[TrashRecord], now: float) -> list[TrashRecord]:
        """Return the records that are due `now`, by the machine's clock. `records` are all that
        there are: others are forgotten."""
        at, due = self._monotonic(), []
        until: dict[tuple[int, float], float] = {}
        for record in records:
            key = record.node.id, record.deleted_at
            first = self._until.get(key)
            if first is None:
                promised = record.expires_at - record.deleted_at
                if self._asked:
                    # It was deleted since then, here or at a gateway whose clock differs.
                    first = at + promised
                else:
                    # A clock that is years behind must not make it years.
                    left = min(record.expires_at - now, promised)
                    first = at + max(left, GRACE_SECONDS)
            until[key] = first
            if record.expires_at <= now and first <= at:
                due.append(record)
        self._until = until
        self._asked = True
        return due


class TrashKeeper:
    """Looks after the trash of one pool. For the event loop's thread."""

    def __init__(
        self,
        context: StorageContext,
        runner: StepRunner,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._trash = Trash(context)
        self._runner = runner
        self._promises = Promises(monotonic)
        self._told: str | None = None
        self.full = False
        """The pool was nearly full at the last look."""
        self.kept: TrashCount = NOTHING_IN_TRASH
        """As of the last look."""

    async def run(self) -> None:
        """Look at intervals, until cancelled."""
        while True:
            try:
                await self.look()
                self._told = None
            except BockdError as error:
                if self._told != str(error):
                    log.warning("the trash is not looked after: %s", error)
                self._told = str(error)
            await trio.sleep(FULL_LOOK_SECONDS if self.full else LOOK_SECONDS)

    async def look(self) -> bool:
        """Delete what is due, and the oldest if the pool is nearly full; return whether it is.
        Raises BockdError; what was deleted stays so, and one that cannot be deleted does not keep
        others from it."""
        kept, due = await trio.to_thread.run_sync(self._read)
        self.full = False
        try:
            trouble = await self._expire(kept, due)
            self.full = await self._is_full(kept.values())
            if self.full and not await trio.to_thread.run_sync(self._context.pool.owes_space):
                trouble = await self._make_room(kept) or trouble
        finally:
            self.kept = counted(kept.values())
        if trouble is not None:
            raise trouble
        return self.full

    def _read(self) -> tuple[dict[bytes, TrashRecord], list[TrashRecord]]:
        """Return all records by their keys, and those that are due. Blocks."""
        records = self._trash.by_age()
        kept = {record.key: record for record in records}
        return kept, self._promises.due(records, self._context.pool.clock())

    async def _expire(
        self, kept: dict[bytes, TrashRecord], due: list[TrashRecord]
    ) -> BockdError | None:
        """Delete what is due, also in `kept`; return why one could not be. Raises the errors of
        what may succeed later."""
        trouble: BockdError | None = None
        for record in due:
            failed = await self._try(kept, record, "its time in the trash is over")
            trouble = failed or trouble
        return trouble

    async def _make_room(self, kept: dict[bytes, TrashRecord]) -> BockdError | None:
        """Delete the first that can be deleted, in the order of `by_need`; see `_expire`."""
        early = "the pool is nearly full (trash.full_percent)"
        trouble: BockdError | None = None
        now = latest(self._context.pool)
        for record in await trio.to_thread.run_sync(by_need, kept.values(), now):
            failed = await self._try(kept, record, early, logging.WARNING)
            if failed is None:
                break
            trouble = failed
        return trouble

    async def _try(
        self,
        kept: dict[bytes, TrashRecord],
        record: TrashRecord,
        reason: str,
        level: int = logging.INFO,
    ) -> BockdError | None:
        try:
            await self._delete(record, reason, level)
        except MAY_PASS:
            raise  # so it is with the others
        except BockdError as error:
            return error
        del kept[record.key]
        return None

    async def _is_full(self, records: Collection[TrashRecord]) -> bool:
        full_percent = self._context.trash.full_percent
        if not records or full_percent > 99 or not self._makes_room():
            return False
        try:
            room = await trio.to_thread.run_sync(self._context.pool.room)
        except UnavailableError as error:
            # bockd.daemon.capacity warns of it.
            log.debug("whether the pool is nearly full is not known: %s", error)
            return False
        return filled_percent(room) >= full_percent

    def _makes_room(self) -> bool:
        """Return whether this is the daemon that deletes early."""
        pool = self._context.pool
        gateways = [one.name for one in pool.gateways()]
        return not gateways or min(gateways) == pool.gateway

    async def _delete(self, record: TrashRecord, reason: str, level: int) -> None:
        kind, number, name = record.kind, record.node.id, record.node.display_name
        try:
            await self._runner.run(self._trash.purge(record))
        except NotFoundError:
            return  # it was restored, or somebody was faster
        log.log(level, "%s %s (%s) is deleted for good: %s", kind, number, name, reason)

    def families(self) -> list[Metric]:
        """Return what is in the trash, as metrics."""
        kept = self.kept
        return [
            GaugeMetricFamily("bockd_trash_volumes", "Volumes in the trash.", kept.volumes),
            GaugeMetricFamily("bockd_trash_snapshots", "Snapshots in the trash.", kept.snapshots),
            GaugeMetricFamily(
                "bockd_trash_volume_size_bytes",
                "Sum of the sizes of the volumes in the trash, written or not.",
                kept.size_bytes,
            ),
            GaugeMetricFamily(
                "bockd_trash_oldest_timestamp_seconds",
                "When the first of what is in the trash was deleted; 0 if nothing is.",
                kept.oldest_at,
            ),
        ]
