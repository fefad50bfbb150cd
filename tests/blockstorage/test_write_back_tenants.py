"""Who may choose write-back for a volume, and give up what is dirty of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from bockd.blockstorage import changes
from bockd.blockstorage.changes import Changes
from bockd.blockstorage.contract import Status, Tenant, TenantId, Usage
from bockd.blockstorage.records import TenantRecord
from bockd.blockstorage.running import NoPublisher, StorageContext
from bockd.errors import ForbiddenError
from bockd.model import CacheMode, VolumeId
from bockd.runtime.steps import run_inline

ID = VolumeId(1)
TENANT = TenantId("0123")


class Caches:
    """Of a pool: what was done."""

    def __init__(self) -> None:
        self.done: list[object] = []

    async def set_mode(self, _volume: VolumeId, mode: CacheMode, _more: object) -> None:
        self.done.append(mode)

    async def discard(self, _volume: VolumeId, _more: object) -> None:
        self.done.append("discarded")


@pytest.fixture
def caches() -> Caches:
    return Caches()


def operations(caches: Caches, patch: pytest.MonkeyPatch, *allowed: str) -> Changes:
    record = TenantRecord(Tenant(TENANT, "demo"), None, Usage())
    patch.setattr(changes, "Ledger", lambda _txn: SimpleNamespace(tenant=lambda _tenant: record))

    @contextmanager
    def reading() -> Iterator[None]:
        yield

    pool: Any = SimpleNamespace(caches=caches, index=SimpleNamespace(reading=reading))
    context = StorageContext(pool, NoPublisher(), write_back_tenants=frozenset(allowed))
    volumes: Any = SimpleNamespace(
        show=lambda _tenant, _volume: SimpleNamespace(status=Status.AVAILABLE)
    )
    return Changes(context, volumes)


@pytest.mark.parametrize("allowed", [(), ("other",)])
def test_a_tenant_that_is_not_named_may_not(
    caches: Caches, monkeypatch: pytest.MonkeyPatch, allowed: tuple[str, ...]
) -> None:
    tenant = operations(caches, monkeypatch, *allowed)
    for refused in (
        tenant.set_cache(TENANT, ID, CacheMode.WRITE_BACK),
        tenant.discard_cache(TENANT, ID),
    ):
        with pytest.raises(ForbiddenError, match=r"tenant demo may not .*write_back\.tenants"):
            run_inline(refused)
    assert caches.done == []
    run_inline(tenant.set_cache(TENANT, ID, CacheMode.WRITE_THROUGH))
    run_inline(tenant.set_cache(TENANT, ID, CacheMode.NONE))
    assert caches.done == [CacheMode.WRITE_THROUGH, CacheMode.NONE]


@pytest.mark.parametrize("name", ["demo", TENANT])
def test_a_tenant_is_named_by_its_id_or_its_name(
    caches: Caches, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tenant = operations(caches, monkeypatch, name)
    run_inline(tenant.set_cache(TENANT, ID, CacheMode.WRITE_BACK))
    run_inline(tenant.discard_cache(TENANT, ID))
    assert caches.done == [CacheMode.WRITE_BACK, "discarded"]
