"""What frontends call a pool's volumes and snapshots: `<id or name>`, `snapshot/<id or name>`."""

from __future__ import annotations

from bockd.drivers.local.format.catalogue import Catalogue, SnapshotRecord, VolumeRecord
from bockd.errors import NotFoundError
from bockd.model import SNAPSHOT_PREFIX, NodeKind, SnapshotId, VolumeId


def export_description(kind: NodeKind, node: int) -> str:
    """Return the description that a list of exports has for an export, next to its name."""
    return f"{kind} {node}"


def find_export(catalogue: Catalogue, name: str) -> tuple[NodeKind, VolumeRecord | SnapshotRecord]:
    """Find the volume or snapshot of an export name. Raises NotFoundError."""
    if not name:
        raise NotFoundError("name an export: there is no default one")
    # A volume may be called "snapshot/x": a volume's own name comes first.
    try:
        volume = VolumeId(catalogue.find(NodeKind.VOLUME, name))
    except NotFoundError:
        if not name.startswith(SNAPSHOT_PREFIX):
            raise
        ref = name.removeprefix(SNAPSHOT_PREFIX)
        found = SnapshotId(catalogue.find(NodeKind.SNAPSHOT, ref))
        return NodeKind.SNAPSHOT, catalogue.snapshot(found)
    return NodeKind.VOLUME, catalogue.volume(volume)
