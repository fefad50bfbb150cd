"""The list of everything, of thousands of volumes: clients are served while it is made."""

from __future__ import annotations

import gc
from pathlib import Path

import msgspec
import pytest

from api.dashboard.overview import OwnedNodes, keep_volumes, overview
from api.listing import PIECE
from bockd.accountcontrol import AccountControl, TenantInfo
from bockd.blockstorage.contract import NewVolume, Page, Quota, TenantId
from bockd.blockstorage.trashcontract import StorageWithTrash, TrashedNode
from bockd.model import MIB
from tests.api.memory_blockstorage import MemoryBlockStorage
from tests.api.memory_control import MemoryControl
from tests.api.memory_identity import DEMO
from tests.nbd.server.serving import in_trio
from tests.runtime.turns import counting_turns

VOLUMES = 20 * PIECE


class Accounts:
    """Knows one tenant; the overview asks for nothing else."""

    async def list_tenants(self) -> list[TenantInfo]:
        return [TenantInfo(DEMO.id, DEMO.name, 0, 0, 0, -1, -1, -1, "default")]


class Trash:
    """Empty; the overview asks for nothing else."""

    keep_seconds = 0.0

    async def list(self, _tenant: TenantId, _page: Page) -> list[TrashedNode]:
        return []


class Storage(MemoryBlockStorage):
    """One with an empty trash."""

    trash = Trash()


@in_trio
async def test_the_loop_turns_while_everything_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = MemoryControl(tmp_path)
    storage = Storage(Quota(VOLUMES, VOLUMES, 0))
    for number in range(VOLUMES):
        control.add_volume(f"pool name {number}", MIB)
        await storage.create_volume(DEMO.id, NewVolume(1, f"name {number}"))
    nobodys = control.add_volume("nobody's", MIB)
    snapshot = control.add_snapshot("nobody's", "then")
    accounts: AccountControl = Accounts()  # type: ignore[assignment]
    kept: StorageWithTrash = storage  # type: ignore[assignment]
    async with counting_turns(monkeypatch) as turns:
        found = msgspec.json.decode(b"".join(await overview(control, accounts, kept)))
        # Once as the tenant knows them, once as they are written.
        assert turns.count >= 2 * VOLUMES // PIECE - 1
    assert (found["trash"], found["keep_seconds"]) == ([], 0)
    assert [one["id"] for one in found["tenants"]] == [DEMO.id]
    volumes, snapshots = found["volumes"], found["snapshots"]
    assert len(volumes) == VOLUMES + 1
    assert {one["tenant"] for one in volumes[:-1]} == {DEMO.id}
    assert (volumes[7]["name"], volumes[7]["pool_name"]) == ("name 7", "pool name 7")
    assert (volumes[-1]["id"], volumes[-1]["tenant"]) == (nobodys.id, None)
    assert [(one["id"], one["name"], one["volume"]) for one in snapshots] == [
        (snapshot.id, "then", nobodys.id)
    ]


@in_trio
async def test_the_loop_turns_after_each_tenant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most have less than a page of anything."""

    class Many(Accounts):
        async def list_tenants(self) -> list[TenantInfo]:
            return VOLUMES * await super().list_tenants()

    accounts: AccountControl = Many()  # type: ignore[assignment]
    storage: StorageWithTrash = Storage(Quota(1, 1, 0))  # type: ignore[assignment]
    async with counting_turns(monkeypatch) as turns:
        await overview(MemoryControl(tmp_path), accounts, storage)
        assert turns.count >= VOLUMES - 1


@in_trio
async def test_the_garbage_collector_sees_nothing_of_what_is_kept_meanwhile() -> None:
    """Its passes take milliseconds for thousands of records, and nobody is served meanwhile."""
    storage = Storage(Quota(VOLUMES, VOLUMES, 0))
    made = [await storage.create_volume(DEMO.id, NewVolume(1, f"{one}")) for one in range(PIECE)]
    owned = OwnedNodes()
    keep_volumes(owned, TenantId(DEMO.id))(made)
    assert len(owned) == PIECE
    assert not any(map(gc.is_tracked, owned.values()))
