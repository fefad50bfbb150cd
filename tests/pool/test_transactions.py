"""Records that others keep beside the pool's change in the same transaction, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from bockd.errors import ConflictError
from bockd.index.tables import Table
from bockd.model import MIB, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.runtime.steps import Steps
from tests.pool.opendriver import OpenDriver

NOTES = Table(b"test-notes")

Noting = Callable[[Transaction, Any], None]


@dataclass
class Scene:
    """A volume with a snapshot and later content, and a second volume."""

    driver: OpenDriver
    volume: VolumeId
    other: VolumeId
    snapshot: SnapshotId

    def content(self) -> list[bytes]:
        return [
            self.driver.of_volume(self.volume),
            self.driver.of_volume(self.other),
            self.driver.of_snapshot(self.snapshot),
        ]


@pytest.fixture
def scene(driver: OpenDriver) -> Scene:
    volume, other = driver.volume("one").id, driver.volume("other").id
    driver.write(volume, 0, b"then")
    snapshot = driver.run(driver.pool.create_snapshot(volume, "s")).id
    driver.write(volume, 0, b"now")
    driver.write(other, 0, b"other")
    return Scene(driver, volume, other, snapshot)


def _name(_nodes: Nodes, node: int) -> str:
    return f"made-{node}"


OPERATIONS: dict[str, Callable[[Scene, Noting], Steps[Any]]] = {
    "create": lambda s, noting: s.driver.pool.create_volume("new", MIB, None, noting),
    "clone": lambda s, noting: s.driver.pool.create_volume("new", None, s.snapshot, noting),
    "extend": lambda s, noting: s.driver.pool.extend_volume(s.volume, 2 * MIB, noting),
    "revert": lambda s, noting: s.driver.pool.revert_volume(s.volume, s.snapshot, noting),
    "fill": lambda s, noting: s.driver.pool.fill_volume(s.other, s.snapshot, noting),
    "freeze": lambda s, noting: s.driver.pool.freeze_volume(s.other, _name, noting),
    "reopen": lambda s, noting: s.driver.pool.reopen_volume(s.volume, noting),
    "delete": lambda s, noting: s.driver.pool.delete_volume(s.other, noting),
    "snapshot": lambda s, noting: s.driver.pool.create_snapshot(s.volume, "t", noting),
    "delete snapshot": lambda s, noting: s.driver.pool.delete_snapshot(s.snapshot, noting),
}


def notes(scene: Scene) -> list[tuple[bytes, bytes]]:
    with scene.driver.pool.index.reading() as txn:
        return list(txn.scan(NOTES, b"", b"\xff"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_noted_in_the_transaction_is_there_with_the_change(
    scene: Scene, operation: str
) -> None:
    def note(txn: Transaction, record: Any) -> None:
        txn.put(NOTES, b"k", record.name.encode())

    before = scene.driver.listing()
    scene.driver.run(OPERATIONS[operation](scene, note))
    (found,) = notes(scene)
    assert found[0] == b"k"
    assert found[1] in (b"new", b"one", b"other", b"t", b"s") or found[1].startswith(b"made-")
    if operation not in ("revert", "reopen"):  # which the listing does not show
        assert scene.driver.listing() != before


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_the_transaction_raises_undoes_the_operation(scene: Scene, operation: str) -> None:
    def refuse(txn: Transaction, record: Any) -> None:
        txn.put(NOTES, b"k", record.name.encode())
        raise ConflictError("not so")

    before, content = scene.driver.listing(), scene.content()
    with pytest.raises(ConflictError, match="not so"):
        scene.driver.run(OPERATIONS[operation](scene, refuse))
    assert (scene.driver.listing(), scene.content()) == (before, content)
    assert notes(scene) == []
    report = scene.driver.run(scene.driver.pool.check())
    assert report.clean, report.problems


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_transaction_sees_the_change_that_it_belongs_to(scene: Scene, operation: str) -> None:
    seen: list[bool] = []

    def look(txn: Transaction, record: Any) -> None:
        nodes = Nodes(txn)
        ids = {int(one.id) for one in nodes.volumes()} | {int(one.id) for one in nodes.snapshots()}
        seen[:] = [record.id in ids]

    scene.driver.run(OPERATIONS[operation](scene, look))
    assert seen == [not operation.startswith("delete")]


def test_an_update_that_raises_changes_nothing(driver: OpenDriver) -> None:
    def change(txn: Transaction) -> None:
        txn.put(NOTES, b"k", b"v")
        raise ConflictError("no")

    driver.pool.index.update(lambda txn: txn.put(NOTES, b"a", b"1"))
    with pytest.raises(ConflictError):
        driver.pool.index.update(change)
    with driver.pool.index.reading() as txn:
        assert list(txn.scan(NOTES, b"", b"z")) == [(b"a", b"1")]


def test_a_reader_sees_one_instant(driver: OpenDriver) -> None:
    with driver.pool.index.reading() as txn:
        driver.pool.index.update(lambda other: other.put(NOTES, b"k", b"v"))
        assert txn.get(NOTES, b"k") is None
    with driver.pool.index.reading() as txn:
        assert txn.get(NOTES, b"k") == b"v"


def test_a_table_is_scanned_in_the_order_of_its_keys(driver: OpenDriver) -> None:
    def fill(txn: Transaction) -> None:
        for key in (b"c", b"a", b"b", b"d"):
            txn.put(NOTES, key, key * 2)
        assert txn.delete(NOTES, b"d")
        assert not txn.delete(NOTES, b"d")

    driver.pool.index.update(fill)
    with driver.pool.index.reading() as txn:
        assert list(txn.keys(NOTES, b"", b"z")) == [b"a", b"b", b"c"]
        assert list(txn.scan(NOTES, b"b", b"c")) == [(b"b", b"bb")]
        assert list(txn.sound(NOTES)) == [(b"a", b"aa"), (b"b", b"bb"), (b"c", b"cc")]
        assert list(txn.sound(NOTES, b"b", b"c")) == [(b"b", b"bb")]
        assert txn.count(NOTES) == 3


def test_a_range_is_erased_as_a_whole_or_a_few_entries_at_a_time(driver: OpenDriver) -> None:
    def fill(txn: Transaction) -> None:
        for key in (b"a", b"b", b"c", b"d", b"e"):
            txn.put(NOTES, key, key)

    driver.pool.index.update(fill)
    assert driver.pool.index.update(lambda txn: txn.erase(NOTES, b"b", b"e", 2))
    with driver.pool.index.reading() as txn:
        assert list(txn.keys(NOTES, b"", b"z")) == [b"a", b"d", b"e"]
    assert not driver.pool.index.update(lambda txn: txn.erase(NOTES, b"b", b"e", 1))
    assert not driver.pool.index.update(lambda txn: txn.erase(NOTES, b"b", b"e"))
    with driver.pool.index.reading() as txn:
        assert list(txn.keys(NOTES, b"", b"z")) == [b"a", b"e"]
