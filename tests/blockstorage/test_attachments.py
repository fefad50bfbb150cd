"""Attachments over a real pool: the seven rules of servers (4.4.3), and one winner of many."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

import pytest
import trio

from bockd.blockstorage import volumes
from bockd.blockstorage.contract import Attachment, NewSnapshot, Status, TenantId, Volume
from bockd.blockstorage.records import EXPORTS, Ledger
from bockd.errors import (
    ConflictError,
    DeviceError,
    InUseError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
)
from bockd.index.tables import Table
from bockd.index.transaction import LmdbTransaction
from bockd.model import NodeKind
from bockd.runtime.steps import run_inline
from tests.blockstorage.store import Store


def attach(
    store: Store, tenant: TenantId, volume: Volume, server: str = "1", device: str | None = None
) -> Attachment:
    return store.run(lambda s: s.attach(tenant, server, volume.id, device))


def test_attached_and_detached(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    made = attach(store, tenant, volume, "258315", "/dev/sdf")
    assert (made.id, made.volume_id, made.server_id) == (volume.id, volume.id, "258315")
    assert made.device == "/dev/sdf"
    seen = store.look(tenant, volume)
    assert (seen.status, seen.attachment) == (Status.IN_USE, made)
    assert store.run(lambda s: s.list_attachments(tenant, "258315")) == [made]
    assert store.run(lambda s: s.show_attachment(tenant, "258315", volume.id)) == made
    store.run(lambda s: s.detach(tenant, "258315", volume.id))
    seen = store.look(tenant, volume)
    assert (seen.status, seen.attachment) == (Status.AVAILABLE, None)
    assert store.run(lambda s: s.list_attachments(tenant, "258315")) == []
    with pytest.raises(NotFoundError):
        store.run(lambda s: s.show_attachment(tenant, "258315", volume.id))


def test_rules_1_and_4_only_an_available_volume_at_one_server(
    store: Store, tenant: TenantId
) -> None:
    volume = store.volume(tenant)
    made = attach(store, tenant, volume, "1")
    for server in ("1", "2"):
        with pytest.raises(InvalidStateError, match=r"^Invalid volume: .*it is in-use$"):
            attach(store, tenant, volume, server)
    assert store.look(tenant, volume).attachment == made


def test_rule_3_only_a_volume_in_use_is_detached(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    with pytest.raises(InvalidStateError, match=r"^Invalid volume: .*it is available$"):
        store.run(lambda s: s.detach(tenant, "1", volume.id))
    attach(store, tenant, volume, "1")
    with pytest.raises(NotFoundError, match="not attached to server 2"):
        store.run(lambda s: s.detach(tenant, "2", volume.id))
    assert store.look(tenant, volume).status is Status.IN_USE


def test_rules_5_and_6_many_volumes_at_a_server_each_at_its_own_device(
    store: Store, tenant: TenantId
) -> None:
    made = [attach(store, tenant, store.volume(tenant), "1", "/dev/vdc")]
    made += [attach(store, tenant, store.volume(tenant), "1") for _ in range(3)]
    assert [a.device for a in made] == ["/dev/vdc", "/dev/vdb", "/dev/vdd", "/dev/vde"]
    assert store.run(lambda s: s.list_attachments(tenant, "1")) == made
    volume = store.volume(tenant)
    with pytest.raises(ConflictError):
        attach(store, tenant, volume, "1", "/dev/vdd")
    with pytest.raises(InvalidRequestError):
        attach(store, tenant, volume, "1", "sdf")
    assert store.look(tenant, volume).status is Status.AVAILABLE
    store.run(lambda s: s.detach(tenant, "1", made[2].volume_id))
    assert attach(store, tenant, volume, "1", "/dev/vdd").device == "/dev/vdd"
    # Another server, and another tenant's server of the same id, have their own devices.
    assert attach(store, tenant, store.volume(tenant), "10").device == "/dev/vdb"
    other = store.tenant("other")
    assert attach(store, other, store.volume(other), "1").device == "/dev/vdb"
    assert len(store.run(lambda s: s.list_attachments(other, "1"))) == 1


def test_an_attached_volume_is_not_deleted_and_snapshotted_by_force_only(
    store: Store, tenant: TenantId
) -> None:
    volume = store.volume(tenant)
    attach(store, tenant, volume)
    with pytest.raises(InvalidStateError, match="it is in-use"):
        store.run(lambda s: s.delete_volume(tenant, volume.id))
    with pytest.raises(InvalidStateError, match="attached"):
        store.run(lambda s: s.create_snapshot(tenant, NewSnapshot(volume.id)))
    assert store.snapshot(tenant, volume, force=True).volume_id == volume.id
    with pytest.raises(InUseError, match="detach it first"):
        run_inline(store.pool.delete_volume(volume.id, volumes.forget_record))
    assert store.look(tenant, volume).status is Status.IN_USE


@pytest.mark.parametrize("server", ["", "../1", "x" * 256])
def test_no_such_server(store: Store, tenant: TenantId, server: str) -> None:
    volume = store.volume(tenant)
    with pytest.raises(NotFoundError):
        attach(store, tenant, volume, server)
    with pytest.raises(NotFoundError):
        store.run(lambda s: s.list_attachments(tenant, server))
    assert store.look(tenant, volume).status is Status.AVAILABLE


def test_export_names_lead_to_what_is_attached(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    first = attach(store, tenant, volume).export_name
    assert _exported(store, first) == volume.id
    store.run(lambda s: s.detach(tenant, "1", volume.id))
    second = attach(store, tenant, volume).export_name
    assert (_exported(store, first), _exported(store, second)) == (None, volume.id)
    assert len(second) == 32
    assert [_exported(store, name) for name in ("", "x" * 600, "\ud800", str(volume.id))] == [
        None
    ] * 4
    store.restart()
    assert _exported(store, second) == volume.id
    assert second not in repr(store.look(tenant, volume))


def test_the_time_of_a_search_says_nothing_of_the_name(
    store: Store, tenant: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that share more and more of a valid one are compared as hashes, which share nothing: in
    the index, and then in constant time."""
    name = attach(store, tenant, store.volume(tenant)).export_name
    guesses = [name[:kept] + "." * (len(name) - kept) for kept in range(len(name))]
    searched: list[bytes] = []
    compared: list[tuple[bytes, bytes]] = []
    get, compare = LmdbTransaction.get, hmac.compare_digest

    def noting_get(txn: LmdbTransaction, table: Table, key: bytes) -> bytes | None:
        if table is EXPORTS:
            searched.append(key)
        return get(txn, table, key)

    def noting_compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(LmdbTransaction, "get", noting_get)
    monkeypatch.setattr(hmac, "compare_digest", noting_compare)
    for guess in (*guesses, name):
        _exported(store, guess)
    hashes = [hashlib.sha256(guess.encode()).digest() for guess in (*guesses, name)]
    assert searched == hashes
    assert compared == [(hashes[-1], hashes[-1])]


