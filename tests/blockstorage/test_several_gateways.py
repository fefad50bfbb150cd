"""Several gateways never break each other's records: who ends what somebody has begun."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from bockd.accountcontrol import NewQuota, TenantInfo
from bockd.blockstorage.contract import NewImage, NewSnapshot, NewVolume, Status, TenantId
from bockd.blockstorage.images import Images
from bockd.blockstorage.records import API_VOLUMES, IMPORTS, SERVERS, ImageRecord, Ledger
from bockd.blockstorage.volumes import move_volume
from bockd.blockstorage.working import earlier_runs_of, workers
from bockd.daemon.accounts import PoolAccounts
from bockd.errors import BockdError, ConflictError, InvalidStateError, NotFoundError
from bockd.index.keys import id_key
from bockd.model import GIB, NodeKind, Server, ServerKind, SnapshotId
from bockd.pool.index import Transaction
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import run_inline
from tests.blockstorage.gateways import Gateway, World
from tests.blockstorage.store import Store, force_status

NEW_IMAGE = NewImage("debian", "raw", GIB, GIB, "a" * 64)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def a(world: World) -> Iterator[Gateway]:
    gateway = world.start("a")
    yield gateway
    gateway.die()


@pytest.fixture
def b(world: World) -> Iterator[Gateway]:
    gateway = world.start("b")
    yield gateway
    gateway.assert_sound()
    gateway.die()


@pytest.fixture
def tenant(a: Gateway, b: Gateway) -> TenantId:
    made = a.accounts.create_tenant("acme").id
    b.index.refresh()
    return made


# -- whose work it is -------------------------------------------------------------------------


def test_a_transient_status_names_its_worker_and_no_other_does(
    a: Gateway, b: Gateway, tenant: TenantId
) -> None:
    volume = a.volume(tenant).id
    seen: list[str | None] = []

    def look() -> None:
        owned = b.owned(volume)
        assert owned is not None
        seen.append(owned.worker)

    a.hooks.at["publish"] = look
    a.attach(tenant, volume)
    look()
    b.hooks.at["withdraw"] = look
    b.detach(tenant, volume)
    look()
    assert seen == [a.table.author, None, b.table.author, None]


def test_an_edit_by_another_gateway_leaves_the_worker(
    a: Gateway, b: Gateway, tenant: TenantId
) -> None:
    volume = a.volume(tenant).id

    def edit() -> None:
        def change(txn: Transaction) -> None:
            ledger = Ledger(txn)
            ledger.put_volume(tenant, ledger.volume(tenant, volume))

        b.index.update(change)

    a.hooks.at["publish"] = edit
    a.attach(tenant, volume)
    assert a.status(volume) is Status.IN_USE


def test_quotas_set_by_two_gateways_at_once_change_what_each_names(
    a: Gateway, b: Gateway, tenant: TenantId, tmp_path: Path
) -> None:
    """Neither has seen what the other one does."""

    async def both() -> list[TenantInfo]:
        shown = []
        for gateway, new in (
            (a, NewQuota(volumes=5)),
            (b, NewQuota(gigabytes=7)),
            (a, NewQuota(snapshots=9)),
        ):
            accounts = PoolAccounts(gateway.context, StepRunner(), tmp_path)
            shown.append(await accounts.set_quota(tenant, new))
        return shown

    *_, last = trio.run(both)
    assert (last.max_volumes, last.max_gigabytes, last.max_snapshots) == (5, 7, 9)


def test_one_daemon_stores_what_it_always_has(store: Store) -> None:
    """No field more, whatever the status."""
    tenant = store.tenant("acme")
    volume = store.volume(tenant)
    force_status(store, tenant, volume, Status.DELETING)
    store.pool.index.update(
        lambda txn: Ledger(txn).put_server(Server("web1", ServerKind.HOST, added_at=1.0))
    )
    with store.pool.index.reading() as txn:
        assert txn.author is None
        record = txn.get(API_VOLUMES, id_key(volume.id)) or b""
        assert record.startswith(b'{"tenant":"')
        assert b"worker" not in record
        assert txn.get(SERVERS, b"web1") == (
            b'{"name":"web1","kind":"host","qmp_socket":null,"tenant":null,"added_at":1.0,'
            b'"configured":false}'
        )
    filling = run_inline(Images(store.context).begin(NEW_IMAGE))
    with store.pool.index.reading() as txn:
        assert b"worker" not in (txn.get(IMPORTS, id_key(filling.volume)) or b"")
    force_status(store, tenant, volume, Status.AVAILABLE)


# -- starts -----------------------------------------------------------------------------------


def test_a_start_leaves_alone_what_another_gateway_does(
    world: World, a: Gateway, tenant: TenantId
) -> None:
    volume, other = a.volume(tenant).id, a.volume(tenant).id
    snapshot = run_inline(a.snapshots.create(tenant, NewSnapshot(volume)))
    waiting = run_inline(a.volumes.create_waiting(tenant, NewVolume(1)))
    filling = run_inline(a.images.begin(NEW_IMAGE))

    def start() -> None:
        world.start("c").die()

    a.hooks.at["publish"] = start
    a.attach(tenant, volume)
    a.hooks.at["withdraw"] = start
    a.detach(tenant, volume)
    a.hooks.at["commit"] = start
    run_inline(a.snapshots.delete(tenant, SnapshotId(snapshot.id)))
    a.hooks.at["commit"] = start
    run_inline(a.volumes.delete(tenant, other))
    assert (a.status(volume), a.status(other)) == (Status.AVAILABLE, None)
    run_inline(a.images.finish(filling.volume))
    run_inline(a.volumes.fill(waiting.id, a.images.find("debian")))
    assert a.status(waiting.id) is Status.AVAILABLE


def test_a_start_resolves_what_earlier_runs_of_this_gateway_have_left(
    world: World, b: Gateway, tenant: TenantId
) -> None:
    class DiedError(Exception):
        pass

    def die() -> None:
        raise DiedError

    a = world.start("a2")
    attaching, detaching, deleting = (a.volume(tenant).id for _ in range(3))
    waiting = run_inline(a.volumes.create_waiting(tenant, NewVolume(1))).id
    filling = run_inline(a.images.begin(NEW_IMAGE)).volume
    a.attach(tenant, detaching)
    a.hooks.at["publish"] = die
    with pytest.raises(DiedError):
        a.attach(tenant, attaching)
    a.hooks.at["withdraw"] = die
    with pytest.raises(DiedError):
        a.detach(tenant, detaching)
    a.hooks.at["commit"] = die
    with pytest.raises(DiedError):
        run_inline(a.volumes.delete(tenant, deleting))
    with b.index.reading() as txn:
        assert workers(txn) == set()  # not refreshed yet
    b.index.refresh()
    with b.index.reading() as txn:
        assert workers(txn) == {a.table.author}
    a.die()
    again = world.start("a2")
    assert again.hooks.calls.count("withdraw") == 2
    assert [b.status(one) for one in (attaching, detaching, deleting, waiting)] == [
        Status.AVAILABLE,
        Status.AVAILABLE,
        None,
        Status.ERROR,
    ]
    assert b.images.being_imported() == []
    with pytest.raises(NotFoundError):
        b.pool.find(NodeKind.VOLUME, str(filling))
    again.die()


def test_whose_work_a_start_resolves() -> None:
    choose = earlier_runs_of("gw/b")
    key = (NodeKind.VOLUME, 1)
    assert choose("gw/a", key)
    assert not any(choose(one, key) for one in ("gw/b", "gw2/a", None))


# -- a gateway that comes back late -----------------------------------------------------------


def resolved_meanwhile(a: Gateway, b: Gateway, where: str) -> None:
    """Let a gateway hang somewhere, for so long that another one resolves its work."""
    a.hooks.at[where] = lambda: b.resolve_all_of(a)


def test_late_deletions_change_nothing(a: Gateway, b: Gateway, tenant: TenantId) -> None:
    volume = a.volume(tenant).id
    snapshot = run_inline(a.snapshots.create(tenant, NewSnapshot(volume)))
    resolved_meanwhile(a, b, "commit")
    with pytest.raises(NotFoundError):
        run_inline(a.snapshots.delete(tenant, SnapshotId(snapshot.id)))
    resolved_meanwhile(a, b, "commit")
    with pytest.raises(NotFoundError):
        run_inline(a.volumes.delete(tenant, volume))
    assert b.status(volume) is None


def test_a_late_deletion_leaves_one_that_could_not_be_deleted(
    a: Gateway, b: Gateway, tenant: TenantId
) -> None:
    volume = a.volume(tenant).id
    b.use(volume)
    resolved_meanwhile(a, b, "commit")
    with pytest.raises(InvalidStateError, match="it is error_deleting"):
        run_inline(a.volumes.delete(tenant, volume))
    assert b.status(volume) is Status.ERROR_DELETING


def test_a_late_deletion_leaves_the_one_of_another_gateway(
    a: Gateway, b: Gateway, tenant: TenantId
) -> None:
    """It fails at last, since the volume is used, and must not end what the other one does."""
    volume = a.volume(tenant).id
    for gateway in (a, b):
        gateway.use(volume)

    def delete_again() -> None:
        """The other one finds that it cannot delete it, and a client asks it again."""
        b.resolve_all_of(a)
        b.index.update(lambda txn: move_volume(txn, tenant, volume, Status.DELETING))

    a.hooks.at["commit"] = delete_again
    with pytest.raises(InvalidStateError, match="has 1 connection"):
        run_inline(a.volumes.delete(tenant, volume))
    owned = b.owned(volume)
    assert owned is not None
    assert (owned.volume.status, owned.worker) == (Status.DELETING, b.table.author)


@pytest.mark.parametrize("where", ["publish", "plug"])
def test_a_late_attach_is_undone(a: Gateway, b: Gateway, tenant: TenantId, where: str) -> None:
    volume = a.volume(tenant).id
    resolved_meanwhile(a, b, where)
    with pytest.raises(InvalidStateError, match="another gateway has undone it"):
        a.attach(tenant, volume)
    assert a.hooks.calls[-1] == "unplug"
    assert b.status(volume) is Status.AVAILABLE


@pytest.mark.parametrize("failing", [False, True])
def test_a_late_attach_leaves_the_attachment_of_another_gateway(
    a: Gateway, b: Gateway, tenant: TenantId, *, failing: bool
) -> None:
    """Also if it fails at last: its undoing is for its own attachment."""
    volume = a.volume(tenant).id
    made: list[str] = []

    def meanwhile() -> None:
        b.resolve_all_of(a)
        made.append(b.attach(tenant, volume, "web2").export_name)
        if failing:
            raise ConflictError("no such device")

    a.hooks.at["publish"] = meanwhile
    with pytest.raises(BockdError):
        a.attach(tenant, volume)
    owned = b.owned(volume)
    assert owned is not None
    assert owned.volume.attachment is not None
    assert owned.volume.attachment.export_name == made[0]
    assert owned.volume.status is Status.IN_USE


def test_a_late_attach_leaves_one_under_way_at_another_gateway(
    a: Gateway, b: Gateway, tenant: TenantId
) -> None:
    """A comes back while B attaches the volume anew."""
    volume = a.volume(tenant).id

    class GoneError(Exception):
        pass

    def hang_too() -> None:
        raise GoneError

    def meanwhile() -> None:
        b.resolve_all_of(a)
        b.hooks.at["publish"] = hang_too
        with pytest.raises(GoneError):
            b.attach(tenant, volume, "web2")

    a.hooks.at["publish"] = meanwhile
    with pytest.raises(InvalidStateError, match="another gateway has undone it"):
        a.attach(tenant, volume)
    owned = b.owned(volume)
    assert owned is not None
    assert owned.volume.attachment is not None
    assert (owned.volume.status, owned.worker) == (Status.ATTACHING, b.table.author)
    assert owned.volume.attachment.server_id == "web2"


@pytest.mark.parametrize("failing", [False, True])
def test_a_late_detach_leaves_a_new_attachment(
    a: Gateway, b: Gateway, tenant: TenantId, failing: bool
) -> None:
    volume = a.volume(tenant).id
    a.attach(tenant, volume)

    def meanwhile() -> None:
        b.resolve_all_of(a)
        b.attach(tenant, volume, "web2")
        if failing:
            raise ConflictError("no flush")

    a.hooks.at["withdraw"] = meanwhile
    if failing:
        with pytest.raises(ConflictError, match="no flush"):
            a.detach(tenant, volume)
    else:
        a.detach(tenant, volume)
    owned = b.owned(volume)
    assert owned is not None
    assert owned.volume.status is Status.IN_USE
    assert owned.volume.attachment is not None
    assert owned.volume.attachment.server_id == "web2"


def test_a_late_image_finds_its_volume_in_error(a: Gateway, b: Gateway, tenant: TenantId) -> None:
    filling = run_inline(b.images.begin(NEW_IMAGE))
    record: ImageRecord = run_inline(b.images.finish(filling.volume))
    volume = run_inline(a.volumes.create_waiting(tenant, NewVolume(1))).id
    resolved_meanwhile(a, b, "commit")
    with pytest.raises(InvalidStateError):
        run_inline(a.volumes.fill(volume, record))
    with pytest.raises(InvalidStateError):
        run_inline(a.volumes.fail(volume))
    assert b.status(volume) is Status.ERROR


def test_a_late_import_is_refused(a: Gateway, b: Gateway, tenant: TenantId) -> None:
    del tenant
    filling = run_inline(a.images.begin(NEW_IMAGE))
    resolved_meanwhile(a, b, "commit")
    with pytest.raises(NotFoundError):
        run_inline(a.images.finish(filling.volume))
    assert b.images.all() == []


def test_only_its_own_imports_are_abandoned(a: Gateway, b: Gateway, tenant: TenantId) -> None:
    del tenant
    filling = run_inline(a.images.begin(NEW_IMAGE))
    b.index.refresh()
    assert [one.volume for one in a.images.begun_here()] == [filling.volume]
    assert b.images.begun_here() == []
    assert [one.volume for one in b.images.being_imported()] == [filling.volume]


# -- servers ----------------------------------------------------------------------------------


def test_each_gateway_has_the_servers_of_its_own_configuration(a: Gateway, b: Gateway) -> None:
    def configure(gateway: Gateway, *servers: Server) -> None:
        gateway.index.refresh()
        run_inline(gateway.servers.configure(servers))

    vm = Server("vm1", ServerKind.VM, "/run/vm1.qmp")
    both = Server("web1", ServerKind.HOST)
    configure(a, vm, both)
    configure(b, both, Server("web2", ServerKind.HOST))
    a.index.refresh()
    assert [(one.name, one.gateway) for one in a.servers.all()] == [
        ("vm1", "a"),
        ("web1", "a"),
        ("web2", "b"),
    ]
    configure(b)
    assert [one.name for one in b.servers.all()] == ["vm1", "web1"]
    configure(a)
    assert a.servers.all() == []


def test_a_virtual_machine_of_another_gateway_stays_that_ones(
    a: Gateway, b: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    run_inline(a.servers.configure([Server("vm1", ServerKind.VM, "/run/vm1.qmp")]))
    b.index.refresh()
    run_inline(b.servers.configure([Server("vm1", ServerKind.VM, "/run/other.qmp")]))
    assert "a virtual machine of gateway a already" in caplog.text
    assert b.servers.registered("vm1").qmp_socket == "/run/vm1.qmp"


def test_only_its_gateway_plugs_into_a_virtual_machine(
    a: Gateway, b: Gateway, tenant: TenantId
) -> None:
    run_inline(a.servers.add(Server("vm1", ServerKind.VM, "/run/vm1.qmp")))
    volume = a.volume(tenant).id
    b.index.refresh()
    with pytest.raises(ConflictError, match="of gateway a, which alone reaches it"):
        b.attach(tenant, volume, "vm1")
    assert b.status(volume) is Status.AVAILABLE
    a.attach(tenant, volume, "vm1")
    with pytest.raises(ConflictError, match="of gateway a"):
        b.detach(tenant, volume, "vm1")
    assert b.status(volume) is Status.IN_USE
    run_inline(b.attachments.detach(tenant, "vm1", volume, force=True))
    assert "unplug" not in b.hooks.calls
    owned = b.owned(volume)
    assert owned is not None
    assert "the device may still be in its virtual machine" in (owned.volume.last_error or "")
