"""The trash of any kind of pool that has one, and the refusal of one that has none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.errors import ConflictError, InUseError, NotFoundError, NotSupportedError
from bockd.model import MIB, NodeKind
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.pool.trash import record_of
from tests.pool.drivers import DRIVERS
from tests.pool.opendriver import OpenDriver

VOLUME, SNAPSHOT = NodeKind.VOLUME, NodeKind.SNAPSHOT


def as_before(nodes: Nodes, _node: int) -> str:
    """The name that the first volume has here."""
    return "one" if nodes.name_is_free(VOLUME, "one") else "one-again"


def as_snapshot(_nodes: Nodes, _node: int) -> str:
    return "shot"


WITH_TRASH = ("local", "memory")


@pytest.fixture(params=WITH_TRASH)
def trashing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenDriver]:
    """Each kind of pool that has a trash."""
    driver = DRIVERS[request.param](request, tmp_path / "pool")
    yield driver
    driver.close()


def test_a_pool_has_a_trash_or_refuses(driver: OpenDriver) -> None:
    pool = driver.pool
    volume = driver.volume("one").id
    assert pool.features.trash == (pool.features.driver in WITH_TRASH)
    if not pool.features.trash:
        with pytest.raises(NotSupportedError, match="has no trash: what is deleted there is gone"):
            driver.run(pool.trash(VOLUME, volume))
        with pytest.raises(NotSupportedError, match=r"trash\.keep_hours"):
            driver.run(pool.restore(VOLUME, volume, as_before))
        assert pool.find(VOLUME, "one") == volume


def test_a_volume_comes_back_with_its_id_and_its_data(trashing: OpenDriver) -> None:
    pool = trashing.pool
    volume = trashing.volume("one").id
    trashing.write(volume, 3, b"kept")
    before = pool.clock()
    trashing.run(pool.trash(VOLUME, volume))
    with pool.nodes() as nodes:
        trashed = nodes.volume(volume).trashed
        assert trashed is not None
        assert trashed.name == "one"
        assert before <= trashed.at <= pool.clock()
        assert nodes.volume(volume).name == f"trash-{volume}"
    trashing.run(pool.restore(VOLUME, volume, as_before))
    with pool.nodes() as nodes:
        assert nodes.volume(volume).trashed is None
        assert [one.id for one in nodes.shown_volumes()] == [volume]
    assert pool.find(VOLUME, "one") == volume
    assert trashing.of_volume(volume, 3) == b"kept"


def test_nobody_finds_or_opens_what_is_in_the_trash(trashing: OpenDriver) -> None:
    pool = trashing.pool
    volume = trashing.volume("one").id
    snapshot = trashing.run(pool.create_snapshot(volume, "shot")).id
    trashing.run(pool.trash(VOLUME, volume))
    trashing.run(pool.trash(SNAPSHOT, snapshot))
    for kind, node, name in ((VOLUME, volume, "one"), (SNAPSHOT, snapshot, "shot")):
        for ref in (name, str(node), f"trash-{node}"):
            with pytest.raises(NotFoundError, match=f"there is no {kind} '{ref}'"):
                pool.find(kind, ref)
        with pytest.raises(NotFoundError, match=f"is in the trash: 'bock trash restore {node}'"):
            trashing.run(pool.use(kind, node))
        assert not pool.is_open(kind, node)
    with pool.nodes() as nodes:
        assert not list(nodes.shown_volumes())
        assert not list(nodes.shown_snapshots())
        assert [one.id for one in nodes.volumes()] == [volume]


def test_a_snapshot_in_the_trash_still_holds_what_it_held(trashing: OpenDriver) -> None:
    pool = trashing.pool
    volume = trashing.volume("one").id
    trashing.write(volume, 0, b"then")
    snapshot = trashing.run(pool.create_snapshot(volume, "shot")).id
    clone = trashing.run(pool.create_volume("clone", None, snapshot)).id
    trashing.run(pool.trash(SNAPSHOT, snapshot))
    trashing.write(volume, 0, b"now")
    trashing.run(pool.delete_volume(volume))
    trashing.run(pool.restore(SNAPSHOT, snapshot, as_snapshot))
    assert trashing.of_snapshot(snapshot) == b"then"
    assert trashing.of_volume(clone) == b"then"
    assert trashing.run(pool.check()).problems == ()


def test_the_name_is_free_at_once_and_another_is_chosen_later(trashing: OpenDriver) -> None:
    pool = trashing.pool
    volume = trashing.volume("one").id
    occupied = trashing.volume(f"trash-{volume + 2}").id
    assert occupied == volume + 1
    trashing.run(pool.trash(VOLUME, volume))
    taken = trashing.volume("one").id
    assert taken == volume + 2
    trashing.run(pool.trash(VOLUME, taken))  # whose name in the trash somebody has
    trashing.volume("one")
    with pytest.raises(ConflictError, match="a volume named 'one' exists already"):
        trashing.run(pool.restore(VOLUME, volume, lambda _nodes, _node: "one"))
    trashing.run(pool.restore(VOLUME, volume, as_before))
    with pool.nodes() as nodes:
        assert nodes.volume(volume).name == "one-again"
        assert nodes.volume(taken).name == f"trash-{taken}-2"
    assert trashing.run(pool.check()).problems == ()


def test_what_is_used_does_not_go_to_the_trash(trashing: OpenDriver) -> None:
    pool = trashing.pool
    volume = trashing.volume("one").id
    snapshot = trashing.run(pool.create_snapshot(volume, "shot")).id
    for kind, node, said in ((VOLUME, volume, "1 connection"), (SNAPSHOT, snapshot, "being read")):
        trashing.run(pool.use(kind, node))
        with pytest.raises(InUseError, match=said):
            trashing.run(pool.trash(kind, node))
        pool.leave(kind, node)
        trashing.run(pool.trash(kind, node))


def test_twice_is_refused_both_ways(trashing: OpenDriver) -> None:
    pool = trashing.pool
    volume = trashing.volume("one").id
    with pytest.raises(NotFoundError, match="is not in the trash"):
        trashing.run(pool.restore(VOLUME, volume, as_before))
    trashing.run(pool.trash(VOLUME, volume))
    with pytest.raises(NotFoundError, match="is in the trash"):
        trashing.run(pool.trash(VOLUME, volume))
    with pytest.raises(NotFoundError):
        trashing.run(pool.trash(VOLUME, type(volume)(999)))


def test_what_others_refuse_does_not_happen(trashing: OpenDriver) -> None:
    """Who keeps records beside the pool's changes both or neither."""
    pool = trashing.pool
    volume = trashing.volume("one").id

    def refuse(_txn: Transaction, record: VolumeRecord | SnapshotRecord) -> None:
        raise ConflictError(f"not now, {record.name}")

    with pytest.raises(ConflictError, match=f"not now, trash-{volume}"):
        trashing.run(pool.trash(VOLUME, volume, refuse))
    assert pool.find(VOLUME, "one") == volume
    trashing.run(pool.trash(VOLUME, volume))
    with pytest.raises(ConflictError, match="not now, one"):
        trashing.run(pool.restore(VOLUME, volume, as_before, refuse))
    with pytest.raises(NotFoundError):
        pool.find(VOLUME, "one")


