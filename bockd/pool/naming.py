"""What frontends call a pool's volumes and snapshots: `<id or name>`, `snapshot/<id or name>`."""

from __future__ import annotations

from bockd.errors import NotFoundError
from bockd.model import SNAPSHOT_PREFIX, NodeKind, SnapshotId, VolumeId
from bockd.pool.nodes import Nodes
from bockd.pool.records import SnapshotRecord, VolumeRecord


def export_description(kind: NodeKind, node: int) -> str:
    """Return the description that a list of exports has for an export, next to its name."""
    return f"{kind} {node}"


def find_export(nodes: Nodes, name: str) -> tuple[NodeKind, VolumeRecord | SnapshotRecord]:
    """Find the volume or snapshot of an export name. Raises NotFoundError."""
    if not name:
        raise NotFoundError("name an export: there is no default one")
    # A volume may be called "snapshot/x": a volume's own name comes first.
    try:
        volume = VolumeId(nodes.find(NodeKind.VOLUME, name))
    except NotFoundError:
        if not name.startswith(SNAPSHOT_PREFIX):
            raise
        ref = name.removeprefix(SNAPSHOT_PREFIX)
        found = SnapshotId(nodes.find(NodeKind.SNAPSHOT, ref))
        return NodeKind.SNAPSHOT, nodes.snapshot(found)
    return NodeKind.VOLUME, nodes.volume(volume)
