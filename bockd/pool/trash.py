"""The trash: volumes and snapshots that were deleted and are kept for some time.

One in the trash keeps its id, its record and its data, so that all that accounts for the pool's
data goes on as before. It has another name, `trash-ID`, so that its own can be taken; its record
says what it was called. It cannot be opened or found: it is either restored or deleted for good.

Who may restore it, and until when, is block storage's business (bockd.blockstorage.trash).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from bockd.errors import NotFoundError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.pool.nodes import Nodes
from bockd.pool.pool import Naming, WithNode
from bockd.pool.records import SnapshotRecord, Trashed, VolumeRecord, refuse_trashed
from bockd.validation import check_name

PREFIX = "trash-"


def move_to_trash(
    nodes: Nodes, kind: NodeKind, node: int, at: float, in_transaction: WithNode
) -> None:
    """Move a volume or snapshot to the trash, in the transaction of `nodes`, and do what belongs to
    it. Raises NotFoundError, also for what is there already."""
    record = record_of(nodes, kind, node)
    refuse_trashed(kind, record)
    names = (f"{PREFIX}{node}" + suffix for suffix in _suffixes())
    free = next(name for name in names if nodes.name_is_free(kind, name))
    nodes.rename(kind, node, free, Trashed(record.name, at))
    in_transaction(nodes.txn, record_of(nodes, kind, node))
    hit(Failpoint.TRASH_CHANGED)


def take_from_trash(
    nodes: Nodes, kind: NodeKind, node: int, naming: Naming, in_transaction: WithNode
) -> None:
    """Make a volume or snapshot that is in the trash an ordinary one again, in the transaction of
    `nodes`, and do what belongs to it. Raises NotFoundError for what is not there, ConflictError
    for a name that is taken."""
    if record_of(nodes, kind, node).trashed is None:
        raise not_in_trash(kind, node)
    nodes.rename(kind, node, check_name(naming(nodes, node)), None)
    in_transaction(nodes.txn, record_of(nodes, kind, node))
    hit(Failpoint.RESTORE_CHANGED)


def not_in_trash(kind: NodeKind, node: int) -> NotFoundError:
    """Return the error for a volume or snapshot that is not in the trash."""
    return NotFoundError(f"{kind} {node} is not in the trash; 'bock trash list' shows what is")


def record_of(nodes: Nodes, kind: NodeKind, node: int) -> VolumeRecord | SnapshotRecord:
    """Return the record of a volume or snapshot. Raises NotFoundError, DamagedError."""
    if kind is NodeKind.VOLUME:
        return nodes.volume(VolumeId(node))
    return nodes.snapshot(SnapshotId(node))


def _suffixes() -> Iterator[str]:
    """Somebody may have called another one so."""
    yield ""
    yield from (f"-{number}" for number in count(2))
