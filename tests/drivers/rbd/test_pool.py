"""Several gateways of one pool in Ceph: what they open, freeze, extend and change together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import (
    BockdError,
    ConflictError,
    DamagedError,
    DeniedError,
    InUseError,
    NotFoundError,
    UnavailableError,
    VolumeTakenError,
)
from bockd.model import BLOCK_SIZE, MIB, NodeKind, SnapshotId, VolumeId
from bockd.pool.device import SharedDevice
from bockd.pool.index import Transaction
from bockd.pool.pool import nothing_more
from bockd.runtime.steps import Steps
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.pooldriver import RbdDriver

need_modules()

from bockd.drivers.rbd.claims import RbdClaim  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.messages import Manner  # noqa: E402
from bockd.drivers.rbd.pool import RbdPool  # noqa: E402
from bockd.drivers.rbd.records import put_record, snapshot_record, volume_record  # noqa: E402
from tests.drivers.rbd.pools import images, problems, record, snap_of, snaps  # noqa: E402


@pytest.fixture
def here(rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[RbdDriver]:
    one = RbdDriver(replace(rbd_namespace, gateway="here"), tmp_path / "here")
    yield one
    one.close()


@pytest.fixture
def there(rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[RbdDriver]:
    one = RbdDriver(replace(rbd_namespace, gateway="there"), tmp_path / "there")
    yield one
    one.close()


def test_gateways_see_each_others_volumes(here: RbdDriver, there: RbdDriver) -> None:
    volume = here.volume("one").id
    there.rbd.index.refresh()
    assert there.pool.find(NodeKind.VOLUME, "one") == volume
    with pytest.raises(ConflictError):
        there.volume("one")
    assert there.volume("two").id != volume
    here.rbd.index.refresh()
    assert here.listing() == there.listing()
    assert here.rbd.identity.gateway == "here"
    assert here.rbd.identity.run != there.rbd.identity.run


def test_an_idle_volume_moves_to_who_opens_it(here: RbdDriver, there: RbdDriver) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"here")
    assert record(there, volume).holder == "here"
    assert there.of_volume(volume) == b"here"
    assert not here.pool.is_open(NodeKind.VOLUME, volume)
    assert (record(here, volume).holder, record(here, volume).epoch) == ("there", 2)
    there.run(there.pool.close_idle(NodeKind.VOLUME, volume))
    assert record(here, volume).holder is None


def test_a_volume_in_use_moves_only_to_who_is_firm(here: RbdDriver, there: RbdDriver) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"here")
    device = here.run(here.pool.use(NodeKind.VOLUME, volume))
    there.rbd.index.refresh()
    with pytest.raises(InUseError, match="gateway here"):
        there.run(there.pool.use(NodeKind.VOLUME, volume))
    assert here.pool.users(NodeKind.VOLUME, volume) == 1
    asked: list[tuple[VolumeId, Manner]] = []

    async def note(one: VolumeId, manner: Manner) -> None:
        asked.append((one, manner))

    here.rbd.on_asked = note
    taken = there.run(there.pool.use(NodeKind.VOLUME, volume, firm=True))
    assert asked == [(volume, Manner.FIRM)]
    there.run(taken.write(0, memoryview(b"there".ljust(BLOCK_SIZE, b"."))))
    for steps in (device.write(0, memoryview(b"stale")), device.flush()):
        with pytest.raises(VolumeTakenError):
            here.run(steps)
    # Who uses it here again takes it back; who has not left yet does not count as one of these.
    there.pool.leave(NodeKind.VOLUME, volume)
    assert here.pool.users(NodeKind.VOLUME, volume) == 0
    again = here.run(here.pool.use(NodeKind.VOLUME, volume))
    assert again is not device
    here.pool.leave(NodeKind.VOLUME, volume)
    assert here.pool.users(NodeKind.VOLUME, volume) == 1
    here.pool.leave(NodeKind.VOLUME, volume)
    assert here.pool.users(NodeKind.VOLUME, volume) == 0
    assert here.of_volume(volume) == b"there"
    assert record(here, volume).epoch == 3


def test_a_gateway_that_was_shut_out_unasked_finds_out(
    here: RbdDriver, there: RbdDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"here")
    device = here.run(here.pool.use(NodeKind.VOLUME, volume))
    monkeypatch.setattr(there.rbd.session.bus, "ask", lambda _image, _manner: None)
    there.rbd.index.refresh()
    there.write(volume, 0, b"there")
    # By what it asks of the image...
    with pytest.raises(VolumeTakenError):
        here.run(device.read(0, memoryview(bytearray(BLOCK_SIZE))))
    assert not here.pool.is_open(NodeKind.VOLUME, volume)
    here.pool.leave(NodeKind.VOLUME, volume)
    # ... or by the record, before it is asked.
    here.run(here.pool.use(NodeKind.VOLUME, volume))
    there.write(volume, 0, b"there again")
    here.rbd.index.refresh()
    here.pool.leave(NodeKind.VOLUME, volume)
    assert here.of_volume(volume) == b"there again"


@pytest.mark.parametrize("where", ["record", "device", "front"])
def test_a_volume_that_cannot_be_shown_is_given_back(
    here: RbdDriver, there: RbdDriver, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = here.volume("one").id

    def fail(*_arguments: object, **_more: object) -> None:
        raise NotFoundError(f"no {where}")

    with monkeypatch.context() as patched:
        nodes = here.rbd.open_nodes
        if where == "record":
            # For opening, for what is dirty, and for what is shown.
            true, calls = nodes.record, chain([False, False, True], repeat(False))
            patched.setattr(nodes, "record", lambda one: (fail if next(calls) else true)(one))
        elif where == "device":
            patched.setattr("bockd.drivers.rbd.opennodes.RbdDevice", fail)
        else:
            patched.setattr(nodes.fronts, "of_volume", fail)
        with pytest.raises(NotFoundError, match=f"no {where}"):
            here.run(here.pool.use(NodeKind.VOLUME, volume))
    assert not here.pool.is_open(NodeKind.VOLUME, volume)
    assert record(here, volume).holder is None
    # It is not asked: nobody has the lock.
    monkeypatch.setattr(there.rbd.session.bus, "ask", None)
    there.rbd.index.refresh()
    there.write(volume, 0, b"there")


def test_a_volume_is_given_up_on_request(here: RbdDriver) -> None:
    volume = here.volume("one").id
    assert here.run(here.rbd.release_volume(volume, Manner.POLITE))
    here.run(here.pool.use(NodeKind.VOLUME, volume))
    assert not here.run(here.rbd.release_volume(volume, Manner.POLITE))
    assert here.pool.is_open(NodeKind.VOLUME, volume)
    assert here.run(here.rbd.release_volume(volume, Manner.FIRM))
    assert not here.pool.is_open(NodeKind.VOLUME, volume)
    assert record(here, volume).holder is None
    here.pool.leave(NodeKind.VOLUME, volume)


def test_any_gateway_freezes_and_extends_a_volume_that_another_one_serves(
    here: RbdDriver, there: RbdDriver
) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    device = here.run(here.pool.use(NodeKind.VOLUME, volume))
    there.rbd.index.refresh()
    snapshot = there.run(there.pool.create_snapshot(volume, "s")).id
    assert there.run(there.pool.extend_volume(volume, 3 * MIB)).size_bytes == 3 * MIB
    here.write(volume, 0, b"now")
    assert there.of_snapshot(snapshot) == b"then"
    assert device.size_bytes == MIB
    here.rbd.index.refresh()
    # Who joins sees its new size.
    here.write(volume, 3 * MIB // BLOCK_SIZE - 1, b"end")
    assert device.size_bytes == 3 * MIB
    assert record(here, volume).holder == "here"
    assert problems(here) == problems(there) == ()


REACHING: dict[str, Callable[[RbdDriver, VolumeId], Steps[Any]]] = {
    "extend": lambda d, v: d.pool.extend_volume(v, 2 * MIB),
    "snapshot": lambda d, v: d.pool.create_snapshot(v, "s"),
}


@pytest.mark.parametrize("change", REACHING)
def test_who_has_a_volume_and_does_not_answer_is_shut_out(
    here: RbdDriver, there: RbdDriver, change: str
) -> None:
    """It may have died, and librbd would wait for it."""
    volume = there.volume("one").id
    there.write(volume, 0, b"then")
    device = there.run(there.pool.use(NodeKind.VOLUME, volume))
    there.rbd.session.bus._end_watch()
    here.run(REACHING[change](here, volume))
    assert record(here, volume).holder is None
    with pytest.raises(VolumeTakenError):
        there.run(device.write(0, memoryview(b"stale")))
    assert here.of_volume(volume) == b"then"
    there.pool.leave(NodeKind.VOLUME, volume)


def test_a_snapshot_that_is_read_at_another_gateway_is_not_deleted(
    here: RbdDriver, there: RbdDriver
) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    device = here.run(here.pool.use(NodeKind.SNAPSHOT, snapshot))
    there.rbd.index.refresh()
    with pytest.raises(InUseError, match="gateway here"):
        there.run(there.pool.delete_snapshot(snapshot))
    into = bytearray(4)
    here.run(device.read(0, memoryview(into)))
    assert into == b"then"
    here.pool.leave(NodeKind.SNAPSHOT, snapshot)
    assert here.pool.is_open(NodeKind.SNAPSHOT, snapshot)
    there.run(there.pool.delete_snapshot(snapshot))
    assert not here.pool.is_open(NodeKind.SNAPSHOT, snapshot)


def test_a_snapshot_that_was_opened_while_it_was_deleted_is_closed(
    here: RbdDriver, there: RbdDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything of it is removed, so that nobody reads zeros."""
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    update = there.rbd.index.update
    opened: list[Any] = []

    def late(run: Callable[[Transaction], Any]) -> Any:
        opened.append(here.run(here.pool.use(NodeKind.SNAPSHOT, snapshot)))
        return update(run)

    monkeypatch.setattr(there.rbd.index, "update", late)
    there.rbd.index.refresh()
    there.run(there.pool.delete_snapshot(snapshot))
    assert not here.pool.is_open(NodeKind.SNAPSHOT, snapshot)
    with pytest.raises(BockdError):
        here.run(opened[0].read(0, memoryview(bytearray(BLOCK_SIZE))))
    here.pool.leave(NodeKind.SNAPSHOT, snapshot)
    assert snaps(there, record(there, volume).image) == []


