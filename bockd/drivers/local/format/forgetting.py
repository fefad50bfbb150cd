"""Forgetting volumes and snapshots, maps that nobody shows any more, and layers that no map leads
to: all that the index has of a layer but its checksums and cells, which are many and go in batches,
before its files do.
"""

from __future__ import annotations

from dataclasses import replace

from bockd.drivers.local.format import checksums, queue
from bockd.drivers.local.format.catalogue import Catalogue, LocalSnapshotRecord, LocalVolumeRecord
from bockd.model import LayerId, MapId, NodeKind
from bockd.pool.index import Transaction


def forget_node(txn: Transaction, record: LocalVolumeRecord | LocalSnapshotRecord) -> None:
    """Forget a volume or snapshot, free its name and kill its map. Raises DamagedError when the
    index does not have the map."""
    is_volume = isinstance(record, LocalVolumeRecord)
    kind = NodeKind.VOLUME if is_volume else NodeKind.SNAPSHOT
    Catalogue(txn).forget(kind, record.id, record.name)
    kill_map(txn, record.map)


def kill_map(txn: Transaction, map_id: MapId) -> None:
    """Mark a map that nobody shows any more as dead, and queue it for reclaim. Raises DamagedError
    when the index has no such map."""
    catalogue = Catalogue(txn)
    catalogue.put_map(replace(catalogue.map(map_id), dead=True))
    queue.add_dead_map(txn, map_id)


def forget_layer(txn: Transaction, layer: LayerId) -> None:
    """Forget a layer that nothing refers to any more, and queue its files to be unlinked. Raises
    DamagedError when the index has no such layer."""
    Catalogue(txn).remove_layer(layer)
    queue.end_merge(txn, layer)
    queue.end_settling(txn, layer)
    checksums.forget_reading(txn, layer)
    queue.add_unlink(txn, layer)
