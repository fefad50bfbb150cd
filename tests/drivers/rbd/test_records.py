"""Records of a pool in Ceph: what everybody reads of them, and who has a volume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from bockd.drivers.rbd.index import OutcomeUnknownError, SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.drivers.rbd.records import (
    DirtyAt,
    Discarded,
    Identity,
    RbdSnapshotRecord,
    RbdVolumeRecord,
    Tenures,
    encode_volume,
    put_record,
    snapshot_record,
    volume_record,
    volume_records,
)
from bockd.errors import (
    DamagedError,
    DirtyElsewhereError,
    InUseError,
    NotFoundError,
    VolumeTakenError,
)
from bockd.index.keys import id_key
from bockd.model import IoLimits, IoRate, SnapshotId, VolumeId
from bockd.pool.caches import LogReach
from bockd.pool.index import Index, Transaction
from bockd.pool.nodes import VOLUMES, Nodes, decode_record

from .memory import LateObjects
from .memoryindex import Records

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
LOGS = "directory"
DIRTY = DirtyAt("one", "2" * 16, 5.5)
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


def test_a_volume_of_an_older_bockd_is_cached_and_clean(txn: Transaction) -> None:
    fields = json.loads(encode_volume(VOLUME))
    for name in ("cache", "dirty_at", "discarded", "salvaged"):
        del fields[name]
    txn.put(VOLUMES, id_key(7), json.dumps(fields).encode())
    assert volume_record(txn, VolumeId(7)) == VOLUME


def test_a_volume_may_be_dirty_in_a_directory_that_is_not_known(txn: Transaction) -> None:
    fields = json.loads(encode_volume(replace(VOLUME, dirty_at=DIRTY)))
    assert fields["dirty_at"][5:] == ["", False]
    del fields["dirty_at"][5:]
    txn.put(VOLUMES, id_key(7), json.dumps(fields).encode())
    assert volume_record(txn, VolumeId(7)) == replace(VOLUME, dirty_at=DIRTY)


@pytest.mark.parametrize("name", ["seven", '"dirty_image":', "\\"])
def test_the_record_of_a_dirty_volume_is_read_as_it_was_written(
    txn: Transaction, name: str
) -> None:
    for record in (replace(VOLUME, name=name, dirty_at=DIRTY), replace(VOLUME, name=name)):
        put_record(txn, record)
        assert volume_record(txn, VolumeId(7)) == record
        assert [*volume_records(txn)] == [record]
        assert Nodes(txn).volume(VolumeId(7)).name == name


def test_a_dirty_volume_is_limited_and_its_limits_outlast_that(
    tenures: Tenures, txn: Transaction
) -> None:
    """Both write down what the other one knows nothing of."""
    epoch = tenures.begin(VOLUME, ONE, "address")
    assert epoch is not None
    tenures.mark_dirty(VOLUME.id, epoch, DIRTY, LOGS)
    limits = IoLimits(iops=IoRate(500, burst=2000, burst_seconds=30), iops_size=4096)
    Nodes(txn).limit_volume(VOLUME.id, limits)
    found = volume_record(txn, VOLUME.id)
    assert (found.limits, found.dirty_at, found.image) == (limits, DIRTY, VOLUME.image)
    tenures.mark_clean(VOLUME.id, epoch)
    assert volume_record(txn, VOLUME.id) == replace(found, dirty_at=None)
    assert Nodes(txn).volume(VOLUME.id).limits == limits


def test_a_bockd_that_knows_of_no_dirty_volumes_finds_the_record_damaged(txn: Transaction) -> None:
    """It cannot open the volume, nor store the record without the mark."""
    put_record(txn, replace(VOLUME, dirty_at=DIRTY))
    payload = txn.get(VOLUMES, id_key(7))
    assert payload is not None
    with pytest.raises(DamagedError, match="image"):
        decode_record(RbdVolumeRecord, payload)
    put_record(txn, VOLUME)
    payload = txn.get(VOLUMES, id_key(7))
    assert payload is not None
    assert decode_record(RbdVolumeRecord, payload) == VOLUME


@pytest.mark.parametrize(
    "payload", [b'{"dirty_image":"x","id":"seven"}', b'{"id":{"dirty_image":7}}']
)
def test_a_dirty_record_that_is_malformed_is_damaged(txn: Transaction, payload: bytes) -> None:
    txn.put(VOLUMES, id_key(7), payload)
    with pytest.raises(DamagedError):
        volume_record(txn, VolumeId(7))


def test_a_volume_that_is_dirty_at_another_gateway_is_not_begun(
    tenures: Tenures, txn: Transaction
) -> None:
    put_record(txn, VOLUME)
    epoch = tenures.begin(VOLUME, ONE, "address")
    assert epoch is not None
    seen = tenures.look(VolumeId(7))
    tenures.mark_dirty(VolumeId(7), epoch, DIRTY, LOGS)
    with pytest.raises(
        DirtyElsewhereError, match=r"gateway one .*Only if it is lost.*discard-cache"
    ):
        tenures.begin(seen, TWO, "other")
    assert tenures.look(VolumeId(7)).holder == "one"
    assert tenures.begin(seen, ONE, "again") == epoch + 1


def test_only_who_has_a_volume_says_that_it_is_dirty_or_clean(
    tenures: Tenures, txn: Transaction
) -> None:
    put_record(txn, VOLUME)
    epoch = tenures.begin(VOLUME, ONE, "address")
    assert epoch is not None
    for late in (epoch - 1, epoch + 1):
        with pytest.raises(VolumeTakenError):
            tenures.mark_dirty(VolumeId(7), late, DIRTY, LOGS)
    tenures.mark_dirty(VolumeId(7), epoch, DIRTY, LOGS)
    with pytest.raises(VolumeTakenError):
        tenures.mark_clean(VolumeId(7), epoch - 1)
    tenures.end(VolumeId(7), epoch)
    assert tenures.look(VolumeId(7)).dirty_at == DIRTY
    tenures.mark_clean(VolumeId(7), epoch)
    assert tenures.look(VolumeId(7)).dirty_at is None
    with pytest.raises(VolumeTakenError):
        tenures.mark_clean(VolumeId(9), 1)


@pytest.fixture
def late(tmp_path: Path) -> Iterator[tuple[LateObjects, Tenures]]:
    """A cluster that answers when it is told to, and tenures there, the first one begun."""
    objects = LateObjects()
    Log(objects).create("0" * 32)
    index = SharedIndex.open(Log(objects), tmp_path, run="a" * 16, clock=lambda: 5.0)
    index.update(lambda txn: put_record(txn, VOLUME))
    tenures = Tenures(index)
    assert tenures.begin(VOLUME, ONE, "address") == VOLUME.epoch + 1
    yield objects, tenures
    index.close()


def test_what_was_clean_once_and_was_not_answered_is_not_clean_later(
    late: tuple[LateObjects, Tenures],
) -> None:
    """The log would be removed as void, with what was answered since."""
    objects, tenures = late
    epoch = tenures.look(VOLUME.id).epoch
    tenures.mark_dirty(VOLUME.id, epoch, DIRTY, LOGS)
    objects.holding = True
    with pytest.raises(OutcomeUnknownError):
        tenures.mark_clean(VOLUME.id, epoch)
    objects.holding = False
    tenures.mark_dirty(VOLUME.id, epoch, DIRTY, LOGS)
    assert not any(objects.land())
    assert tenures.look(VOLUME.id).dirty_at == DIRTY


def test_what_was_dirty_once_and_was_not_answered_is_not_dirty_later(
    late: tuple[LateObjects, Tenures],
) -> None:
    """The volume would be refused, for a log that was removed."""
    objects, tenures = late
    epoch = tenures.look(VOLUME.id).epoch
    objects.holding = True
    with pytest.raises(OutcomeUnknownError):
        tenures.mark_dirty(VOLUME.id, epoch, DIRTY, LOGS)
    objects.holding = False
    tenures.mark_clean(VOLUME.id, epoch)
    assert not any(objects.land())
    assert tenures.look(VOLUME.id).dirty_at is None


def test_logs_are_counted_by_their_directories(tenures: Tenures, txn: Transaction) -> None:
    put_record(txn, VOLUME)
    epoch = tenures.begin(VOLUME, ONE, "address")
    assert epoch is not None
    assert tenures.logs_begun(LOGS) == 0
    for count in (1, 2):  # also that of a log whose first mark was not heard of
        tenures.mark_dirty(VOLUME.id, epoch, DIRTY, LOGS)
        assert tenures.logs_begun(LOGS) == count
    tenures.mark_clean(VOLUME.id, epoch)
    with pytest.raises(VolumeTakenError):
        tenures.mark_dirty(VOLUME.id, epoch + 1, DIRTY, LOGS)
    tenures.mark_dirty(VOLUME.id, epoch, DIRTY, "another")
    assert (tenures.logs_begun(LOGS), tenures.logs_begun("another")) == (2, 1)


def test_how_far_a_log_has_come_is_noted_of_what_is_dirty_in_it(
    tenures: Tenures, txn: Transaction
) -> None:
    put_record(txn, VOLUME)
    epoch = tenures.begin(VOLUME, ONE, "address")
    assert epoch is not None
    reach = LogReach(DIRTY.log, 3, 9)
    volume = VolumeId(7)
    tenures.mark_reach([(volume, epoch, reach), (VolumeId(9), epoch, reach)])
    assert tenures.look(volume).dirty_at is None
    tenures.mark_dirty(volume, epoch, DIRTY, LOGS)
    assert tenures.look(volume).dirty_at == DIRTY
    tenures.mark_reach([(volume, epoch - 1, reach), (volume, epoch, LogReach("other", 3, 9))])
    assert tenures.look(volume).dirty_at == DIRTY
    txn.put(VOLUMES, id_key(8), b"malformed")
    tenures.mark_reach([(VolumeId(8), epoch, reach), (volume, epoch, reach)])
    noted = tenures.look(volume).dirty_at
    assert noted is not None
    assert noted == DIRTY._replace(done=3, synced=9)
    assert noted.reach == reach
    # It is dirty in that log already, since then, and the log is not less far.
    tenures.mark_dirty(volume, epoch, DIRTY._replace(since=77.0), LOGS)
    assert tenures.look(volume).dirty_at == noted
    tenures.mark_clean(volume, epoch)
    tenures.mark_dirty(volume, epoch, DIRTY, LOGS)
    assert tenures.look(volume).dirty_at == DIRTY


def test_discarding_is_recorded_and_takes_the_volume_from_who_had_it(
    tenures: Tenures, txn: Transaction
) -> None:
    put_record(txn, replace(VOLUME, dirty_at=DIRTY, epoch=3, holder="one"))
    record = tenures.discard(tenures.look(VolumeId(7)), 99.0)
    assert record == tenures.look(VolumeId(7))
    assert (record.dirty_at, record.holder, record.epoch) == (None, None, 4)
    assert record.discarded == Discarded(99.0, "one", 5.5)
    with pytest.raises(VolumeTakenError):
        tenures.mark_clean(VolumeId(7), 3)
    with pytest.raises(InUseError):
        tenures.discard(record, 99.0)


def test_what_is_discarded_may_be_noted_further_meanwhile(
    tenures: Tenures, txn: Transaction
) -> None:
    put_record(txn, replace(VOLUME, dirty_at=DIRTY))
    seen = tenures.look(VolumeId(7))
    put_record(txn, replace(VOLUME, dirty_at=DIRTY._replace(done=3, synced=9)))
    assert tenures.discard(seen, 99.0).dirty_at is None


def test_what_became_dirty_anew_is_not_discarded(tenures: Tenures, txn: Transaction) -> None:
    put_record(txn, replace(VOLUME, dirty_at=DIRTY))
    seen = tenures.look(VolumeId(7))
    put_record(txn, replace(VOLUME, dirty_at=DirtyAt("one", "another", 5.5)))
    with pytest.raises(InUseError):
        tenures.discard(seen, 99.0)
