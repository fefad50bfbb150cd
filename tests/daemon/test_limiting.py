"""Which limits hold where: the index's, the configuration's, and those that come from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from bockd.blockstorage.contract import NewVolume, TenantId
from bockd.blockstorage.records import TENANTS
from bockd.daemon.limiting import LOOK_SECONDS, Limiting
from bockd.model import GIB, NO_IO_LIMITS, DeviceProfile, IoLimits, IoRate, NodeKind, VolumeId
from bockd.pool.nodes import Nodes
from bockd.runtime.steps import run_inline
from bockd.throttle.gates import Applied, Gates
from tests.blockstorage.store import Store
from tests.nbd.server.serving import in_jumping_time

OWN = IoLimits(iops=IoRate(500))
DEFAULT = IoLimits(bps=IoRate(1 << 20))
OF_ALL = IoLimits(iops=IoRate(9000))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "pool")
    yield store
    store.die()


def limiting(
    store: Store, of_volume: IoLimits = NO_IO_LIMITS, of_tenant: IoLimits = NO_IO_LIMITS
) -> Limiting:
    """What is configured for each volume, and for all of a tenant."""
    context = replace(store.context, volume_limits=of_volume, tenant_limits=of_tenant)
    return Limiting(context, Gates())


def limit(store: Store, volume: VolumeId, limits: IoLimits | None) -> None:
    store.pool.index.update(lambda txn: Nodes(txn).limit_volume(volume, limits))


def test_what_was_set_comes_before_the_default(store: Store) -> None:
    tenant = store.accounts.create_tenant("acme").id
    unowned = run_inline(store.pool.create_volume("unowned", GIB)).id
    made: Any = None

    async def create() -> None:
        nonlocal made
        made = await store.service.create_volume(tenant, NewVolume(1))

    trio.run(create)
    volume: VolumeId = made.id
    assert limiting(store).applied(volume) == Applied(NO_IO_LIMITS, tenant)
    assert limiting(store).applied(unowned) == Applied()
    by_default = limiting(store, DEFAULT, OF_ALL)
    assert by_default.applied(volume) == Applied(DEFAULT, tenant, OF_ALL)
    assert by_default.applied(unowned) == Applied(DEFAULT)
    limit(store, volume, OWN)
    store.accounts.set_limits("acme", NO_IO_LIMITS)
    assert by_default.applied(volume) == Applied(OWN, tenant, NO_IO_LIMITS)
    limit(store, volume, None)
    store.accounts.set_limits("acme", OWN)
    assert by_default.applied(volume) == Applied(DEFAULT, tenant, OWN)


def test_a_damaged_tenant_keeps_nobody_from_a_volume(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    tenant = TenantId("acme")

    async def create() -> VolumeId:
        return (await store.service.create_volume(tenant, NewVolume(1))).id

    volume = trio.run(create)
    store.pool.index.update(lambda txn: txn.put(TENANTS, b"acme", b"{}"))
    assert limiting(store).applied(volume) == Applied()
    assert "are not known" in caplog.text


@pytest.mark.parametrize(
    "stored", [IoLimits(iops=IoRate(0)), IoLimits(iops=IoRate(5), iops_size=0)]
)
def test_limits_that_cannot_be_are_damage(
    store: Store, caplog: pytest.LogCaptureFixture, stored: IoLimits
) -> None:
    """Or a division by zero would end every connection of the volume."""
    volume = run_inline(store.pool.create_volume("disk", GIB)).id
    other = run_inline(store.pool.create_volume("other", GIB)).id
    limits = limiting(store)
    limit(store, volume, OWN)
    assert limits.applied(volume) == Applied(OWN)
    for one in (volume, other):
        limit(store, one, stored)
    for _ in range(3):
        assert limits.applied(volume) == Applied(OWN)
        assert limits.applied(other) == Applied()
    assert [one.getMessage().split(":")[0] for one in caplog.records] == [
        f"the limits and profile of volume {one} are not known" for one in (volume, other)
    ]
    limit(store, volume, DEFAULT)
    assert limits.applied(volume) == Applied(DEFAULT)
    limit(store, volume, stored)
    assert limits.applied(volume) == Applied(DEFAULT)
    assert len(caplog.records) == 3


@in_jumping_time
async def test_limits_that_another_gateway_sets_hold_here_soon(tmp_path: Path) -> None:
    store = Store(tmp_path / "pool")
    volume = run_inline(store.pool.create_volume("disk", GIB)).id
    run_inline(store.pool.use(NodeKind.VOLUME, volume))
    features = replace(store.pool.features, several_gateways=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store.pool), "features", features)
        gates = Gates()
        limits = Limiting(store.context, gates)
        gate = gates.gate(volume)
        assert not gate.limited
        async with trio.open_nursery() as nursery:
            nursery.start_soon(limits.run)
            limit(store, volume, OWN)
            await trio.sleep(LOOK_SECONDS + 0.1)
            assert gate.limited
            limit(store, volume, None)
            await trio.sleep(LOOK_SECONDS + 0.1)
            assert not gate.limited
            nursery.cancel_scope.cancel()
    store.pool.leave(NodeKind.VOLUME, volume)
    store.die()


def give(store: Store, volume: VolumeId, profile: DeviceProfile | None) -> None:
    store.pool.index.update(lambda txn: Nodes(txn).profile_volume(volume, profile))


def test_profile_that_cannot_be_is_damage(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """The volume is used without it, or with the one that held before."""
    volume = run_inline(store.pool.create_volume("disk", GIB)).id
    limits = limiting(store)
    slow = DeviceProfile(name="slow", read_us=5000)
    for profile, applied in (
        (DeviceProfile(name="slow", read_us=-1), None),
        (slow, slow),
        (DeviceProfile(name="slow", parallel=0), slow),
        (None, None),
    ):
        give(store, volume, profile)
        assert limits.applied(volume) == Applied(profile=applied)
    assert caplog.text.count("the profile of volume") == 2


def test_profile_that_cannot_be_leaves_the_limits(store: Store) -> None:
    """Those of the volume and those of its tenant, also if they are changed meanwhile."""
    tenant = store.accounts.create_tenant("acme").id

    async def create() -> VolumeId:
        return (await store.service.create_volume(tenant, NewVolume(1))).id

    volume = trio.run(create)
    limit(store, volume, OWN)
    give(store, volume, DeviceProfile(name="slow", parallel=0))
    limits = limiting(store, DEFAULT, OF_ALL)
    assert limits.applied(volume) == Applied(OWN, tenant, OF_ALL)
    limit(store, volume, None)
    assert limits.applied(volume) == Applied(DEFAULT, tenant, OF_ALL)
