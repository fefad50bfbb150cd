"""SharedIndex: one gateway's view of the log, and what it does when something goes wrong."""

from __future__ import annotations

import contextlib
import resource
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import lmdb
import pytest

from bockd.drivers.rbd import index as index_module
from bockd.drivers.rbd.entries import MAX_ENTRY_BYTES, Entry, decode_entry, encode_entry
from bockd.drivers.rbd.index import OutcomeUnknownError, SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.drivers.rbd.objects import Change, NoAnswerError
from bockd.drivers.rbd.replica import Replica, ReplicaTransaction
from bockd.errors import (
    ConflictError,
    DamagedError,
    DeviceError,
    InvalidRequestError,
    NoSpaceError,
    NotFoundError,
    PoolFormatError,
    UnavailableError,
)
from bockd.index.keys import id_key
from bockd.index.tables import declared_tables, stand_in
from bockd.pool.index import Index
from bockd.pool.nodes import NAMES, VOLUMES

from .memory import LateObjects, MemoryObjects

IDENTITY = "0" * 32
LAST = b"\xff" * 9

Open = Callable[[str], SharedIndex]


class Unruly(MemoryObjects):
    """A cluster that fails as it is told."""

    next_changes: list[Exception | str]
    """For each next change: an error, raised before it is carried out or, with "done", after."""

    def __init__(self) -> None:
        super().__init__()
        self.next_changes = []
        self.changes = 0

    def change(self, change: Change) -> bool:
        self.changes += 1
        order = self.next_changes.pop(0) if self.next_changes else "go"
        if isinstance(order, Exception):
            raise order
        made = super().change(change)
        if order == "done":
            raise NoAnswerError("no answer")
        return made


@pytest.fixture
def objects() -> Unruly:
    objects = Unruly()
    Log(objects).create(IDENTITY)
    return objects


@pytest.fixture
def gateway(objects: Unruly, tmp_path: Path) -> Iterator[Open]:
    """Opens a gateway; the argument is a digit for its run."""
    opened: list[SharedIndex] = []

    def open_one(digit: str) -> SharedIndex:
        opened.append(
            SharedIndex.open(
                Log(objects), tmp_path / digit, run=digit * 16, clock=lambda: 5.0, dump_every=10
            )
        )
        return opened[-1]

    yield open_one
    for index in opened:
        index.close()


def put(key: bytes, value: bytes) -> Callable[[ReplicaTransaction], None]:
    return lambda txn: txn.put(NAMES, key, value)


def names(index: SharedIndex) -> dict[bytes, bytes]:
    with index.reading() as txn:
        return dict(txn.scan(NAMES, b"", LAST))


def keys(objects: MemoryObjects) -> dict[str, bytes]:
    assert objects.keys is not None
    return objects.keys


def entry(objects: MemoryObjects, version: int) -> Entry:
    return decode_entry(version, keys(objects)[f"l/{version:016}"])


# -- what anybody waits for -------------------------------------------------------------------


