"""Records that older and newer code wrote, read as the local driver's and as any pool's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from bockd.drivers.local.format.catalogue import (
    Catalogue,
    LocalSnapshotRecord,
    LocalVolumeRecord,
)
from bockd.index.ballast import Ballast
from bockd.index.index import LmdbIndex
from bockd.index.keys import id_key
from bockd.model import LayerId, MapId, SnapshotId, VolumeId
from bockd.pool.nodes import SNAPSHOTS, VOLUMES, Nodes
from bockd.pool.records import SnapshotRecord, VolumeRecord

# The fields in the order in which they were stored before drivers had records of their own.
VOLUME = (
    b'{"id":7,"name":"v","size_bytes":8192,"map":3,"head":4,"created_at":1.5,"from_snapshot":2,'
    b'"generation":5,"segment":6,"opened":true,"failed":"lost"%s}'
)
SNAPSHOT = b'{"id":8,"name":"s","volume":7,"size_bytes":8192,"map":9,"created_at":2.5%s}'

ENDINGS = {
    "without content_bytes": (b"", None),
    "with content_bytes": (b',"content_bytes":5000', 5000),
    "of newer code": (b',"content_bytes":null,"colour":{"of":["the",1]}', None),
}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LmdbIndex]:
    (tmp_path / "index").mkdir()
    index = LmdbIndex.open(tmp_path / "index", Ballast(tmp_path / "ballast").release)
    yield index
    index.close()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_volume_reads_the_same_as_local_and_as_neutral(index: LmdbIndex, ending: str) -> None:
    more, content_bytes = ENDINGS[ending]
    index.update(lambda txn: txn.put(VOLUMES, id_key(7), VOLUME % more))
    expected = LocalVolumeRecord(
        id=VolumeId(7),
        name="v",
        size_bytes=8192,
        created_at=1.5,
        from_snapshot=SnapshotId(2),
        failed="lost",
        content_bytes=content_bytes,
        map=MapId(3),
        head=LayerId(4),
        generation=5,
        segment=6,
        opened=True,
    )
    neutral = VolumeRecord(**{f.name: getattr(expected, f.name) for f in fields(VolumeRecord)})
    with index.reading() as txn:
        local, nodes = Catalogue(txn), Nodes(txn)
        assert [local.volume(VolumeId(7)), *local.volumes(), *local.sound_volumes()] == [
            expected
        ] * 3
        assert [nodes.volume(VolumeId(7)), *nodes.volumes(), *nodes.sound_volumes()] == [
            neutral
        ] * 3


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_snapshot_reads_the_same_as_local_and_as_neutral(index: LmdbIndex, ending: str) -> None:
    more, content_bytes = ENDINGS[ending]
    index.update(lambda txn: txn.put(SNAPSHOTS, id_key(8), SNAPSHOT % more))
    expected = LocalSnapshotRecord(
        id=SnapshotId(8),
        name="s",
        volume=VolumeId(7),
        size_bytes=8192,
        created_at=2.5,
        content_bytes=content_bytes,
        map=MapId(9),
    )
    neutral = SnapshotRecord(**{f.name: getattr(expected, f.name) for f in fields(SnapshotRecord)})
    of = SnapshotId(8)
    with index.reading() as txn:
        local, nodes = Catalogue(txn), Nodes(txn)
        assert [local.snapshot(of), *local.snapshots(), *local.sound_snapshots()] == [expected] * 3
        assert [nodes.snapshot(of), *nodes.snapshots(), *nodes.sound_snapshots()] == [neutral] * 3


def test_a_local_volume_written_now_has_the_same_fields_as_before(index: LmdbIndex) -> None:
    more = b',"content_bytes":null,"limits":null,"profile":null,"trashed":null'
    index.update(lambda txn: txn.put(VOLUMES, id_key(7), VOLUME % more))
    with index.reading() as txn:
        volume, before = Catalogue(txn).volume(VolumeId(7)), txn.get(VOLUMES, id_key(7))
    index.update(lambda txn: Catalogue(txn).put_volume(volume))
    with index.reading() as txn:
        after = txn.get(VOLUMES, id_key(7))
    assert before is not None
    assert after is not None
    assert sorted(after.strip(b"{}").split(b",")) == sorted(before.strip(b"{}").split(b","))