def test_from_the_trash_it_is_deleted_for_good(trashing: OpenDriver) -> None:
    pool = trashing.pool
    volume = trashing.volume("one").id
    trashing.write(volume, 0, b"gone")
    snapshot = trashing.run(pool.create_snapshot(volume, "shot")).id
    trashing.run(pool.trash(VOLUME, volume))
    trashing.run(pool.trash(SNAPSHOT, snapshot))
    trashing.run(pool.delete_volume(volume))
    trashing.run(pool.delete_snapshot(snapshot))
    with pool.nodes() as nodes:
        for kind, node in ((VOLUME, volume), (SNAPSHOT, snapshot)):
            with pytest.raises(NotFoundError):
                record_of(nodes, kind, node)
        assert nodes.name_is_free(VOLUME, f"trash-{volume}")
    assert trashing.run(pool.check()).problems == ()


@pytest.mark.parametrize("trashing", ["local"], indirect=True)
def test_the_trash_survives_the_process(trashing: OpenDriver) -> None:
    volume = trashing.volume("one").id
    trashing.write(volume, 0, b"kept")
    trashing.run(trashing.pool.trash(VOLUME, volume))
    trashing.die_and_open()
    with pytest.raises(NotFoundError):
        trashing.pool.find(VOLUME, "one")
    assert trashing.run(trashing.pool.check()).problems == ()
    trashing.run(trashing.pool.restore(VOLUME, volume, as_before))
    assert trashing.of_volume(volume) == b"kept"


def test_what_emptying_would_free_is_told(trashing: OpenDriver) -> None:
    """What a volume shows too is not among it."""
    pool = trashing.pool
    volume = trashing.volume("one", 2 * MIB).id
    trashing.write(volume, 0, b"shared")
    snapshot = trashing.run(pool.create_snapshot(volume, "shot")).id
    trashing.write(volume, 1, b"volume's")
    other = trashing.volume("other").id
    trashing.write(other, 0, b"other's")
    assert trashing.run(pool.shares(frozenset())).trash_bytes == 0
    before = trashing.run(pool.shares(frozenset()))
    trashing.run(pool.trash(VOLUME, other))
    trashing.run(pool.trash(SNAPSHOT, snapshot))
    found = trashing.run(pool.shares(frozenset()))
    block = 4096
    copied = 0 if pool.features.shares_blocks else block
    assert found.trash_bytes == block + copied
    assert found.volumes_bytes == before.volumes_bytes - block
    assert found.snapshots_bytes == 0
