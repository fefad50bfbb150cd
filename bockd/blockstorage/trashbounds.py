"""How much one tenant may have in the trash, and whose goes first when the pool is full.

What is in the trash and does not count in the quota has a bound of its own, as large as the quota.
Without it, who creates and deletes again and again would fill the pool, and have the trash of
others deleted for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from bockd.blockstorage.contract import UNLIMITED, Quota, TenantId
from bockd.blockstorage.trashrecords import TrashRecord


def beyond_quota(records: Iterable[TrashRecord], quota: Quota, latest: int) -> list[TrashRecord]:
    """Return which of a tenant's records of one kind are more than the quota allows, the oldest
    first: what is left has at most its number and its GiB. What counts in the quota is passed over,
    and `latest`, which was deleted just now, always stays."""

    def age(record: TrashRecord) -> tuple[bool, float, int]:
        return record.node.id == latest, record.deleted_at, record.node.id

    number = gib = 0
    beyond: list[TrashRecord] = []
    for record in sorted(records, key=age, reverse=True):
        if record.counted:
            continue
        number += 1
        gib += 0 if record.volume is None else record.volume.size_gib
        if record.node.id != latest and _is_more(record, number, gib, quota):
            beyond.append(record)
    return beyond[::-1]


def _is_more(record: TrashRecord, number: int, gib: int, quota: Quota) -> bool:
    most = quota.snapshots if record.volume is None else quota.volumes
    if most != UNLIMITED and number > most:
        return True
    return quota.gigabytes != UNLIMITED and gib > quota.gigabytes


def by_need(records: Collection[TrashRecord]) -> list[TrashRecord]:
    """Return the records in the order in which they go when the pool is full: first those of the
    tenant that has most in the trash (by the sizes of its volumes and snapshots, written or not,
    then by their number), and of a tenant the oldest first."""
    most: dict[TenantId, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for record in records:
        gib, number = most[record.tenant]
        most[record.tenant] = gib + record.node.size_gib, number + 1

    def need(record: TrashRecord) -> tuple[int, int, TenantId, float]:
        gib, number = most[record.tenant]
        return -gib, -number, record.tenant, record.deleted_at

    return sorted(records, key=need)
