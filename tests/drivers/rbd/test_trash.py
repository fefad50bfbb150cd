"""The trash of a pool that several gateways serve: any of them deletes, restores and expires, also
in the middle of what another one does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bockd.blockstorage.contract import Status
from bockd.config.rbd import RbdSettings
from bockd.errors import (
    BockdError,
    InvalidStateError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from bockd.model import GIB, NodeKind, VolumeId
from bockd.pool.pool import nothing_more
from bockd.runtime.steps import run_inline
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.keeping import KEPT, Keeping

need_modules()

from bockd.drivers.rbd import removals, trashing, volumes  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.binding import rbd  # noqa: E402
from bockd.drivers.rbd.imagestore import RbdImageStore  # noqa: E402
from bockd.drivers.rbd.log import FORMAT, FORMAT_WITH_TRASH, Log  # noqa: E402
from bockd.drivers.rbd.messages import Manner  # noqa: E402
from bockd.drivers.rbd.radosobjects import RadosObjects  # noqa: E402
from bockd.drivers.rbd.records import DirtyAt, put_record  # noqa: E402
from bockd.drivers.rbd.sweep import FULL_LOOK_EVERY, Patience, Sweep  # noqa: E402
from tests.drivers.rbd.pools import images, record, snaps  # noqa: E402

VOLUME, SNAPSHOT = NodeKind.VOLUME, NodeKind.SNAPSHOT


@pytest.fixture
def here(rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[Keeping]:
    one = Keeping(rbd_namespace, tmp_path, "here")
    yield one
    one.close()


@pytest.fixture
def there(here: Keeping, rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[Keeping]:
    one = Keeping(rbd_namespace, tmp_path, "there")
    yield one
    assert one.unsound() == ()
    one.close()


def format_of(driver: Keeping) -> int:
    """The format of the index, as one who comes anew finds it."""
    log = Log(RadosObjects(driver.rbd.session.ioctx))
    log.read(0)
    return log.format


def once(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, first: Callable[[], Any]) -> None:
    """Do something right after the next call of a function, before its caller goes on."""
    function = getattr(where, name)

    def called(*arguments: Any) -> Any:
        found = function(*arguments)
        monkeypatch.setattr(where, name, function)
        first()
        return found

    monkeypatch.setattr(where, name, called)


def test_what_one_gateway_deletes_another_one_restores(here: Keeping, there: Keeping) -> None:
    volume = here.make("web", b"then")
    snapshot = here.freeze(volume, "before")
    here.write(volume, 0, b"now")  # and it is open there
    image = record(here, volume).image
    assert format_of(here) == FORMAT
    here.delete(VOLUME, volume)
    assert format_of(here) == FORMAT_WITH_TRASH
    there.delete(SNAPSHOT, snapshot)
    for gateway in (here, there):
        assert gateway.listed() == [volume, snapshot]
        for kind, node in ((VOLUME, volume), (SNAPSHOT, snapshot)):
            with pytest.raises(NotFoundError, match="is in the trash"):
                gateway.run(gateway.pool.use(kind, node))
    assert snaps(there, image) != []
    there.restore(volume)
    assert there.of_volume(volume) == b"now"
    here.restore(snapshot)
    assert here.of_snapshot(snapshot) == b"then"
    assert here.listed() == there.listed() == []
    assert there.unsound() == ()
    assert format_of(there) == FORMAT_WITH_TRASH  # for good
    for kind, node in ((SNAPSHOT, snapshot), (VOLUME, volume)):
        there.delete(kind, node)
    assert here.call(lambda s: s.trash.empty(here.tenant)) == 2
    assert there.listed() == []
    assert images(here) == set()


def test_without_a_trash_the_index_keeps_its_format(
    rbd_namespace: RbdSettings, tmp_path: Path
) -> None:
    """Also if one is configured, until something is moved there."""
    gone = Keeping(rbd_namespace, tmp_path, "gone", replace(KEPT, keep_seconds=0.0))
    gone.delete(VOLUME, gone.make("web"))
    keeping = Keeping(rbd_namespace, tmp_path, "keeping")
    keeping.make("web")
    assert keeping.look() is False
    assert format_of(keeping) == FORMAT
    keeping.close()
    gone.close()


def test_both_gateways_expire_what_is_due(
    here: Keeping, there: Keeping, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One of them is in the middle of it when the other one does all of it."""
    caplog.set_level(logging.INFO)
    volume = here.make("web", b"data")
    snapshot = here.freeze(volume, "before")
    late = there.make("late")
    assert not here.look()
    assert not there.look()
    here.delete(VOLUME, volume)
    there.delete(SNAPSHOT, snapshot)
    for gateway in (here, there):
        gateway.look()
        gateway.hour = 9.9
    there.delete(VOLUME, late)
    for gateway in (here, there):
        gateway.look()
        assert gateway.listed() == [volume, snapshot, late]
        gateway.hour = 10.1
    once(monkeypatch, volumes, "vacate", there.look)
    here.look()
    assert here.listed() == there.listed() == [late]
    assert caplog.text.count("is deleted for good: its time in the trash is over") == 2
    assert caplog.text.count("is not looked after") == 0
    for gateway in (here, there):
        assert gateway.unsound() == ()
        assert gateway.keeper.kept.volumes == 1
    there.call(lambda s: s.trash.empty(there.tenant))
    assert images(here) == set()


