"""The trash of any kind of pool."""

from __future__ import annotations

import pytest

from bockd.errors import ConflictError, InUseError, NotFoundError
from bockd.model import MIB, NodeKind
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.pool.trash import record_of
from tests.pool.opendriver import OpenDriver

VOLUME, SNAPSHOT = NodeKind.VOLUME, NodeKind.SNAPSHOT


def as_before(nodes: Nodes, _node: int) -> str:
    """The name that the first volume has here."""
    return "one" if nodes.name_is_free(VOLUME, "one") else "one-again"


def as_snapshot(_nodes: Nodes, _node: int) -> str:
    return "shot"


def test_a_volume_comes_back_with_its_id_and_its_data(driver: OpenDriver) -> None:
    pool = driver.pool
    volume = driver.volume("one").id
    driver.write(volume, 3, b"kept")
    before = pool.clock()
    driver.run(pool.trash(VOLUME, volume))
    with pool.nodes() as nodes:
        trashed = nodes.volume(volume).trashed
        assert trashed is not None
        assert trashed.name == "one"
        assert before <= trashed.at <= pool.clock()
        assert nodes.volume(volume).name == f"trash-{volume}"
    driver.run(pool.restore(VOLUME, volume, as_before))
    with pool.nodes() as nodes:
        assert nodes.volume(volume).trashed is None
        assert [one.id for one in nodes.shown_volumes()] == [volume]
    assert pool.find(VOLUME, "one") == volume
    assert driver.of_volume(volume, 3) == b"kept"


def test_nobody_finds_or_opens_what_is_in_the_trash(driver: OpenDriver) -> None:
    pool = driver.pool
    volume = driver.volume("one").id
    snapshot = driver.run(pool.create_snapshot(volume, "shot")).id
    driver.run(pool.trash(VOLUME, volume))
    driver.run(pool.trash(SNAPSHOT, snapshot))
    for kind, node, name in ((VOLUME, volume, "one"), (SNAPSHOT, snapshot, "shot")):
        for ref in (name, str(node), f"trash-{node}"):
            with pytest.raises(NotFoundError, match=f"there is no {kind} '{ref}'"):
                pool.find(kind, ref)
        with pytest.raises(NotFoundError, match=f"is in the trash: 'bock trash restore {node}'"):
            driver.run(pool.use(kind, node))
        assert not pool.is_open(kind, node)
    with pool.nodes() as nodes:
        assert not list(nodes.shown_volumes())
        assert not list(nodes.shown_snapshots())
        assert [one.id for one in nodes.volumes()] == [volume]


def test_a_snapshot_in_the_trash_still_holds_what_it_held(driver: OpenDriver) -> None:
    pool = driver.pool
    volume = driver.volume("one").id
    driver.write(volume, 0, b"then")
    snapshot = driver.run(pool.create_snapshot(volume, "shot")).id
    clone = driver.run(pool.create_volume("clone", None, snapshot)).id
    driver.run(pool.trash(SNAPSHOT, snapshot))
    driver.write(volume, 0, b"now")
    driver.run(pool.delete_volume(volume))
    driver.run(pool.restore(SNAPSHOT, snapshot, as_snapshot))
    assert driver.of_snapshot(snapshot) == b"then"
    assert driver.of_volume(clone) == b"then"
    assert driver.run(pool.check()).problems == ()


def test_the_name_is_free_at_once_and_another_is_chosen_later(driver: OpenDriver) -> None:
    pool = driver.pool
    volume = driver.volume("one").id
    occupied = driver.volume(f"trash-{volume + 2}").id
    assert occupied == volume + 1
    driver.run(pool.trash(VOLUME, volume))
    taken = driver.volume("one").id
    assert taken == volume + 2
    driver.run(pool.trash(VOLUME, taken))  # whose name in the trash somebody has
    driver.volume("one")
    with pytest.raises(ConflictError, match="a volume named 'one' exists already"):
        driver.run(pool.restore(VOLUME, volume, lambda _nodes, _node: "one"))
    driver.run(pool.restore(VOLUME, volume, as_before))
    with pool.nodes() as nodes:
        assert nodes.volume(volume).name == "one-again"
        assert nodes.volume(taken).name == f"trash-{taken}-2"
    assert driver.run(pool.check()).problems == ()


