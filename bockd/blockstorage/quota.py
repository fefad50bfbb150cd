"""Quotas (4.4.2, "Quota Limits"): whether a tenant may have more.

Gigabytes are those of volumes. Snapshots are counted and take none: they share their volume's
blocks, and what they keep alive is bounded by their number and the volume's size.
"""

from __future__ import annotations

from dataclasses import replace

from bockd.blockstorage.contract import UNLIMITED, Quota, Usage
from bockd.errors import OverLimitError

DEFAULT_QUOTA = Quota(volumes=1000, gigabytes=64 * 1024, snapshots=1000)
"""For a tenant without a quota of its own. Volumes are thin, so that this bounds the catalogue
and a client that runs away, not the disk."""


def with_volume(quota: Quota, used: Usage, size_gib: int) -> Usage:
    """Return the usage with one more volume. Raise OverLimitError beyond the quota, in the
    specification's words."""
    if _exceeds(quota.volumes, used.volumes + 1) or _exceeds(
        quota.gigabytes, used.gigabytes + size_gib
    ):
        raise OverLimitError(
            f"Volume quota exceeded. You cannot create a volume of size {size_gib}G"
        )
    return replace(used, volumes=used.volumes + 1, gigabytes=used.gigabytes + size_gib)


def with_growth(quota: Quota, used: Usage, volume: int, old_gib: int, new_gib: int) -> Usage:
    """Return the usage after a volume has grown from `old_gib` to `new_gib`. Raise OverLimitError
    beyond the quota."""
    grown = used.gigabytes + new_gib - old_gib
    if new_gib > old_gib and _exceeds(quota.gigabytes, grown):
        raise OverLimitError(
            f"Volume quota exceeded. You cannot extend volume {volume} to a size of {new_gib}G"
        )
    return replace(used, gigabytes=grown)


def with_snapshot(quota: Quota, used: Usage, volume: int) -> Usage:
    """Return the usage with one more snapshot. Raise OverLimitError beyond the quota."""
    if _exceeds(quota.snapshots, used.snapshots + 1):
        raise OverLimitError(
            f"Snapshot quota exceeded. You cannot create a snapshot of volume {volume}"
        )
    return replace(used, snapshots=used.snapshots + 1)


def without_volume(used: Usage, size_gib: int) -> Usage:
    """Return the usage with one volume less."""
    return replace(used, volumes=used.volumes - 1, gigabytes=used.gigabytes - size_gib)


def without_snapshot(used: Usage) -> Usage:
    """Return the usage with one snapshot less."""
    return replace(used, snapshots=used.snapshots - 1)


def _exceeds(limit: int, wanted: int) -> bool:
    return limit != UNLIMITED and wanted > limit