def test_what_is_restored_while_it_expires_stays(
    here: Keeping, there: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = here.make("web", b"kept")
    here.delete(VOLUME, volume)
    (seen,) = here.records()
    once(monkeypatch, volumes, "vacate", lambda: there.restore(volume))
    with pytest.raises(NotFoundError, match="was restored"):
        here.run(here.trash.purge(seen))
    assert there.of_volume(volume) == b"kept"
    there.run(there.pool.close_idle(VOLUME, volume))
    # Nor does it go if it was deleted once more meanwhile: it is kept anew.
    there.hour = 5.0
    there.delete(VOLUME, volume)
    assert here.listed() == [volume]
    with pytest.raises(NotFoundError, match="was restored meanwhile"):
        here.run(here.trash.purge(seen))
    assert here.listed() == [volume]


def test_of_two_that_restore_one_is_told_that_it_is_done(
    here: Keeping, there: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = here.make("web", b"kept")
    here.delete(VOLUME, volume)
    assert there.listed() == [volume]
    restore = type(there.rbd).restore

    def late(pool: Any, *arguments: Any) -> Any:
        monkeypatch.setattr(type(there.rbd), "restore", restore)
        here.rbd.index.refresh()
        here.run(here.trash.restore(here.tenant, volume))
        return restore(pool, *arguments)

    monkeypatch.setattr(type(there.rbd), "restore", late)
    with pytest.raises(NotFoundError, match=f"volume {volume} is not in the trash"):
        there.restore(volume)
    assert there.of_volume(volume) == b"kept"


def test_who_takes_a_volume_that_was_just_deleted_does_not_have_it(
    here: Keeping, there: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = here.make("web", b"kept")
    there.rbd.index.refresh()
    taker = there.rbd.session.taker
    open_claim = taker.open_claim

    def open_late(image: str) -> Any:
        claim = open_claim(image)
        here.delete(VOLUME, volume)
        return claim

    with monkeypatch.context() as patched:
        patched.setattr(there.rbd.session, "taker", replace(taker, open_claim=open_late))
        with pytest.raises(NotFoundError, match="is in the trash"):
            there.run(there.pool.use(VOLUME, volume))
    assert not there.pool.is_open(VOLUME, volume)
    here.restore(volume)
    assert here.of_volume(volume) == b"kept"


def test_what_somebody_opens_while_it_is_deleted_stays(
    here: Keeping, there: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = here.make("web", b"kept")
    there.rbd.index.refresh()
    used: list[Any] = []
    once(
        monkeypatch,
        trashing,
        "vacate",
        lambda: used.append(there.run(there.pool.use(VOLUME, volume))),
    )
    with pytest.raises(InvalidStateError, match="another gateway has just changed or opened"):
        here.delete(VOLUME, volume)
    there.run(used[0].write(0, memoryview(b"written")))
    with pytest.raises(InvalidStateError, match="gateway there has volume"):
        here.delete(VOLUME, volume)  # whose clients use it
    assert here.listed() == []
    there.pool.leave(VOLUME, volume)
    here.delete(VOLUME, volume)  # nobody uses it: that gateway gives it back
    assert not there.pool.is_open(VOLUME, volume)
    there.restore(volume)
    assert there.of_volume(volume).startswith(b"written")


def test_a_snapshot_that_another_gateway_reads_stays(here: Keeping, there: Keeping) -> None:
    snapshot = here.freeze(here.make("web", b"then"), "before")
    there.rbd.index.refresh()
    there.run(there.pool.use(SNAPSHOT, snapshot))
    with pytest.raises(InvalidStateError, match="is read by clients of gateway there"):
        here.delete(SNAPSHOT, snapshot)
    there.pool.leave(SNAPSHOT, snapshot)
    here.delete(SNAPSHOT, snapshot)
    assert not there.pool.is_open(SNAPSHOT, snapshot)


def test_who_opens_a_snapshot_that_was_just_deleted_loses_it(
    here: Keeping, there: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = here.freeze(here.make("web", b"then"), "before")
    there.rbd.index.refresh()
    once(
        monkeypatch,
        trashing,
        "vacate_snapshot",
        lambda: there.run(there.pool.use(SNAPSHOT, snapshot)),
    )
    here.delete(SNAPSHOT, snapshot)
    assert not there.pool.is_open(SNAPSHOT, snapshot)
    assert there.listed() == [snapshot]


def test_what_is_in_the_trash_is_neither_taken_nor_changed(here: Keeping) -> None:
    volume = here.make("web", b"data")
    here.delete(VOLUME, volume)
    before = record(here, volume)
    for steps in (
        here.rbd.use(VOLUME, volume, firm=True),
        here.rbd.extend_volume(volume, 2 * GIB),
        here.rbd.create_snapshot(volume, "shot"),
        here.rbd.freeze_volume(volume, lambda _nodes, _node: "frozen", nothing_more),
    ):
        with pytest.raises(NotFoundError, match="is in the trash"):
            here.run(steps)
    assert record(here, volume) == before


@pytest.mark.parametrize("gateway", ["here", "lost"])
def test_what_is_not_written_back_does_not_go_to_the_trash(here: Keeping, gateway: str) -> None:
    """It would come back without what was answered. For good it may be deleted, as ever."""
    volume = here.make("web", b"data")
    dirty = DirtyAt(gateway, "0" * 16, 0.0)
    here.rbd.index.update(
        lambda txn: put_record(txn, replace(record(here, volume), dirty_at=dirty))
    )
    with pytest.raises(BockdError) as raised:
        here.delete(VOLUME, volume)
    assert isinstance(raised.value, InvalidStateError) == (gateway == "lost")
    assert here.listed() == []
    assert record(here, volume).trashed is None
    assert here.call(lambda s: s.show_volume(here.tenant, volume)).status is Status.AVAILABLE


def test_a_volume_without_its_image_goes_there_and_is_deleted(here: Keeping) -> None:
    volume = here.make("web", b"data")
    found = record(here, volume)
    here.rbd.index.update(lambda txn: put_record(txn, replace(found, holder="dead", run="0" * 16)))
    with here.rbd.session.images.use() as (_, ioctx):
        rbd.RBD().remove(ioctx, found.image)
    here.delete(VOLUME, volume)
    here.restore(volume)
    here.delete(VOLUME, volume)
    assert here.call(lambda s: s.trash.empty(here.tenant)) == 1
    assert here.unsound() == ()


def test_the_sweep_leaves_what_is_in_the_trash(here: Keeping) -> None:
    volume = here.make("web", b"then")
    snapshot = here.freeze(volume, "before")
    here.write(volume, 0, b"now")
    here.delete(VOLUME, volume)
    here.delete(SNAPSHOT, snapshot)
    store = RbdImageStore(here.settings)
    sweep = Sweep(here.rbd.index, store, 5, Patience(0.0, 0.0))
    for _ in range(FULL_LOOK_EVERY + 1):
        assert sweep.look()
    store.close()
    for node in (volume, snapshot):
        here.restore(node)
    assert (here.of_volume(volume), here.of_snapshot(snapshot)) == (b"now", b"then")


def test_on_a_full_cluster_the_trash_is_used_and_emptied(here: Keeping, ceph: Cluster) -> None:
    """Emptying it makes room: its images are removed."""
    kept, gone, blank = here.make("kept", b"kept"), here.make("gone", b"gone"), here.make("blank")
    with ceph.full():
        with pytest.raises(NoSpaceError):
            here.write(blank, 0, b"grows")
        for volume in (kept, gone):
            here.delete(VOLUME, volume)
        here.restore(kept)
        assert here.call(lambda s: s.trash.empty(here.tenant)) == 1
        assert images(here) == {record(here, one).image for one in (kept, blank)}
        assert here.of_volume(kept) == b"kept"


@pytest.mark.parametrize("kind", list(NodeKind))
def test_space_is_owed_until_ceph_may_have_counted_it(
    here: Keeping, monkeypatch: pytest.MonkeyPatch, kind: NodeKind
) -> None:
    """So that nothing more goes early than has to. Before a snap is put in, gateways are asked."""
    clock = [0.0]
    monkeypatch.setattr(here.rbd.session.removals, "_monotonic", lambda: clock[0])
    node: int = here.make("web", b"data")
    if kind is SNAPSHOT:
        node = here.freeze(VolumeId(node), "before")
    here.delete(kind, node)
    assert not here.pool.owes_space()
    run_inline(here.trash.purge(*here.records()))
    assert here.pool.owes_space()
    here.run(here.pool.close_all())  # and what the background has
    assert here.pool.owes_space()
    clock[0] += removals.COUNTED_SECONDS
    assert not here.pool.owes_space()


def after(here: Keeping, clock: list[float], seconds: float) -> bool:
    """Return whether space is owed then, and let what is tried again end."""
    clock[0] += seconds
    owes = here.pool.owes_space()
    here.rbd.session.removals.wait()
    return owes


def test_space_is_owed_while_somebody_has_the_image_open_unless_it_has_snaps(
    here: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(here.rbd.session.removals, "_monotonic", lambda: clock[0])
    session = here.rbd.session
    busy, frozen = here.make("busy", b"data"), here.make("frozen", b"data")
    snapshot = here.freeze(frozen, "before")
    image = record(here, busy).image
    here.delete(VOLUME, frozen)
    run_inline(here.trash.purge(*here.records()))
    session.removals.wait()
    assert not after(here, clock, removals.COUNTED_SECONDS)
    here.delete(VOLUME, busy)
    with rbd.Image(session.ioctx, image):
        run_inline(here.trash.purge(*here.records()))
        session.removals.wait()
        assert after(here, clock, removals.AGAIN_SECONDS)
        assert image in images(here)
    assert after(here, clock, removals.AGAIN_SECONDS)
    assert image not in images(here)
    assert not after(here, clock, removals.COUNTED_SECONDS)
    assert here.of_snapshot(snapshot) == b"data"


def test_space_of_a_snapshot_is_owed_whose_readers_could_not_be_asked(
    here: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    session = here.rbd.session
    monkeypatch.setattr(session.removals, "_monotonic", lambda: clock[0])
    volume = here.make("web", b"data")
    snapshot = here.freeze(volume, "before")
    image = record(here, volume).image
    here.delete(SNAPSHOT, snapshot)
    here.run(here.pool.close_all())  # and what the background has

    ask = session.bus.ask

    def refuse(image: str, manner: Manner) -> str | None:
        if manner is Manner.FIRM:  # not what asks before the deletion
            raise UnavailableError("no answer")
        return ask(image, manner)

    with monkeypatch.context() as patch:
        patch.setattr(session.bus, "ask", refuse)
        run_inline(here.trash.purge(*here.records()))
        here.run(here.pool.close_all())
        assert after(here, clock, removals.AGAIN_SECONDS)
        assert len(snaps(here, image)) == 1
    assert after(here, clock, removals.AGAIN_SECONDS)
    assert snaps(here, image) == []
    assert not after(here, clock, removals.COUNTED_SECONDS)
