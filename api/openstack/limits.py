"""A tenant's quota and what it has used of it (section 4.4.2, "Quota Limits")."""

from __future__ import annotations

from fastapi import APIRouter
from typing_extensions import TypedDict

from api.openstack.access import InTenant
from api.openstack.deferred import reply
from bockd.blockstorage.contract import BlockStorage


class AbsoluteLimits(TypedDict):
    """The quota and what is used of it; -1 is no limit."""

    maxTotalVolumes: int
    maxTotalVolumeGigabytes: int
    maxTotalSnapshots: int
    totalVolumesUsed: int
    totalGigabytesUsed: int
    totalSnapshotsUsed: int


class LimitsView(TypedDict):
    """`rate` is empty: there are no rate limits (section 4.4.2)."""

    rate: list[str]
    absolute: AbsoluteLimits


@reply
class OneLimits(TypedDict):
    """`{"limits": {...}}`."""

    limits: LimitsView


def limits_router(storage: BlockStorage) -> APIRouter:
    """Build the router of `{tenant}/limits`."""
    router = APIRouter(prefix="/limits", tags=["limits"])

    @router.get("")
    async def show_limits(tenant: InTenant) -> OneLimits:
        """Show the tenant's limits."""
        limits = await storage.limits(tenant)
        return {
            "limits": {
                "rate": [],
                "absolute": {
                    "maxTotalVolumes": limits.quota.volumes,
                    "maxTotalVolumeGigabytes": limits.quota.gigabytes,
                    "maxTotalSnapshots": limits.quota.snapshots,
                    "totalVolumesUsed": limits.used.volumes,
                    "totalGigabytesUsed": limits.used.gigabytes,
                    "totalSnapshotsUsed": limits.used.snapshots,
                },
            }
        }

    return router