def _exported(store: Store, name: str) -> int | None:
    with store.pool.index.reading() as txn:
        owned = Ledger(txn).exported(name)
    return owned.volume.id if owned else None


def test_of_50_concurrent_attaches_exactly_one_succeeds(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    won: list[Attachment] = []
    lost: list[InvalidStateError] = []

    async def one(server: str) -> None:
        try:
            won.append(await store.service.attach(tenant, server, volume.id, None))
        except InvalidStateError as error:
            lost.append(error)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, str(number))

    trio.run(main)
    assert (len(won), len(lost)) == (1, 49)
    assert store.look(tenant, volume).attachment == won[0]


def test_concurrent_attaches_to_one_server_never_share_a_device(
    store: Store, tenant: TenantId
) -> None:
    made = [store.volume(tenant) for _ in range(20)]
    devices: list[str] = []

    async def one(volume: Volume) -> None:
        devices.append((await store.service.attach(tenant, "1", volume.id, None)).device)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for volume in made:
                nursery.start_soon(one, volume)

    trio.run(main)
    assert sorted(devices) == [f"/dev/vd{letter}" for letter in "bcdefghijklmnopqrstu"]


def test_attach_races_with_delete_and_one_of_them_wins(store: Store, tenant: TenantId) -> None:
    for _ in range(10):
        volume = store.volume(tenant)
        outcomes: list[str] = []

        async def deleting(volume: Volume, outcomes: list[str]) -> None:
            try:
                await store.service.delete_volume(tenant, volume.id)
                outcomes.append("deleted")
            except InvalidStateError:
                outcomes.append("kept")

        async def attaching(volume: Volume, outcomes: list[str]) -> None:
            try:
                await store.service.attach(tenant, "1", volume.id, None)
                outcomes.append("attached")
            except (InvalidStateError, NotFoundError):
                outcomes.append("refused")

        async def main(volume: Volume = volume, outcomes: list[str] = outcomes) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(deleting, volume, outcomes)
                nursery.start_soon(attaching, volume, outcomes)

        trio.run(main)
        assert sorted(outcomes) in (["attached", "kept"], ["deleted", "refused"])
        store.assert_sound()


@dataclass
class BrokenExports:
    """A data plane that fails when told to."""

    failing: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)

    async def publish(self, attachment: Attachment) -> None:
        await self._do(f"publish {attachment.volume_id}", "publish")

    async def withdraw(self, attachment: Attachment, *, force: bool) -> str | None:
        what = "cut" if force else "withdraw"
        await self._do(f"{what} {attachment.volume_id}", what)
        return "the sync failed" if "flush" in self.failing else None

    def clients(self, attachment: Attachment) -> int:
        del attachment
        return 0

    def forget(self, kind: NodeKind, node: int, *, kept: bool = False) -> None:
        self.calls.append(f"forget {kind} {node}")

    def connections(self, kind: NodeKind, node: int) -> int:
        return 0

    async def _do(self, call: str, what: str) -> None:
        self.calls.append(call)
        if what in self.failing:
            raise DeviceError(f"{what} failed")


def test_what_the_data_plane_cannot_do_is_undone(store: Store, tenant: TenantId) -> None:
    exports = BrokenExports()
    store.exports = exports
    store.restart()
    volume = store.volume(tenant)
    exports.failing = {"publish"}
    with pytest.raises(DeviceError):
        attach(store, tenant, volume)
    assert store.look(tenant, volume).status is Status.AVAILABLE
    exports.failing = {"withdraw"}
    attach(store, tenant, volume)
    with pytest.raises(DeviceError):
        store.run(lambda s: s.detach(tenant, "1", volume.id))
    assert store.look(tenant, volume).status is Status.IN_USE
    exports.failing = set()
    store.run(lambda s: s.detach(tenant, "1", volume.id))
    store.run(lambda s: s.delete_volume(tenant, volume.id))
    assert exports.calls == [
        *(f"{call} {volume.id}" for call in ("publish", "cut", "publish", "withdraw")),
        f"withdraw {volume.id}",
        f"forget volume {volume.id}",
    ]
