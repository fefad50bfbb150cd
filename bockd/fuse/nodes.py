"""What the file view asks of the rest of the daemon: volumes and snapshots, and holds on them.

A node's file is named like the node. A name that no file can have (with a slash in it, "." or
"..") gives way to the id, which leads to the file in any case: names are never all digits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bockd.model import NodeKind
from bockd.nbd.server.exports import OpenExport
from bockd.nbd.server.statistics import ExportStatistics
from bockd.throttle.gates import Gate


@dataclass(frozen=True, slots=True)
class Node:
    """A volume or snapshot as `stat` tells of it. Ids are unique among both kinds, and never
    used again. Times are seconds since the epoch."""

    kind: NodeKind
    id: int
    name: str
    size_bytes: int
    created_at: float
    modified_at: float
    allocated_bytes: int
    """Disk space that its blocks take up, at most its size; never less than they do."""

    @property
    def file_name(self) -> str:
        """The one name that a listing has for it."""
        return str(self.id) if "/" in self.name or self.name in (".", "..") else self.name


class NodeTable(Protocol):
    """Volumes and snapshots. Every method raises BockdError only, NotFoundError for what is not
    there."""

    async def list_nodes(self, kind: NodeKind) -> Sequence[Node]:
        """List all nodes of a kind, by id."""
        ...

    async def find(self, kind: NodeKind, ref: str) -> Node:
        """Return the node of a name, or of an id in decimal."""
        ...

    async def show(self, kind: NodeKind, node: int) -> Node: ...

    async def open(self, kind: NodeKind, node: int) -> OpenExport:
        """Open a node for one open file and return the handle. Raise InUseError when another
        process has the node open."""
        ...

    def statistics(self, export: OpenExport) -> ExportStatistics:
        """Return the counters of an open node, which all frontends share."""
        ...

    def gate(self, export: OpenExport) -> Gate:
        """Return what holds an open node to its limits, over all frontends."""
        ...

    async def space(self) -> os.statvfs_result:
        """Return the space of the file system below the pool, for `df`."""
        ...
