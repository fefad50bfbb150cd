"""A volume recalled from whichever gateway has it, over a real cluster, but for what must happen in
one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import DirtyElsewhereError, NotFoundError, VolumeFailedError, VolumeTakenError
from bockd.model import BLOCK_SIZE, NodeKind, VolumeId
from bockd.pool.device import SharedDevice
from bockd.pool.index import Index, Transaction
from bockd.pool.nodes import Nodes
from bockd.publictexts import UNREADABLE_LOG, concealed
from bockd.runtime.steps import Steps, run_inline
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.memoryindex import Records
from tests.drivers.rbd.pooldriver import RbdDriver

need_modules()

from bockd.drivers.rbd import recalling  # noqa: E402
from bockd.drivers.rbd.recalling import vacate  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.records import (  # noqa: E402
    DirtyAt,
    Identity,
    RbdVolumeRecord,
    Tenures,
    put_record,
    volume_record,
)
from bockd.drivers.rbd.taking import Taker  # noqa: E402

STALE = memoryview(b"stale".ljust(BLOCK_SIZE, b"."))


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


def record(driver: RbdDriver, volume: VolumeId) -> RbdVolumeRecord:
    driver.rbd.index.refresh()
    with driver.rbd.index.reading() as txn:
        return volume_record(txn, volume)


def recall(driver: RbdDriver, volume: VolumeId, *, force: bool = False) -> str | None:
    return driver.run(driver.pool.recall(volume, force=force))


@pytest.fixture
def asked(there: RbdDriver, monkeypatch: pytest.MonkeyPatch) -> list[VolumeId]:
    """What connections `there` was told to end."""
    volumes: list[VolumeId] = []

    async def end(volume: VolumeId) -> None:
        volumes.append(volume)

    there.pool.before_giving(end)
    return volumes


@pytest.mark.parametrize("force", [False, True], ids=["asked", "forced"])
def test_what_has_lost_its_image_is_open_nowhere(here: RbdDriver, force: bool) -> None:
    """So it can be detached, and deleted."""
    volume = here.volume("one").id
    lost = replace(
        record(here, volume), holder="dead", run="d" * 16, address="127.0.0.1:0/1", image="0" * 24
    )
    here.rbd.index.update(lambda txn: put_record(txn, lost))
    assert recall(here, volume, force=force) is None
    assert record(here, volume).holder is None


@pytest.mark.parametrize("force", [False, True], ids=["asked", "forced"])
def test_what_is_open_here_stays_open(here: RbdDriver, force: bool) -> None:
    volume = here.volume("one").id
    device = here.run(here.pool.use(NodeKind.VOLUME, volume))
    assert recall(here, volume, force=force) is None
    assert here.pool.users(NodeKind.VOLUME, volume) == 1
    here.run(device.write(0, STALE))
    assert record(here, volume).holder == here.pool.holder(record(here, volume)) == "here"
    here.pool.leave(NodeKind.VOLUME, volume)


@pytest.mark.parametrize("force", [False, True], ids=["asked", "forced"])
def test_what_nobody_has_stays_so(here: RbdDriver, there: RbdDriver, force: bool) -> None:
    volume = here.volume("one").id
    assert recall(here, volume, force=force) is None
    there.rbd.index.refresh()
    there.write(volume, 0, b"there")
    there.run(there.pool.close_idle(NodeKind.VOLUME, volume))
    before = record(here, volume)
    assert recall(here, volume, force=force) is None
    assert record(here, volume) == before
    assert here.pool.holder(before) is None
    assert here.of_volume(volume) == b"there"


def test_another_gateway_ends_its_connections_and_closes(
    here: RbdDriver, there: RbdDriver, asked: list[VolumeId]
) -> None:
    volume = here.volume("one").id
    there.rbd.index.refresh()
    there.write(volume, 0, b"there")
    device = there.run(there.pool.use(NodeKind.VOLUME, volume))
    assert record(here, volume).holder == "there"
    assert recall(here, volume) is None
    assert asked == [volume]
    assert not there.pool.is_open(NodeKind.VOLUME, volume)
    assert record(here, volume).holder is None
    assert isinstance(device, SharedDevice)
    assert device.lost.fired
    with pytest.raises(VolumeTakenError):
        there.run(device.write(0, STALE))
    there.pool.leave(NodeKind.VOLUME, volume)
    assert here.of_volume(volume) == b"there"


def test_by_force_it_is_not_asked(here: RbdDriver, there: RbdDriver, asked: list[VolumeId]) -> None:
    volume = here.volume("one").id
    there.rbd.index.refresh()
    there.write(volume, 0, b"there")
    device = there.run(there.pool.use(NodeKind.VOLUME, volume))
    assert recall(here, volume, force=True) is None
    assert asked == []
    assert (record(here, volume).holder, record(here, volume).epoch) == (None, 2)
    with pytest.raises(VolumeTakenError):
        there.run(device.write(0, STALE))
    there.pool.leave(NodeKind.VOLUME, volume)
    assert here.of_volume(volume) == b"there"


def test_who_was_shut_out_unawares_opens_it_anew(here: RbdDriver, there: RbdDriver) -> None:
    volume = here.volume("one").id
    there.rbd.index.refresh()
    device = there.run(there.pool.use(NodeKind.VOLUME, volume))
    assert recall(here, volume, force=True) is None
    there.rbd.index.refresh()
    again = there.run(there.pool.use(NodeKind.VOLUME, volume))
    assert again is not device
    there.run(again.write(0, memoryview(b"anew".ljust(BLOCK_SIZE, b"."))))
    there.pool.leave(NodeKind.VOLUME, volume)
    there.pool.leave(NodeKind.VOLUME, volume)
    assert here.of_volume(volume) == b"anew"


def test_who_does_not_answer_is_shut_out(
    here: RbdDriver, there: RbdDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = here.volume("one").id
    there.rbd.index.refresh()
    there.write(volume, 0, b"there")
    device = there.run(there.pool.use(NodeKind.VOLUME, volume))
    monkeypatch.setattr(there.rbd._releases, "_post", lambda _function: None)
    assert recall(here, volume) is None
    assert (record(here, volume).holder, record(here, volume).epoch) == (None, 2)
    with pytest.raises(VolumeTakenError):
        there.run(device.write(0, STALE))
    there.pool.leave(NodeKind.VOLUME, volume)
    assert here.of_volume(volume) == b"there"


def test_what_an_earlier_run_had_is_recalled_from_it(here: RbdDriver) -> None:
    volume = here.volume("one").id
    here.run(here.pool.use(NodeKind.VOLUME, volume))
    here.die_and_open()
    assert recall(here, volume) is None
    assert (record(here, volume).holder, record(here, volume).epoch) == (None, 2)


def test_one_that_was_taken_from_here_unawares(here: RbdDriver, there: RbdDriver) -> None:
    """What is open here is no more than what this gateway believes."""
    volume = here.volume("one").id
    device = here.run(here.pool.use(NodeKind.VOLUME, volume))
    there.rbd.index.refresh()
    assert recall(there, volume, force=True) is None
    assert recall(here, volume) is None
    assert not here.pool.is_open(NodeKind.VOLUME, volume)
    with pytest.raises(VolumeTakenError):
        here.run(device.write(0, STALE))
    here.pool.leave(NodeKind.VOLUME, volume)


@pytest.mark.parametrize("open_there", [False, True])
def test_why_it_has_failed_is_told(here: RbdDriver, there: RbdDriver, open_there: bool) -> None:
    volume = here.volume("one").id
    there.rbd.index.refresh()
    if open_there:
        there.run(there.pool.use(NodeKind.VOLUME, volume))
    here.rbd.index.update(lambda txn: Nodes(txn).fail_volume(volume, "the disk broke"))
    assert recall(here, volume) == "the disk broke"
    assert record(here, volume).holder is None
    if open_there:
        there.pool.leave(NodeKind.VOLUME, volume)


def test_of_what_is_not_there(here: RbdDriver) -> None:
    with pytest.raises(NotFoundError):
        recall(here, VolumeId(77))


VOLUME = RbdVolumeRecord(
    id=VolumeId(7),
    name="seven",
    size_bytes=1 << 20,
    created_at=1.5,
    from_snapshot=None,
    failed=None,
    image="0" * 24,
)
THERE, HERE = Identity("there", "a" * 16), Identity("here", "b" * 16)
DIRTY = DirtyAt("there", "2" * 16, 5.5)


class Claim:
    """An image whose owner does something when it is about to be shut out."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.meanwhile = meanwhile

    def owner(self) -> str:
        return "address"

    def break_lock(self, _owner: str) -> None:
        self.meanwhile()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("then", ["is shut out", "ends", "takes it again"])
