"""Records of a pool in Ceph: what everybody reads of them, and who has a volume."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from bockd.drivers.rbd.records import (
    Identity,
    RbdSnapshotRecord,
    RbdVolumeRecord,
    Tenures,
    put_record,
    snapshot_record,
    volume_record,
)
from bockd.errors import DamagedError, NotFoundError
from bockd.index.keys import id_key
from bockd.model import SnapshotId, VolumeId
from bockd.pool.index import Index, Transaction
from bockd.pool.nodes import VOLUMES, Nodes

from .takers import Records

ONE, TWO = Identity("one", "a" * 16), Identity("two", "b" * 16)
VOLUME = RbdVolumeRecord(
    id=VolumeId(7),
    name="seven",
    size_bytes=1 << 20,
    created_at=1.5,
    from_snapshot=None,
    failed=None,
    image="0" * 24,
    depth=2,
)
SNAPSHOT = RbdSnapshotRecord(
    id=SnapshotId(8),
    name="eight",
    volume=VolumeId(7),
    size_bytes=1 << 20,
    created_at=2.5,
    image="0" * 24,
    snap="1" * 24,
)


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def txn(records: Records) -> Transaction:
    return cast(Transaction, records)


@pytest.fixture
def tenures(records: Records, txn: Transaction) -> Tenures:
    put_record(txn, VOLUME)
    return Tenures(cast(Index, records))


def test_records_are_read_as_written_and_everybody_reads_their_neutral_fields(
    txn: Transaction,
) -> None:
    for absent in (
        lambda: volume_record(txn, VOLUME.id),
        lambda: snapshot_record(txn, SNAPSHOT.id),
    ):
        with pytest.raises(NotFoundError):
            absent()
    put_record(txn, VOLUME)
    put_record(txn, SNAPSHOT)
    assert volume_record(txn, VOLUME.id) == VOLUME
    assert snapshot_record(txn, SNAPSHOT.id) == SNAPSHOT
    assert Nodes(txn).volume(VOLUME.id).name == "seven"
    assert Nodes(txn).snapshot(SNAPSHOT.id).volume == VOLUME.id
    Nodes(txn).fail_volume(VOLUME.id, "why")
    assert volume_record(txn, VOLUME.id) == replace(VOLUME, failed="why")
    txn.put(VOLUMES, id_key(VOLUME.id), b"{}")
    with pytest.raises(DamagedError):
        volume_record(txn, VOLUME.id)


def test_a_tenure_begins_only_on_what_was_seen(tenures: Tenures, txn: Transaction) -> None:
    seen = tenures.look(VOLUME.id)
    assert tenures.begin(seen, ONE, "1.2.3.4:0/5") == 1
    assert tenures.look(VOLUME.id) == replace(
        VOLUME, holder="one", run=ONE.run, address="1.2.3.4:0/5", epoch=1
    )
    assert tenures.begin(seen, TWO, "1.2.3.4:0/6") is None
    again = tenures.look(VOLUME.id)
    put_record(txn, replace(again, image="f" * 24))  # it was reverted
    assert tenures.begin(again, TWO, "1.2.3.4:0/6") is None
    assert tenures.begin(tenures.look(VOLUME.id), TWO, "1.2.3.4:0/6") == 2


def test_a_tenure_ends_unless_another_one_has_begun(tenures: Tenures, txn: Transaction) -> None:
    tenures.begin(tenures.look(VOLUME.id), ONE, "1.2.3.4:0/5")
    tenures.begin(tenures.look(VOLUME.id), TWO, "1.2.3.4:0/6")
    tenures.end(VOLUME.id, 1)
    assert tenures.look(VOLUME.id).holder == "two"
    tenures.end(VOLUME.id, 2)
    assert tenures.look(VOLUME.id) == replace(VOLUME, epoch=2)
    tenures.end(VolumeId(9), 1)  # it is gone
