"""Servers: what is registered, for whom, and what is a server without that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bockd.blockstorage.contract import TenantId, Volume
from bockd.blockstorage.servers import Servers
from bockd.blockstorage.service import PoolBlockStorage
from bockd.errors import ConflictError, InUseError, InvalidRequestError, NotFoundError
from bockd.model import MAX_SOCKET_PATH_BYTES, Server, ServerKind
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import run_inline
from tests.blockstorage.store import Store


def add(store: Store, name: str, kind: str = "host", **more: str | None) -> Server:
    qmp = "/run/qmp.sock" if kind == "vm" else None
    server = Server(name, ServerKind(kind), qmp)
    return run_inline(Servers(store.context).add(replace(server, **more)))  # type: ignore[arg-type]


def remove(store: Store, name: str) -> None:
    run_inline(Servers(store.context).remove(name))


def strict(store: Store) -> None:
    """Only registered servers exist from now on."""
    store.context = replace(store.context, strict_servers=True)
    store.service = PoolBlockStorage(store.context, StepRunner())


def test_added_listed_shown_removed(store: Store, tenant: TenantId) -> None:
    vm, host = add(store, "vm1", "vm"), add(store, "host1")
    assert (vm.qmp_socket, host.qmp_socket) == ("/run/qmp.sock", None)
    assert vm.added_at > 0
    store.restart()
    assert Servers(store.context).all() == [host, vm]
    assert Servers(store.context).registered("vm1") == vm
    assert store.run(lambda s: s.list_servers(tenant)) == [host, vm]
    assert store.run(lambda s: s.show_server(tenant, "vm1")) == vm
    with pytest.raises(ConflictError, match="already"):
        add(store, "vm1")
    remove(store, "vm1")
    with pytest.raises(NotFoundError):
        remove(store, "vm1")
    with pytest.raises(NotFoundError):
        Servers(store.context).registered("vm1")
    assert store.run(lambda s: s.show_server(tenant, "vm1")) == Server("vm1", ServerKind.PLAIN)


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("", "host", {}),
        ("a/b", "host", {}),
        ("x" * 256, "host", {}),
        ("vm", "vm", {"qmp_socket": None}),
        ("vm", "vm", {"qmp_socket": "relative.sock"}),
        ("vm", "vm", {"qmp_socket": "/run/\0"}),
        ("vm", "vm", {"qmp_socket": "/" + "x" * MAX_SOCKET_PATH_BYTES}),
        ("host", "host", {"qmp_socket": "/run/qmp.sock"}),
    ],
)
def test_a_server_with_a_bad_name_or_socket_is_refused(
    store: Store, name: str, kind: str, more: dict[str, str | None]
) -> None:
    with pytest.raises(InvalidRequestError):
        add(store, name, kind, **more)
    assert Servers(store.context).all() == []


def configure(store: Store, *servers: Server) -> None:
    """What a start does."""
    run_inline(Servers(store.context).configure(servers))


def test_the_configuration_prevails_and_takes_back(store: Store, tenant: TenantId) -> None:
    by_hand, stays = add(store, "web1"), add(store, "host1")
    vm = Server("web1", ServerKind.VM, "/run/qmp.sock", "acme")
    configure(store, vm, Server("new", ServerKind.PLAIN))
    store.restart()
    found = {one.name: one for one in Servers(store.context).all()}
    assert found["host1"] == stays
    assert found["web1"] == replace(vm, tenant=tenant, added_at=by_hand.added_at, configured=True)
    assert found["new"].added_at > 0
    with pytest.raises(ConflictError, match="stands in the configuration"):
        remove(store, "new")
    moved = replace(vm, qmp_socket="/run/other.sock")
    configure(store, moved)
    assert [one.name for one in Servers(store.context).all()] == ["host1", "web1"]
    assert Servers(store.context).registered("web1").qmp_socket == "/run/other.sock"
    # One that has volumes is kept, and is then like one that was added by hand.
    volume = store.volume(tenant)
    store.run(lambda s: s.attach(tenant, "web1", volume.id, None))
    configure(store)
    assert not Servers(store.context).registered("web1").configured
    store.run(lambda s: s.detach(tenant, "web1", volume.id))
    remove(store, "web1")
    assert Servers(store.context).all() == [stays]


def test_a_configured_server_of_somebody_who_is_not_known_yet(
    store: Store, tenant: TenantId, caplog: pytest.LogCaptureFixture
) -> None:
    configure(store, Server("web1", ServerKind.HOST, tenant="a-project"))
    assert "no tenant has the id or name 'a-project' yet" in caplog.text
    with pytest.raises(NotFoundError):
        store.run(lambda s: s.show_server(tenant, "web1"))


def test_a_tenants_server_does_not_exist_for_others(store: Store, tenant: TenantId) -> None:
    other = store.tenant("other")
    assert add(store, "mine", tenant="acme").tenant == tenant
    assert add(store, "theirs", tenant=other).tenant == other
    with pytest.raises(NotFoundError, match="no tenant"):
        add(store, "nobodys", tenant="nobody")
    assert [s.name for s in store.run(lambda s: s.list_servers(tenant))] == ["mine"]
    volume = store.volume(tenant)
    with pytest.raises(NotFoundError):
        store.run(lambda s: s.attach(tenant, "theirs", volume.id, None))
    with pytest.raises(NotFoundError):
        store.run(lambda s: s.show_server(tenant, "theirs"))
    store.run(lambda s: s.attach(tenant, "mine", volume.id, None))


def test_a_server_of_all_tenants_has_each_device_once(store: Store, tenant: TenantId) -> None:
    """Rule 6 of section 4.4.3: it is one machine."""
    other = store.tenant("other")
    add(store, "host1")
    first, second = store.volume(tenant), store.volume(other)
    assert store.run(lambda s: s.attach(tenant, "host1", first.id, None)).device == "/dev/vdb"
    with pytest.raises(ConflictError, match="at device /dev/sdb already"):
        store.run(lambda s: s.attach(other, "host1", second.id, "/dev/sdb"))
    assert store.run(lambda s: s.attach(other, "host1", second.id, None)).device == "/dev/vdc"
    # Neither sees the other's.
    assert len(store.run(lambda s: s.list_attachments(other, "host1"))) == 1


def test_a_server_with_volumes_is_not_removed(store: Store, tenant: TenantId) -> None:
    add(store, "host1")
    volume = store.volume(tenant)
    store.run(lambda s: s.attach(tenant, "host1", volume.id, None))
    with pytest.raises(InUseError, match=f"volume {volume.id} is attached"):
        remove(store, "host1")
    store.run(lambda s: s.detach(tenant, "host1", volume.id))
    remove(store, "host1")


def test_only_registered_servers_attach_where_servers_are_strict(
    store: Store, tenant: TenantId
) -> None:
    before, after = store.volume(tenant), store.volume(tenant)
    store.run(lambda s: s.attach(tenant, "old", before.id, None))
    add(store, "host1")
    strict(store)
    for server in ("new", "258315"):
        _does_not_exist(store, tenant, server, after)
    store.run(lambda s: s.attach(tenant, "host1", after.id, None))
    # What was attached before can be detached; then its server is gone.
    assert len(store.run(lambda s: s.list_attachments(tenant, "old"))) == 1
    store.run(lambda s: s.detach(tenant, "old", before.id))
    with pytest.raises(NotFoundError):
        store.run(lambda s: s.attach(tenant, "old", before.id, None))


def _does_not_exist(store: Store, tenant: TenantId, server: str, volume: Volume) -> None:
    with pytest.raises(NotFoundError):
        store.run(lambda s: s.attach(tenant, server, volume.id, None))
    with pytest.raises(NotFoundError):
        store.run(lambda s: s.list_attachments(tenant, server))
    with pytest.raises(NotFoundError):
        store.run(lambda s: s.show_server(tenant, server))


def test_a_name_of_any_allowed_length_is_kept(store: Store) -> None:
    add(store, "x" * 255)
    assert [server.name for server in Servers(store.context).all()] == ["x" * 255]
