"""Volumes and snapshots of a local pool by their names."""

from __future__ import annotations

from bockd.drivers.local.pool import LocalPool
from bockd.model import NodeKind, SnapshotId, VolumeId


def volume_named(pool: LocalPool, name: str) -> VolumeId:
    return VolumeId(pool.find(NodeKind.VOLUME, name))


def snapshot_named(pool: LocalPool, name: str) -> SnapshotId:
    return SnapshotId(pool.find(NodeKind.SNAPSHOT, name))