CHANGES: dict[str, Callable[[RbdDriver, VolumeId, SnapshotId], Steps[Any]]] = {
    "delete": lambda d, v, s: d.pool.delete_volume(v),
    "revert": lambda d, v, s: d.pool.revert_volume(v, s),
    "fill": lambda d, v, s: d.pool.fill_volume(v, s, nothing_more),
    "freeze": lambda d, v, s: d.pool.freeze_volume(v, lambda _, node: f"n-{node}", nothing_more),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_clients_use_at_another_gateway_is_not_taken_from_them(
    here: RbdDriver, there: RbdDriver, change: str
) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    device = here.run(here.pool.use(NodeKind.VOLUME, volume))
    there.rbd.index.refresh()
    before, kept = there.listing(), images(there)
    with pytest.raises(InUseError, match="here"):
        there.run(CHANGES[change](there, volume, snapshot))
    assert (there.listing(), images(there)) == (before, kept)
    here.run(device.write(0, memoryview(b"now".ljust(BLOCK_SIZE, b"."))))
    here.pool.leave(NodeKind.VOLUME, volume)
    there.run(CHANGES[change](there, volume, snapshot))
    here.rbd.index.refresh()
    assert not here.pool.is_open(NodeKind.VOLUME, volume)
    if change in ("revert", "fill"):
        assert here.of_volume(volume) == b"then"
    else:
        with pytest.raises(NotFoundError):
            here.run(here.pool.use(NodeKind.VOLUME, volume))
    assert problems(there) == ()


MISSING: dict[str, dict[str, Any]] = {
    "conf": {"conf_file": Path("/missing/ceph.conf")},
    "keyring": {"keyring_file": Path("/missing/keyring")},
    "key": {"user": "nobody"},
    "pool": {"pool": "missing"},
}


@pytest.mark.parametrize("events", [True, False], ids=["events", "callbacks"])
@pytest.mark.parametrize("missing", MISSING)
def test_who_cannot_open_an_image_does_not_take_it_for_gone(
    here: RbdDriver,
    there: RbdDriver,
    missing: str,
    events: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"here")
    here.run(here.pool.use(NodeKind.VOLUME, volume))
    there.rbd.index.refresh()
    before = there.listing()
    monkeypatch.setattr("bockd.drivers.rbd.volumeimage.by_events", events)
    session = there.rbd.session
    broken = replace(there.settings, **MISSING[missing])
    open_claim = partial(RbdClaim, broken, session.cluster)
    monkeypatch.setattr(session, "taker", replace(session.taker, open_claim=open_claim))
    with pytest.raises((UnavailableError, DeniedError)):
        there.run(there.pool.delete_volume(volume))
    assert there.listing() == before
    assert record(there, volume).holder == "here"
    here.pool.leave(NodeKind.VOLUME, volume)


def test_nor_who_misses_what_the_image_needs(
    here: RbdDriver, there: RbdDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"here")
    there.rbd.index.refresh()

    def open_volume(_settings: RbdSettings, _name: str) -> None:
        raise NotFoundError("its parent")

    monkeypatch.setattr("bockd.drivers.rbd.claims.open_volume", open_volume)
    with pytest.raises(DamagedError, match="its parent"):
        there.run(there.pool.delete_volume(volume))
    assert record(there, volume).holder == "here"


ASKING: dict[str, Callable[[RbdPool, VolumeId, SnapshotId], Steps[Any]]] = {
    "use": lambda pool, volume, _: pool.use(NodeKind.VOLUME, volume),
    "extend": lambda pool, volume, _: pool.extend_volume(volume, 2 * MIB, nothing_more),
    "freeze": lambda pool, volume, _: pool.create_snapshot(volume, "later"),
    "measure": lambda pool, volume, _: pool.measure(NodeKind.VOLUME, volume),
    "read": lambda pool, _, snapshot: pool.use(NodeKind.SNAPSHOT, snapshot),
    "clone": lambda pool, _, snapshot: pool.create_volume("clone", None, snapshot),
    "compare": lambda pool, _, snapshot: pool.changes(snapshot, snapshot),
}


@pytest.mark.parametrize("asking", ASKING)
def test_what_has_lost_its_image_is_damaged_and_not_unknown(here: RbdDriver, asking: str) -> None:
    volume = here.volume("one").id
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id

    def lose(txn: Transaction) -> None:
        for one in (volume_record(txn, volume), snapshot_record(txn, snapshot)):
            put_record(txn, replace(one, image="0" * 24))

    kept = images(here)
    here.rbd.index.update(lose)
    with pytest.raises(DamagedError, match="data is lost"):
        here.run(ASKING[asking](here.rbd, volume, snapshot))
    assert images(here) == kept
    assert bool(here.rbd.open_nodes.refusals) == (asking == "use")
    # Once it is deleted, it is unknown.
    here.run(here.pool.delete_snapshot(snapshot))
    here.run(here.pool.delete_volume(volume))
    with pytest.raises(NotFoundError):
        here.run(ASKING[asking](here.rbd, volume, snapshot))


@pytest.mark.parametrize("change", ["delete", "revert", "fill", "freeze"])
def test_the_image_of_a_dead_gateway_may_be_gone(here: RbdDriver, change: str) -> None:
    volume, other = here.volume("one").id, here.volume("other").id
    here.write(volume, 0, b"then")
    here.run(here.pool.close_idle(NodeKind.VOLUME, volume))
    source = other if change == "fill" else volume
    snapshot = here.run(here.pool.create_snapshot(source, "s")).id
    seen = record(here, volume)
    lost = replace(seen, holder="dead", run="d" * 16, address="127.0.0.1:0/1", image="0" * 24)
    here.rbd.index.update(lambda txn: put_record(txn, lost))
    if change == "freeze":  # there is nothing to freeze
        with pytest.raises(DamagedError, match="data is lost"):
            here.run(CHANGES[change](here, volume, snapshot))
    elif change == "revert":
        here.run(CHANGES[change](here, volume, snapshot))
        now = record(here, volume)
        assert (now.holder, now.epoch) == (None, seen.epoch + 1)
        assert here.of_volume(volume) == b"then"
    else:
        here.run(CHANGES[change](here, volume, snapshot))


@pytest.mark.parametrize("change", ["delete", "revert"])
def test_whose_volume_was_changed_unawares_finds_out_by_the_record(
    here: RbdDriver, there: RbdDriver, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    device = here.run(here.pool.use(NodeKind.VOLUME, volume))
    there.rbd.index.refresh()
    # As if the image were gone, and nobody could have it.
    for module in ("volumes", "snapshots"):
        monkeypatch.setattr(
            f"bockd.drivers.rbd.{module}.vacate", lambda _session, one: record(there, one)
        )
    there.run(CHANGES[change](there, volume, snapshot))
    here.rbd.index.refresh()
    here.rbd.open_nodes.drop_taken()
    assert isinstance(device, SharedDevice)
    assert device.lost.fired
    assert not here.pool.is_open(NodeKind.VOLUME, volume)
    here.pool.leave(NodeKind.VOLUME, volume)


@pytest.mark.parametrize("change", ["delete", "revert", "fill", "freeze", "extend", "snapshot"])
def test_what_another_gateway_changes_meanwhile_is_not_passed_over(
    here: RbdDriver, there: RbdDriver, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It happens between the operation's look and its commit."""
    volume = here.volume("one").id
    here.write(volume, 0, b"then")
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    here.run(here.pool.close_idle(NodeKind.VOLUME, volume))
    there.rbd.index.refresh()
    update = there.rbd.index.update

    def meanwhile(run: Callable[[Transaction], Any]) -> Any:
        monkeypatch.setattr(there.rbd.index, "update", update)
        here.write(volume, 0, b"now")
        here.run(here.pool.close_idle(NodeKind.VOLUME, volume))
        here.run(here.pool.revert_volume(volume, snapshot))
        return update(run)

    monkeypatch.setattr(there.rbd.index, "update", meanwhile)
    kept = images(there)
    changes: dict[str, Callable[[RbdDriver, VolumeId, SnapshotId], Steps[Any]]] = {
        **CHANGES,
        "extend": lambda d, v, s: d.pool.extend_volume(v, 2 * MIB),
        "snapshot": lambda d, v, s: d.pool.create_snapshot(v, "t"),
    }
    with pytest.raises(InUseError, match="another gateway has just"):
        there.run(changes[change](there, volume, snapshot))
    assert there.of_volume(volume) == b"then"
    assert len(images(there)) == len(kept) + 1
    assert snaps(there, next(iter(kept))) == [snap_of(there, snapshot)]
