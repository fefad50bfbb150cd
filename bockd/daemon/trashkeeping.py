"""The trash, looked after while the daemon runs: what is due is deleted for good, one by one.

If the pool is nearly full, the oldest of the tenant that has most there goes early, one at each
look, and the next one not before reclaim has returned the space of all that was deleted: while it
cannot, because a backup is made, to delete more would help nobody. Without that, what users have
deleted would make the writes of others fail.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

import trio
from prometheus_client.core import GaugeMetricFamily, Metric

from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.trash import Trash
from bockd.blockstorage.trashbounds import by_need
from bockd.blockstorage.trashrecords import NOTHING_IN_TRASH, TrashCount, TrashRecord, counted
from bockd.daemon.capacity import filled_percent
from bockd.daemon.retrying import MAY_PASS
from bockd.errors import BockdError, NotFoundError
from bockd.runtime.steprunner import StepRunner

log = logging.getLogger(__name__)

LOOK_SECONDS = 20.0
"""Between two looks: an hour is the unit in which users say how long to keep something."""

FULL_LOOK_SECONDS = 5.0
"""The same while the pool is nearly full."""


class TrashKeeper:
    """Looks after the trash of one pool. For the event loop's thread."""

    def __init__(self, context: StorageContext, runner: StepRunner) -> None:
        self._context = context
        self._trash = Trash(context)
        self._runner = runner
        self._told: str | None = None
        self.full = False
        """The pool was nearly full at the last look."""
        self.kept: TrashCount = NOTHING_IN_TRASH
        """As of the last look."""

    async def run(self) -> None:
        """Look at intervals, until cancelled."""
        while self._context.pool.features.trash:
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
        records = await trio.to_thread.run_sync(self._trash.by_age)
        kept = {record.key: record for record in records}
        self.full = False
        try:
            trouble = await self._expire(kept)
            self.full = await self._is_full(kept.values())
            if self.full and not await trio.to_thread.run_sync(self._context.pool.owes_space):
                trouble = await self._make_room(kept) or trouble
        finally:
            self.kept = counted(kept.values())
        if trouble is not None:
            raise trouble
        return self.full

    async def _expire(self, kept: dict[bytes, TrashRecord]) -> BockdError | None:
        """Delete what is due, also in `kept`; return why one could not be. Raises the errors of
        what may succeed later."""
        now = self._context.pool.clock()
        trouble: BockdError | None = None
        for record in list(kept.values()):
            if record.expires_at <= now:
                failed = await self._try(kept, record, "its time in the trash is over")
                trouble = failed or trouble
        return trouble

    async def _make_room(self, kept: dict[bytes, TrashRecord]) -> BockdError | None:
        """Delete the first that can be deleted, in the order of `by_need`; see `_expire`."""
        early = "the pool is nearly full (trash.full_percent)"
        trouble: BockdError | None = None
        for record in by_need(kept.values()):
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
        if not records or full_percent > 99:
            return False
        room = await trio.to_thread.run_sync(self._context.pool.room)
        return filled_percent(room) >= full_percent

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
