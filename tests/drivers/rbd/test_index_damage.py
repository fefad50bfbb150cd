"""SharedIndex: damage in the cluster, and trouble with this machine's replica."""

from __future__ import annotations

import resource
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from bockd.drivers.rbd.entries import Entry, encode_entry
from bockd.drivers.rbd.replica import Replica, ReplicaTransaction
from bockd.errors import DamagedError, DeviceError, NoSpaceError, PoolFormatError

from .indexed import Open, Unruly, gateways, keys, names, put, unruly


@pytest.fixture
def objects() -> Unruly:
    return unruly()


@pytest.fixture
def gateway(objects: Unruly, tmp_path: Path) -> Iterator[Open]:
    yield from gateways(objects, tmp_path)


# -- damage ------------------------------------------------------------------------------------


def damaged_log(objects: Unruly, damage: str) -> tuple[type[Exception], str]:
    """Damage version 3 of five."""
    key = f"l/{3:016}"
    if damage == "missing":
        del keys(objects)[key]
        return DamagedError, "has lost its version 3"
    if damage == "newer":
        data = keys(objects)[key]
        body = data[8:]
        keys(objects)[key] = struct.pack(">II", 2, zlib.crc32(b"3 2" + body)) + body
        return PoolFormatError, "version 3 of the index in Ceph has format 2"
    keys(objects)[key] = keys(objects)[key][:-1] + b"?"
    return DamagedError, "version 3 of the index in Ceph fails its checksum"


@pytest.mark.parametrize("damage", ["missing", "newer", "changed"])
def test_nothing_after_damage_is_used(objects: Unruly, gateway: Open, damage: str) -> None:
    behind, ahead = gateway("a"), gateway("b")
    for number in range(5):
        ahead.update(put(b"%d" % number, b"v"))
    kind, words = damaged_log(objects, damage)
    before = dict(keys(objects))
    for use in (behind.refresh, lambda: behind.update(put(b"k", b"v")), lambda: gateway("c")):
        for _ in range(2):
            with pytest.raises(kind, match=words):
                use()
    assert keys(objects) == before
    assert set(names(behind)) <= {b"0", b"1"}


def test_one_that_was_ahead_of_the_damage_mends_it_with_a_dump(
    objects: Unruly, gateway: Open
) -> None:
    ahead = gateway("b")
    for number in range(5):
        ahead.update(put(b"%d" % number, b"v"))
    damaged_log(objects, "missing")
    ahead.dump()
    assert names(gateway("c")) == names(ahead)


def test_a_lost_piece_of_the_dump_in_force_is_damage(objects: Unruly, gateway: Open) -> None:
    here = gateway("a")
    here.update(put(b"k", b"v"))
    here.dump()
    [piece] = objects.objects
    data = objects.objects.pop(piece)
    with pytest.raises(DamagedError, match=r"lacks base.*, and what it holds is nowhere else"):
        gateway("b")
    objects.objects[piece] = data[:-1]
    with pytest.raises(DamagedError, match="a part of the index in Ceph, fails its checksum"):
        gateway("b")
    objects.objects[piece] = data
    assert names(gateway("b")) == {b"k": b"v"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([(b"names", b"", b"v")], "has a key of 0 bytes"),
        ([(b"names", bytes(512), b"v")], "has a key of 512 bytes"),
        ([(b"names", bytes(512), None)], "has a key of 512 bytes"),
        ([(b"", b"k", b"v")], "a table named b''"),
        ([(b"names\0", b"k", b"v")], "a table named"),
        ([(b".replica", b"version", b"9")], "a table named"),
        ([(b"t%d" % number, b"k", b"v") for number in range(256)], "more than 256 tables"),
    ],
)
def test_an_entry_that_no_replica_can_take_is_refused(
    objects: Unruly, gateway: Open, changes: list[tuple[bytes, bytes, bytes | None]], words: str
) -> None:
    here = gateway("a")
    data = encode_entry(1, Entry("c" * 16, 1, 1.0, changes))
    keys(objects).update({"v": b"1", "l/0000000000000001": data})
    with pytest.raises(DamagedError, match=words):
        here.refresh()
    assert names(here) == {}


# -- this machine's trouble --------------------------------------------------------------------


def failing_commits(monkeypatch: pytest.MonkeyPatch, message: str, times: int) -> None:
    """The next commits that carry a version fail."""
    set_version = ReplicaTransaction.set_version
    left = [times]

    def fail(self: ReplicaTransaction, version: int) -> None:
        if left[0]:
            left[0] -= 1
            raise lmdb.DiskError(message)
        set_version(self, version)

    monkeypatch.setattr(ReplicaTransaction, "set_version", fail)


@pytest.mark.parametrize("message", ["No space left on device", "Input/output error"])
def test_a_change_that_the_replica_cannot_take_is_made_all_the_same(
    gateway: Open,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    message: str,
) -> None:
    index = gateway("a")
    index.update(put(b"1", b"v"))
    failing_commits(monkeypatch, message, 1)
    index.update(put(b"2", b"v"))
    assert "a new copy of the index is made" in caplog.text
    assert names(index) == {b"1": b"v", b"2": b"v"}


def test_a_replica_that_is_behind_is_not_read_until_there_is_a_new_one(
    gateway: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = gateway("a")
    index.update(put(b"1", b"v"))
    failing_commits(monkeypatch, "No space left on device", 2)
    index.update(put(b"2", b"v"))
    with pytest.raises(DeviceError, match="could not be written, so it is not read"):
        names(index)
    index.refresh()
    assert names(index) == {b"1": b"v", b"2": b"v"}


def test_a_file_that_must_not_grow_stops_reading_only_until_it_may(
    objects: Unruly, gateway: Open, tmp_path: Path
) -> None:
    """LMDB's own commits fail here, in the middle of their writes."""
    index = gateway("a")
    index.update(put(b"1", b"v"))
    [data] = (tmp_path / "a").glob("*/data.mdb")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (data.stat().st_size + 65536, usual[1]))
    try:
        index.update(put(b"2", bytes(1 << 20)))
        with pytest.raises(DeviceError, match="could not be written, so it is not read"):
            names(index)
        with pytest.raises(DeviceError):
            index.refresh()
        with pytest.raises(DeviceError):
            index.update(put(b"3", b"v"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    index.refresh()
    assert names(index) == {b"1": b"v", b"2": bytes(1 << 20)}
    index.update(put(b"3", b"v"))
    assert keys(objects)["v"] == b"3"


def test_a_refresh_that_fails_is_tried_again(
    gateway: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = gateway("a"), gateway("b")
    here.update(put(b"1", b"v"))
    failing_commits(monkeypatch, "No space left on device", 1)
    with pytest.raises(NoSpaceError, match="no room for the copy of the index"):
        there.refresh()
    assert names(there) == {}
    there.refresh()
    assert names(there) == {b"1": b"v"}


def test_what_a_former_run_left_is_removed_and_nothing_else(gateway: Open, tmp_path: Path) -> None:
    (tmp_path / "a" / "7").mkdir(parents=True)
    (tmp_path / "a" / "7" / "data.mdb").write_bytes(b"old")
    (tmp_path / "a" / "journal").mkdir()
    index = gateway("a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"1", "journal"}
    index.close()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"journal"}


def test_a_replica_goes_when_its_last_reader_does(tmp_path: Path) -> None:
    replica = Replica.create(tmp_path / "one")
    assert replica.enter()
    replica.retire()
    with replica.reading() as txn:
        assert txn.version == 0
    replica.leave()
    assert not (tmp_path / "one").exists()
    assert not replica.enter()