def test_what_becomes_dirty_meanwhile_is_not_recalled(then: str) -> None:
    """Until the owner is shut out it may answer writes that only it has."""
    records: Any = Records()
    put_record(cast(Transaction, records), VOLUME)
    tenures = Tenures(cast(Index, records))
    epoch = tenures.begin(VOLUME, THERE, "address")
    assert epoch is not None

    def meanwhile() -> None:
        tenures.mark_dirty(VOLUME.id, epoch, DIRTY, "directory")
        if then == "ends":
            tenures.end(VOLUME.id, epoch)
        elif then == "takes it again":
            tenures.begin(tenures.look(VOLUME.id), THERE, "another address")

    taker: Taker[Any] = Taker(HERE, lambda _image: Claim(meanwhile), cast(Any, None), tenures)
    with pytest.raises(DirtyElsewhereError):
        run_inline(vacate(taker, records, tenures.look(VOLUME.id), force=True))
    now = tenures.look(VOLUME.id)
    assert now.dirty_at == DIRTY
    assert now.holder == (None if then == "ends" else "there")


@pytest.mark.parametrize("has_log", [True, False])
def test_what_cannot_be_flushed_here_is_told_without_paths(has_log: bool) -> None:
    """A detach records what it is told, and the tenant reads that."""
    records: Any = Records()
    put_record(cast(Transaction, records), VOLUME)

    async def fail() -> None:
        raise concealed(VolumeFailedError("/var/lib/logs/00000001.seg is damaged"), UNREADABLE_LOG)

    front = SimpleNamespace(
        device=SimpleNamespace(flush=fail), log=SimpleNamespace() if has_log else None
    )

    async def exclusive(_volume: VolumeId, steps: Callable[[], Steps[Any]]) -> Any:
        return await steps()

    nodes: Any = SimpleNamespace(
        session=SimpleNamespace(taker=SimpleNamespace(ledger=Tenures(records))),
        volumes={VOLUME.id: SimpleNamespace(taken=SimpleNamespace(epoch=0), front=front)},
        refusals={},
        exclusive_soon=exclusive,
    )
    told = run_inline(recalling.recall(nodes, VOLUME.id, force=False))
    assert told == (None if has_log else UNREADABLE_LOG)
    assert ("00000001.seg" in nodes.refusals.get(VOLUME.id, "")) == has_log
