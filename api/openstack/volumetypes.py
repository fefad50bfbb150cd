"""Volume types, of which there are none: `volume_type` is ignored, as specified (4.4.2.2)."""

from __future__ import annotations

from fastapi import APIRouter
from typing_extensions import TypedDict

from api.openstack.access import InTenant
from api.openstack.deferred import reply


class VolumeType(TypedDict):
    """What a type would be."""

    id: str
    name: str


@reply
class VolumeTypeList(TypedDict):
    """`{"volume_types": []}`."""

    volume_types: list[VolumeType]


def volume_type_router(prefix: str) -> APIRouter:
    """Build the router of `{tenant}` + `prefix`, for clients that ask which types there are."""
    router = APIRouter(prefix=prefix, tags=["volumes"])

    @router.get("")
    async def list_volume_types(_: InTenant) -> VolumeTypeList:
        """List the volume types: there are none."""
        return {"volume_types": []}

    return router
