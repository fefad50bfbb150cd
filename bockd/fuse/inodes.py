"""Inode numbers: a pure function of what they stand for, so that none has to be remembered.

1 is the root, 2 and 3 are its two directories; a volume has an even number from 16 on, a snapshot
an odd one. Ids are never used again, so neither are these.
"""

from __future__ import annotations

from typing import Final

from bockd.model import NodeKind

ROOT: Final = 1
DIRECTORIES: Final = {NodeKind.VOLUME: 2, NodeKind.SNAPSHOT: 3}
DIRECTORY_NAMES: Final = {b"volumes": NodeKind.VOLUME, b"snapshots": NodeKind.SNAPSHOT}
_FIRST: Final = 16

KIND_OF_DIRECTORY: Final = {inode: kind for kind, inode in DIRECTORIES.items()}


def inode_of(kind: NodeKind, node: int) -> int:
    """Return the inode number of a volume's or snapshot's file."""
    return _FIRST + 2 * node + (kind is NodeKind.SNAPSHOT)


def node_of(inode: int) -> tuple[NodeKind, int]:
    """Return the volume or snapshot whose file has this inode number."""
    assert inode >= _FIRST
    node, is_snapshot = divmod(inode - _FIRST, 2)
    return NodeKind.SNAPSHOT if is_snapshot else NodeKind.VOLUME, node