class Silent(MemoryObjects):
    """A cluster that does not answer to the next change until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = threading.Event(), threading.Event()

    def change(self, change: Change) -> bool:
        self.asked.set()
        self.go_on.wait()
        return super().change(change)


def test_nobody_waits_for_all_who_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "TURN_SECONDS", 0.01)
    objects = Silent()
    Log(objects).create(IDENTITY)
    index = SharedIndex.open(Log(objects), tmp_path, run="a" * 16, clock=lambda: 5.0)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(index.update, put(b"first", b"1"))
        objects.asked.wait()
        with pytest.raises(UnavailableError, match=r"nothing is done.* after 0\.01 s"):
            index.update(put(b"second", b"2"))
        objects.go_on.set()
        first.result()
    index.update(put(b"third", b"3"))
    assert names(index) == {b"first": b"1", b"third": b"3"}
    index.close()


# -- what anybody sees -------------------------------------------------------------------------


def test_it_is_an_index_by_the_contract(gateway: Open) -> None:
    contract: Index = gateway("a")
    contract.update(lambda txn: txn.put(NAMES, b"k", b"v"))
    for view in (contract.reading, contract.examining):
        with view() as txn:
            assert list(txn.sound(NAMES)) == list(txn.scan(NAMES, b"", LAST)) == [(b"k", b"v")]
            assert list(txn.keys(NAMES, b"", LAST)) == [b"k"]
            assert (txn.count(NAMES), txn.count(VOLUMES)) == (1, 0)


def test_a_change_is_seen_here_at_once_and_elsewhere_after_a_refresh(gateway: Open) -> None:
    here, there = gateway("a"), gateway("b")
    here.update(put(b"k", b"v"))
    assert names(here) == {b"k": b"v"}
    assert names(there) == {}
    there.refresh()
    assert names(there) == {b"k": b"v"}


def test_a_change_is_made_on_top_of_what_others_have_committed(gateway: Open) -> None:
    here, there = gateway("a"), gateway("b")
    here.update(put(b"k", b"1"))

    def add(txn: ReplicaTransaction) -> bytes:
        value = (txn.get(NAMES, b"k") or b"") + b"2"
        txn.put(NAMES, b"k", value)
        return value

    assert there.update(add) == b"12"
    here.refresh()
    assert names(here) == {b"k": b"12"}


def test_a_change_that_was_overtaken_runs_again(gateway: Open) -> None:
    here, there = gateway("a"), gateway("b")
    seen: list[bytes | None] = []

    def change(txn: ReplicaTransaction) -> None:
        seen.append(txn.get(NAMES, b"k"))
        if len(seen) == 1:
            there.update(put(b"k", b"theirs"))
        txn.put(NAMES, b"k", b"mine")

    here.update(change)
    assert seen == [None, b"theirs"]
    assert names(here) == {b"k": b"mine"}


def test_a_change_that_is_always_overtaken_is_given_up(
    gateway: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "ATTEMPTS", 3)
    here, there = gateway("a"), gateway("b")

    def change(txn: ReplicaTransaction) -> None:
        there.update(put(b"k", b"theirs"))
        txn.put(NAMES, b"k", b"mine")

    with pytest.raises(UnavailableError, match="3 times before this one could"):
        here.update(change)
    there.refresh()
    assert names(there) == {b"k": b"theirs"}


def test_an_entry_has_what_was_changed_and_by_whom(objects: Unruly, gateway: Open) -> None:
    index = gateway("a")
    for number in range(6):
        index.update(put(b"%d" % number, b"v"))

    def change(txn: ReplicaTransaction) -> None:
        txn.put(NAMES, b"new", b"1")
        txn.put(NAMES, b"new", b"2")
        assert txn.delete(NAMES, b"0")
        assert not txn.delete(NAMES, b"0")
        assert not txn.delete(NAMES, b"never")
        assert txn.erase(NAMES, b"2", b"5", 2)
        assert not txn.erase(NAMES, b"4", b"5")

    index.update(change)
    made = entry(objects, 7)
    assert (made.author, made.seconds) == ("a" * 16, 5.0)
    assert made.changes == [
        (b"names", b"new", b"2"),
        (b"names", b"0", None),
        (b"names", b"2", None),
        (b"names", b"3", None),
        (b"names", b"4", None),
    ]


def test_a_change_of_nothing_appends_nothing(objects: Unruly, gateway: Open) -> None:
    index = gateway("a")
    assert index.update(lambda txn: txn.get(NAMES, b"k")) is None
    assert objects.changes == 0


def test_a_change_that_raises_leaves_nothing(objects: Unruly, gateway: Open) -> None:
    index = gateway("a")

    def change(txn: ReplicaTransaction) -> None:
        txn.put(NAMES, b"k", b"v")
        raise ConflictError("no")

    with pytest.raises(ConflictError):
        index.update(change)
    assert objects.changes == 0
    assert names(index) == {}
    index.update(put(b"k", b"v"))


def test_a_change_that_fits_no_entry_leaves_nothing(objects: Unruly, gateway: Open) -> None:
    index = gateway("a")
    with pytest.raises(InvalidRequestError, match="change less at a time"):
        index.update(put(b"k", bytes(MAX_ENTRY_BYTES)))
    assert objects.changes == 0
    assert names(index) == {}


def test_tables_that_only_others_know_are_kept(objects: Unruly, gateway: Open) -> None:
    """A newer bockd's, whose gateways serve the pool together with ours."""
    foreign = Entry("c" * 16, 1, 1.0, [(b"of-the-future", b"k", b"v"), (b"names", b"k", b"v")])
    here = gateway("a")
    Log(objects).read(0)
    keys(objects).update({"v": b"1", "l/0000000000000001": encode_entry(1, foreign)})
    here.refresh()
    here.dump()
    other = gateway("b")
    with other._enter().snapshot() as (version, records):
        assert version == 1
        assert list(records) == [(b"names", b"k", b"v"), (b"of-the-future", b"k", b"v")]
    other._enter().leave()
    assert b"of-the-future" not in declared_tables()
    assert stand_in(b"of-the-future").seed != stand_in(b"of-the-past").seed


