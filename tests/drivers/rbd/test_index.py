"""SharedIndex: one gateway's view of the log, and answers that never come."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from bockd.drivers.rbd import index as index_module
from bockd.drivers.rbd.entries import MAX_ENTRY_BYTES, Entry, encode_entry
from bockd.drivers.rbd.index import OutcomeUnknownError, SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.drivers.rbd.objects import Change, NoAnswerError
from bockd.drivers.rbd.replica import ReplicaTransaction
from bockd.errors import (
    ConflictError,
    DamagedError,
    InvalidRequestError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from bockd.index.keys import id_key
from bockd.index.tables import declared_tables, stand_in
from bockd.pool.index import Index
from bockd.pool.nodes import NAMES, VOLUMES

from .indexed import IDENTITY, LAST, Open, Unruly, entry, gateways, keys, names, put, unruly
from .memory import LateObjects, MemoryObjects


@pytest.fixture
def objects() -> Unruly:
    return unruly()


@pytest.fixture
def gateway(objects: Unruly, tmp_path: Path) -> Iterator[Open]:
    yield from gateways(objects, tmp_path)


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