def test_what_is_used_does_not_go_to_the_trash(driver: OpenDriver) -> None:
    pool = driver.pool
    volume = driver.volume("one").id
    snapshot = driver.run(pool.create_snapshot(volume, "shot")).id
    for kind, node, said in ((VOLUME, volume, "1 connection"), (SNAPSHOT, snapshot, "being read")):
        driver.run(pool.use(kind, node))
        with pytest.raises(InUseError, match=said):
            driver.run(pool.trash(kind, node))
        pool.leave(kind, node)
        driver.run(pool.trash(kind, node))


def test_twice_is_refused_both_ways(driver: OpenDriver) -> None:
    pool = driver.pool
    volume = driver.volume("one").id
    with pytest.raises(NotFoundError, match="is not in the trash"):
        driver.run(pool.restore(VOLUME, volume, as_before))
    driver.run(pool.trash(VOLUME, volume))
    with pytest.raises(NotFoundError, match="is in the trash"):
        driver.run(pool.trash(VOLUME, volume))
    with pytest.raises(NotFoundError):
        driver.run(pool.trash(VOLUME, type(volume)(999)))


def test_what_others_refuse_does_not_happen(driver: OpenDriver) -> None:
    """Who keeps records beside the pool's changes both or neither."""
    pool = driver.pool
    volume = driver.volume("one").id

    def refuse(_txn: Transaction, record: VolumeRecord | SnapshotRecord) -> None:
        raise ConflictError(f"not now, {record.name}")

    with pytest.raises(ConflictError, match=f"not now, trash-{volume}"):
        driver.run(pool.trash(VOLUME, volume, refuse))
    assert pool.find(VOLUME, "one") == volume
    driver.run(pool.trash(VOLUME, volume))
    with pytest.raises(ConflictError, match="not now, one"):
        driver.run(pool.restore(VOLUME, volume, as_before, refuse))
    with pytest.raises(NotFoundError):
        pool.find(VOLUME, "one")


def test_from_the_trash_it_is_deleted_for_good(driver: OpenDriver) -> None:
    pool = driver.pool
    volume = driver.volume("one").id
    driver.write(volume, 0, b"gone")
    snapshot = driver.run(pool.create_snapshot(volume, "shot")).id
    driver.run(pool.trash(VOLUME, volume))
    driver.run(pool.trash(SNAPSHOT, snapshot))
    driver.run(pool.delete_volume(volume))
    driver.run(pool.delete_snapshot(snapshot))
    with pool.nodes() as nodes:
        for kind, node in ((VOLUME, volume), (SNAPSHOT, snapshot)):
            with pytest.raises(NotFoundError):
                record_of(nodes, kind, node)
        assert nodes.name_is_free(VOLUME, f"trash-{volume}")
    assert driver.run(pool.check()).problems == ()


@pytest.mark.parametrize("driver", ["local", "rbd"], indirect=True)
def test_the_trash_survives_the_process(driver: OpenDriver) -> None:
    volume = driver.volume("one").id
    driver.write(volume, 0, b"kept", flush=True)
    driver.run(driver.pool.trash(VOLUME, volume))
    driver.die_and_open()
    with pytest.raises(NotFoundError):
        driver.pool.find(VOLUME, "one")
    assert driver.run(driver.pool.check()).problems == ()
    driver.run(driver.pool.restore(VOLUME, volume, as_before))
    assert driver.of_volume(volume) == b"kept"


def test_what_emptying_would_free_is_told(driver: OpenDriver) -> None:
    """What a volume shows too is not among it."""
    pool = driver.pool
    volume = driver.volume("one", 2 * MIB).id
    driver.write(volume, 0, b"shared")
    snapshot = driver.run(pool.create_snapshot(volume, "shot")).id
    driver.write(volume, 1, b"volume's")
    other = driver.volume("other").id
    driver.write(other, 0, b"other's")
    assert driver.run(pool.shares(frozenset())).trash_bytes == 0
    before = driver.run(pool.shares(frozenset()))
    driver.run(pool.trash(VOLUME, other))
    driver.run(pool.trash(SNAPSHOT, snapshot))
    found = driver.run(pool.shares(frozenset()))
    unit = pool.features.hole_bytes
    of_other = min(unit, MIB)
    copied = 0 if pool.features.shares_blocks else min(unit, 2 * MIB)
    assert found.trash_bytes == of_other + copied
    assert found.volumes_bytes == before.volumes_bytes - of_other
    assert found.snapshots_bytes == 0