def test_without_a_log_opening_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        SharedIndex.open(Log(MemoryObjects()), tmp_path / "a", run="a" * 16, clock=lambda: 0.0)
    assert list((tmp_path).glob("**/data.mdb")) == []


def test_an_index_that_goes_is_damage_and_no_volume_that_is_not_found(
    objects: Unruly, gateway: Open
) -> None:
    index = gateway("a")
    objects.keys = None
    for call in (index.refresh, lambda: index.update(lambda txn: txn.put(NAMES, b"k", b"v"))):
        with pytest.raises(DamagedError, match="gone from the Ceph cluster"):
            call()

    def missing(_: ReplicaTransaction) -> None:
        raise NotFoundError("no such volume")

    Log(objects).create(IDENTITY)
    with pytest.raises(NotFoundError, match="no such volume"):
        gateway("b").update(missing)


# -- answers that never came -------------------------------------------------------------------

LOST = NoAnswerError("no answer")


def test_a_lost_answer_to_what_was_carried_out_is_found(objects: Unruly, gateway: Open) -> None:
    index = gateway("a")
    objects.next_changes = ["done"]
    index.update(put(b"k", b"v"))
    assert names(index) == {b"k": b"v"}
    assert keys(objects)["v"] == b"1"


def test_what_was_not_carried_out_cannot_come_later(objects: Unruly, gateway: Open) -> None:
    index = gateway("a")
    objects.next_changes = [LOST]
    with pytest.raises(UnavailableError, match="was not changed") as raised:
        index.update(put(b"k", b"v"))
    assert not isinstance(raised.value, OutcomeUnknownError)
    assert entry(objects, 1).changes == []
    index.update(put(b"k", b"w"))
    assert names(index) == {b"k": b"w"}


def test_what_another_gateway_overtook_runs_again(objects: Unruly, gateway: Open) -> None:
    here, there = gateway("a"), gateway("b")
    runs: list[None] = []

    def change(txn: ReplicaTransaction) -> None:
        txn.put(NAMES, b"mine", b"%d" % len(runs))
        if not runs:
            there.update(put(b"theirs", b"1"))
            objects.next_changes = [LOST]
        runs.append(None)

    here.update(change)
    assert names(here) == {b"theirs": b"1", b"mine": b"1"}


@pytest.mark.parametrize("second", [LOST, NoSpaceError("full")])
def test_what_cannot_be_found_out_is_said_to_be_unknown(
    objects: Unruly, gateway: Open, second: Exception
) -> None:
    index = gateway("a")
    objects.next_changes = [LOST, second]
    with pytest.raises(OutcomeUnknownError, match="look before you try again"):
        index.update(put(b"k", b"v"))
    assert names(index) == {}
    index.update(put(b"other", b"v"))
    assert names(index) == {b"other": b"v"}


