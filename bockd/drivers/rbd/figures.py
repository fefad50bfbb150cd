"""What a pool in Ceph counts and measures of itself."""

from __future__ import annotations

from bockd.drivers.rbd.opennodes import OpenNodes
from bockd.pool.figures import Figure


def figures(open_nodes: OpenNodes) -> list[Figure]:
    """Measure what this gateway has open."""
    return [
        Figure(
            "rbd_open_volumes",
            "Volumes that this gateway has open, used or not.",
            len(open_nodes.volumes),
        ),
        Figure(
            "rbd_dirty_bytes",
            "Bytes that clients were told are written, and that the cluster does not have yet.",
            open_nodes.dirty_bytes(),
        ),
    ]
