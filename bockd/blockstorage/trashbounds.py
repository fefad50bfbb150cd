"""How much one tenant may have in the trash, and whose goes first when the pool is full.

What is in the trash and does not count in the quota has a bound of its own, as large as the quota.
Without it, who creates and deletes again and again would fill the pool, and have the trash of
others deleted for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

from bockd.blockstorage.contract import UNLIMITED, Quota, TenantId
from bockd.blockstorage.trashrecords import TrashRecord
from bockd.model import NodeKind
from bockd.pool.pool import Pool

CLOCKS_DIFFER_SECONDS = 300.0
"""How far the clocks of gateways may differ, as for tokens."""

Order = tuple[bool, float, int]


def order_at(now: float) -> Callable[[TrashRecord], Order]:
    """Return the key by which records are sorted so that what was deleted first comes first.

    What was deleted at a time that is still to come was deleted before the clock was set back, and
    so before what has been deleted since."""

    def order(record: TrashRecord) -> Order:
        return record.deleted_at <= now, record.deleted_at, record.node.id

    return order


def latest(pool: Pool, at: float = 0.0) -> float:
    """Return the time after which nothing was deleted before the clock was set back: now, of which
    another gateway may have another opinion, or `at` which something was deleted this moment."""
    now = max(at, pool.clock())
    return now + CLOCKS_DIFFER_SECONDS if pool.features.several_gateways else now


def is_bounded(kind: NodeKind, quota: Quota) -> bool:
    """Return whether a quota says how many there may be."""
    if kind is NodeKind.SNAPSHOT:
        return quota.snapshots != UNLIMITED
    return quota.volumes != UNLIMITED or quota.gigabytes != UNLIMITED


def beyond_quota(records: Iterable[TrashRecord], quota: Quota, now: float) -> list[TrashRecord]:
    """Return which of a tenant's records of one kind are more than the quota allows, the oldest
    first: what is left has at most its number and its GiB. What counts in the quota is passed over,
    and what was deleted last always stays: of deletions at the same moment, too, whichever of them
    asks."""
    number = gib = 0
    beyond: list[TrashRecord] = []
    for record in sorted(records, key=order_at(now), reverse=True):
        if record.counted:
            continue
        number += 1
        gib += 0 if record.volume is None else record.volume.size_gib
        if number > 1 and _is_more(record, number, gib, quota):
            beyond.append(record)
    return beyond[::-1]


def _is_more(record: TrashRecord, number: int, gib: int, quota: Quota) -> bool:
    most = quota.snapshots if record.volume is None else quota.volumes
    if most != UNLIMITED and number > most:
        return True
    return quota.gigabytes != UNLIMITED and gib > quota.gigabytes


def by_need(records: Collection[TrashRecord], now: float) -> list[TrashRecord]:
    """Return the records in the order in which they go when the pool is full: first those of the
    tenant that has most in the trash (by the sizes of its volumes and snapshots, written or not,
    then by their number), and of a tenant the oldest first."""
    order = order_at(now)
    most: dict[TenantId, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for record in records:
        gib, number = most[record.tenant]
        most[record.tenant] = gib + record.node.size_gib, number + 1

    def need(record: TrashRecord) -> tuple[int, int, TenantId, Order]:
        gib, number = most[record.tenant]
        return -gib, -number, record.tenant, order(record)

    return sorted(records, key=need)