@pytest.mark.parametrize("then", ["finds", "misses"])
def test_what_is_found_after_an_unknown_outcome_is_final(tmp_path: Path, then: str) -> None:
    objects = LateObjects()
    Log(objects).create(IDENTITY)
    index = SharedIndex.open(Log(objects), tmp_path, run="a" * 16, clock=lambda: 5.0)
    index.update(put(b"k", b"before"))
    objects.holding = True
    with pytest.raises(OutcomeUnknownError):
        index.update(put(b"k", b"after"))
    objects.holding = False
    if then == "finds":
        assert index.update(lambda txn: txn.get(NAMES, b"k")) == b"before"
    else:
        with pytest.raises(NotFoundError):
            index.update(lambda _txn: missing())
    assert objects.land() == [False, False]
    index.refresh()
    assert names(index) == {b"k": b"before"}
    changes = keys(objects)["v"]
    index.update(lambda txn: txn.get(NAMES, b"k"))
    assert keys(objects)["v"] == changes  # once is enough
    index.close()


def missing() -> None:
    raise NotFoundError("it is not there")


def test_what_came_late_is_found(tmp_path: Path) -> None:
    objects = LateObjects()
    Log(objects).create(IDENTITY)
    index = SharedIndex.open(Log(objects), tmp_path, run="a" * 16, clock=lambda: 5.0)
    objects.holding = True
    with pytest.raises(OutcomeUnknownError):
        index.update(put(b"k", b"after"))
    objects.holding = False
    assert objects.land() == [True, False]
    assert index.update(lambda txn: txn.get(NAMES, b"k")) == b"after"
    assert keys(objects)["v"] == b"1"
    index.close()


def test_who_was_overtaken_by_a_dump_too_still_sees_by_whom(gateway: Open) -> None:
    here, there = gateway("a"), gateway("b")
    runs: list[None] = []

    def change(txn: ReplicaTransaction) -> None:
        txn.put(NAMES, b"mine", b"%d" % len(runs))
        if not runs:
            for number in range(3):
                there.update(put(b"theirs", b"%d" % number))
            there.dump()
        runs.append(None)

    here.update(change)
    assert names(here) == {b"theirs": b"2", b"mine": b"1"}


def test_what_very_many_changes_have_followed_is_unknown(gateway: Open) -> None:
    here, there = gateway("a"), gateway("b")

    def change(txn: ReplicaTransaction) -> None:
        txn.put(NAMES, b"mine", b"1")
        for _ in range(6):
            there.update(put(b"theirs", b"1"))
        there.dump()

    with pytest.raises(OutcomeUnknownError, match="changed it very often since"):
        here.update(change)
    here.refresh()
    assert names(here) == {b"theirs": b"1"}


def test_a_refusal_of_the_cluster_changes_nothing(objects: Unruly, gateway: Open) -> None:
    index = gateway("a")
    objects.next_changes = [NoSpaceError("full")]
    with pytest.raises(NoSpaceError):
        index.update(put(b"k", b"v"))
    assert objects.changes == 1
    assert names(index) == {}
    index.update(put(b"k", b"v"))


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


# -- dumps -------------------------------------------------------------------------------------


def entries(objects: MemoryObjects) -> int:
    return sum(key.startswith("l/") for key in keys(objects))


def test_who_commits_the_tenth_version_has_a_dump_due(objects: Unruly, gateway: Open) -> None:
    here, there = gateway("a"), gateway("b")
    for number in range(10):
        assert not here.dump_due
        here.update(put(b"%d" % number, b"v"))
    there.refresh()
    assert here.dump_due
    assert not there.dump_due
    here.dump()
    assert not here.dump_due
    assert entries(objects) == 5  # some stay
    assert names(gateway("c")) == names(here)


def test_when_that_one_does_not_dump_others_do(objects: Unruly, gateway: Open) -> None:
    here, there = gateway("a"), gateway("b")
    for number in range(16):
        here.update(put(b"%d" % number, b"v"))
    there.refresh()
    assert there.dump_due
    there.dump()
    here.refresh()
    assert not here.dump_due
    assert not there.dump_due


def test_the_log_stays_short_even_if_nobody_dumps(objects: Unruly, gateway: Open) -> None:
    here = gateway("a")
    for number in range(50):
        here.update(put(b"%d" % number, b"v"))
        assert entries(objects) <= 25
    assert len(objects.objects) == 1
    assert names(gateway("b")) == names(here)


