"""A walk over thousands of records: all are seen once, and clients are served meanwhile."""

from __future__ import annotations

import pytest
import trio

from bockd.blockstorage.contract import TenantId
from bockd.blockstorage.records import owned_key
from bockd.blockstorage.trashrecords import TRASH
from bockd.daemon import walking
from bockd.daemon.walking import KEY_PAGE, PAGE, NodeCounts, count_nodes, walk
from bockd.drivers.memory.pool import MemoryPool
from bockd.index.keys import id_key
from bockd.model import MIB, NodeKind, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import SNAPSHOTS, VOLUMES, Nodes
from bockd.pool.records import VolumeRecord
from bockd.runtime import pace as pace_module
from bockd.runtime.steps import run_inline
from tests.nbd.server.serving import in_trio
from tests.runtime.turns import counting_turns

PAGES = 10


def filled(volumes: int) -> MemoryPool:
    """A pool with volumes; each second one was deleted."""
    pool = MemoryPool()
    for number in range(2 * volumes):
        record = run_inline(pool.create_volume(f"v{number}", MIB))
        if number % 2:
            run_inline(pool.delete_volume(record.id))
    return pool


@pytest.mark.parametrize("volumes", [0, 1, PAGE - 1, PAGE, PAGE + 1, PAGES * PAGE])
@in_trio
async def test_all_are_seen_once(volumes: int) -> None:
    pool = filled(volumes)
    seen = await walk(pool, Nodes.volumes, lambda _, page: [one.id for one in page])
    with pool.nodes() as nodes:
        assert seen == [one.id for one in nodes.volumes()]
    assert len(seen) == volumes


@in_trio
async def test_the_loop_turns_after_each_page(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = filled(PAGES * PAGE)
    async with counting_turns(monkeypatch) as turns:
        await walk(pool, Nodes.volumes, lambda _, page: page)
        assert turns.count >= PAGES - 1


@in_trio
async def test_the_loop_turns_where_everything_is_in_the_trash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was read counts, shown or not."""
    monkeypatch.setattr(pace_module, "PIECE_SECONDS", 0.0)
    pool = filled(PAGES * PAGE)
    with pool.nodes() as nodes:
        trashed = [one.id for one in nodes.volumes()]
    for volume in trashed:
        run_inline(pool.trash(NodeKind.VOLUME, volume))
    last = run_inline(pool.create_volume("last", MIB)).id
    pages: list[list[VolumeId]] = []

    def look(_: Nodes, page: list[VolumeRecord]) -> list[VolumeId]:
        pages.append([one.id for one in page])
        return pages[-1]

    async with counting_turns(monkeypatch) as turns:
        assert await walk(pool, Nodes.volumes, look) == [last]
        assert turns.count >= PAGES - 1
    assert pages == [*[[]] * PAGES, [last]]


@pytest.mark.parametrize("trashed", [0, 1, KEY_PAGE, 3 * KEY_PAGE])
@in_trio
async def test_what_is_in_the_trash_is_counted_in_turns(
    monkeypatch: pytest.MonkeyPatch, trashed: int
) -> None:
    pool = MemoryPool()
    run_inline(pool.create_snapshot(run_inline(pool.create_volume("v", MIB)).id, "s"))

    def fill(txn: Transaction) -> None:
        for number in range(100, 100 + trashed):
            txn.put(VOLUMES, id_key(number), b"")
            txn.put(TRASH, owned_key(NodeKind.VOLUME, TenantId(f"t{number % 7}"), number), b"")
        txn.put(SNAPSHOTS, id_key(1), b"")
        txn.put(TRASH, owned_key(NodeKind.SNAPSHOT, TenantId("t1"), 1), b"")

    pool.index.update(fill)
    async with counting_turns(monkeypatch) as turns:
        assert await count_nodes(pool) == NodeCounts(1, 1, trashed, 1)
        assert turns.count >= trashed // KEY_PAGE - 1


@in_trio
async def test_what_changes_meanwhile_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "PIECE_SECONDS", 0.0)
    monkeypatch.setattr(walking, "PAGE", 2)
    pool = filled(6)
    with pool.nodes() as nodes:
        first, *between, last = [one.id for one in nodes.volumes()]
    added: list[VolumeId] = []

    async def change() -> None:
        run_inline(pool.delete_volume(first))
        run_inline(pool.delete_volume(last))
        added.append(run_inline(pool.create_volume("new", MIB)).id)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        seen = await walk(pool, Nodes.volumes, lambda _, page: [one.id for one in page])
    assert seen == [first, *between, *added]
