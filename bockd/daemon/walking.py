"""A walk over all volumes or snapshots of a pool but those in the trash, on the owner thread, a few
of them at a time: everybody else is served in between.

Each page is a transaction of its own, which begins behind the last id of the one before. So what is
created or deleted meanwhile may be missed or seen, and neither repeats nor hides anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

from bockd.blockstorage.trashrecords import TRASH, trash_keys
from bockd.model import NodeKind
from bockd.pool.nodes import SNAPSHOTS, VOLUMES, Nodes
from bockd.pool.pool import Pool
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.runtime.pace import Pace

PAGE = 20
"""Records that are looked at in one go: half a millisecond."""

KEY_PAGE = 250
"""Keys that are counted in one go: half a millisecond."""

R = TypeVar("R", VolumeRecord, SnapshotRecord)
T = TypeVar("T")


class NodeCounts(NamedTuple):
    """How many are in a pool."""

    volumes: int
    """Those that are not in the trash, and so the snapshots."""
    snapshots: int
    trash_volumes: int
    trash_snapshots: int


async def count_nodes(pool: Pool) -> NodeCounts:
    """Count what is in a pool, and what of it is in the trash. Raises BockdError."""
    trash_volumes, after, pace = 0, b"", Pace()
    while True:
        with pool.nodes() as nodes:
            keys = list(islice(trash_keys(nodes.txn, NodeKind.VOLUME, after), KEY_PAGE))
            trash_volumes += len(keys)
            if len(keys) < KEY_PAGE:
                trash_snapshots = max(0, nodes.txn.count(TRASH) - trash_volumes)
                return NodeCounts(
                    volumes=max(0, nodes.txn.count(VOLUMES) - trash_volumes),
                    snapshots=max(0, nodes.txn.count(SNAPSHOTS) - trash_snapshots),
                    trash_volumes=trash_volumes,
                    trash_snapshots=trash_snapshots,
                )
        after = keys[-1]
        await pace.step()


async def walk(
    pool: Pool,
    records: Callable[[Nodes, int], Iterator[R]],
    look: Callable[[Nodes, list[R]], Iterable[T]],
) -> list[T]:
    """Return what `look` makes of all records but those in the trash, which it is given page by
    page. `records` is `Nodes.volumes` or `Nodes.snapshots`: a page ends after so many records that
    were read, however few of them are shown. Raises DamagedError."""
    found: list[T] = []
    pace, after = Pace(), 0
    while True:
        with pool.nodes() as nodes:
            page = list(islice(records(nodes, after), PAGE))
            found += look(nodes, [one for one in page if one.trashed is None])
        if len(page) < PAGE:
            return found
        after = page[-1].id
        await pace.step()