def test_a_full_cluster_goes_on_without_dumps_for_long(
    objects: Unruly,
    gateway: Open,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[str] = []

    def full(name: str, data: bytes) -> None:
        tried.append(name)
        raise NoSpaceError(f"{name}: full")

    monkeypatch.setattr(objects, "write", full)
    monkeypatch.setattr(index_module, "MAX_ENTRIES", 40)
    here = gateway("a")
    for number in range(40):
        here.update(put(b"%d" % number, b"v"))
    assert "the index in Ceph was not dumped" in caplog.text
    assert len(tried) == 4  # at 20 entries, and after each five
    assert [key for key in keys(objects) if key.startswith("d/")] == []
    with pytest.raises(NoSpaceError):
        here.update(put(b"k", b"v"))
    assert entries(objects) == 40
    monkeypatch.undo()
    here.update(put(b"k", b"v"))
    assert entries(objects) == 6


def test_one_that_was_away_for_long_begins_with_the_dump(objects: Unruly, gateway: Open) -> None:
    away, here = gateway("a"), gateway("b")
    away.update(put(b"old", b"v"))
    here.update(lambda txn: txn.delete(NAMES, b"old"))
    for number in range(12):
        here.update(put(b"%d" % number, b"v"))
    here.dump()
    here.update(put(b"after", b"v"))
    with away.reading() as before:
        away.refresh()
        assert dict(before.scan(NAMES, b"", LAST)) == {b"old": b"v"}  # one instant
    assert names(away) == names(here)


def test_a_dump_that_is_replaced_while_it_is_loaded_is_left(
    objects: Unruly, gateway: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = gateway("a")
    here.update(put(b"1", b"v"))
    here.dump()
    read = objects.read

    def first_replaced(name: str, limit: int) -> bytes | None:
        monkeypatch.setattr(objects, "read", read)
        here.update(put(b"2", b"v"))
        here.dump()
        return read(name, limit)

    monkeypatch.setattr(objects, "read", first_replaced)
    assert names(gateway("b")) == {b"1": b"v", b"2": b"v"}


def test_dumps_that_are_always_replaced_are_not_loaded_for_ever(
    objects: Unruly, gateway: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = gateway("a")
    here.update(put(b"1", b"v"))
    here.dump()
    read = objects.read

    def replaced(name: str, limit: int) -> bytes | None:
        here.update(put(b"2", b"v"))
        here.dump()
        return read(name, limit)

    monkeypatch.setattr(objects, "read", replaced)
    with pytest.raises(UnavailableError, match="faster than this gateway can load it"):
        gateway("b")
    assert list((tmp_path / "b").iterdir()) == []


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


# -- threads -----------------------------------------------------------------------------------


def test_threads_of_several_gateways_change_dump_and_read_at_once(gateway: Open) -> None:
    both = [gateway("a"), gateway("b")]
    done = threading.Event()
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - shown at the end
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def change(index: SharedIndex, thread: int) -> None:
        for number in range(40):
            token = b"%d of %d" % (number, thread)

            def add(txn: ReplicaTransaction, token: bytes = token) -> None:
                if txn.get(NAMES, token) is None:  # it may be there after an unknown outcome
                    txn.put(NAMES, token, b"")
                    txn.put(VOLUMES, id_key(txn.count(VOLUMES) + 1), token)

            while True:
                with contextlib.suppress(OutcomeUnknownError):
                    index.update(add)
                    break

    def follow(index: SharedIndex) -> None:
        seen = 0
        while not done.is_set():
            index.refresh()
            with index.reading() as txn:
                assert txn.count(VOLUMES) >= seen
                seen = txn.count(VOLUMES)
            if index.dump_due:
                index.dump()

    changing = [guarded(partial(change, index, thread)) for thread, index in enumerate(both * 2)]
    following = [guarded(partial(follow, index)) for index in both]
    for thread in changing:
        thread.join()
    done.set()
    for thread in following:
        thread.join()
    assert errors == []
    for index in both:
        index.refresh()
        with index.reading() as txn:
            assert [key for key, _ in txn.scan(VOLUMES, b"", LAST)] == [
                id_key(number) for number in range(1, 161)
            ]
