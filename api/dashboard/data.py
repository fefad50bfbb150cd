"""What the dashboard's pages ask for: `/data/...`, by GET, which changes nothing.

How often a page asks is the page's business; what costs a walk over the pool is remembered here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

import trio
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from api.dashboard.overview import overview
from api.dashboard.remembered import Remembered
from api.listing import PiecesResponse, encode_all, with_arrays
from bockd.accountcontrol import AccountControl
from bockd.blockstorage.contract import TenantId
from bockd.blockstorage.trashcontract import StorageWithTrash
from bockd.control import Control, DaemonInfo, ImageControl, ImageInfo, PoolInfo
from bockd.dashboardcontrol import HeatControl, HeatMap
from bockd.errors import NotSupportedError
from bockd.model import NodeKind, Server, VolumeId
from bockd.pool.gateways import Gateway
from bockd.pool.reports import BackupRecord, ScrubStatus, Space
from bockd.profiles.builtin import BUILT_IN
from bockd.profiles.document import profile_document

DATA_PATH = "/data"

POOL_SECONDS = 15.0
"""How old the pool's figures may be; they are a walk over everything in it."""

OVERVIEW_SECONDS = 2.0
"""How old the lists may be; they are a look at every record. A page that has changed something does
not wait for it."""

ACTIVITY_SECONDS = 0.5
"""Of the counters: pages ask once a second each."""

WALKS = 1
"""Volumes or snapshots whose space is computed at once, for all pages together."""


@dataclass(frozen=True, slots=True)
class Activity:
    """When the counters of what is open were taken, which are an array `exports` (VolumeStatistics)
    beside it; rates are the page's subtraction."""

    at: float
    """Seconds of a clock that never goes back."""


@dataclass(frozen=True, slots=True)
class Health:
    """What is known without a walk over the pool."""

    daemon: DaemonInfo
    scrub: ScrubStatus | None
    """None: this kind of pool has no checksums of its own."""
    gateways: tuple[Gateway, ...]
    backups: tuple[BackupRecord, ...] | None
    """None: this kind of pool is not backed up by copying it."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the forms offer."""

    servers: tuple[Server, ...]
    images: tuple[ImageInfo, ...]
    profiles: tuple[str, ...]
    """Names of the device profiles that bockd brings."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a volume is made to look like."""

    profile: dict[str, Any] | None
    """As docs/profiles.md has its fields."""


class Node(BaseModel):
    """The query that names a volume or a snapshot."""

    model_config = ConfigDict(extra="forbid")

    kind: NodeKind
    id: int


def data_router(
    control: Control,
    images: ImageControl,
    accounts: AccountControl,
    storage: StorageWithTrash,
    heat: HeatControl,
) -> APIRouter:
    """Build the router of what is read."""
    router = APIRouter(prefix=DATA_PATH)
    pool = Remembered(control.pool, POOL_SECONDS)
    walks = trio.CapacityLimiter(WALKS)

    async def sample() -> list[bytes]:
        exports = await encode_all(await control.statistics(), lambda one: one)
        return with_arrays(Activity(time.monotonic()), exports=exports)

    activity = Remembered(sample, ACTIVITY_SECONDS)

    async def look() -> list[bytes]:
        return await overview(control, accounts, storage)

    lists = Remembered(look, OVERVIEW_SECONDS)

    @router.get("/overview")
    async def get_overview(fresh: bool = False) -> Response:
        if fresh:
            lists.forget()
        return PiecesResponse(await lists.get())

    @router.get("/activity")
    async def get_activity() -> Response:
        return PiecesResponse(await activity.get())

    @router.get("/pool")
    async def get_pool() -> PoolInfo:
        return await pool.get()

    @router.get("/health")
    async def get_health() -> Health:
        try:
            scrub = await control.scrub_status()
        except NotSupportedError:
            scrub = None
        try:
            backups = tuple(await control.list_backups())
        except NotSupportedError:
            backups = None
        gateways = tuple(await control.list_gateways())
        return Health(await control.info(), scrub, gateways, backups)

    @router.get("/choices")
    async def get_choices() -> Choices:
        return Choices(
            servers=tuple(await control.list_servers()),
            images=tuple(await images.list_images()),
            profiles=tuple(BUILT_IN),
        )

    @router.get("/profile")
    async def get_profile(volume: Annotated[int, Query(ge=0)]) -> Profile:
        found = (await control.show_volume(str(volume))).profile
        return Profile(None if found is None else profile_document(found))

    @router.get("/space")
    async def get_space(node: Annotated[Node, Query()]) -> Space:
        async with walks:
            return await control.space(node.kind, str(node.id))

    @router.get("/trashed-space")
    async def get_trashed_space(tenant: str, node: Annotated[int, Query(ge=0)]) -> Space:
        async with walks:
            return await storage.trash.space(TenantId(tenant), node)

    @router.get("/heat")
    async def get_heat(volume: Annotated[int, Query(ge=0)]) -> HeatMap:
        return await heat.heat(VolumeId(volume))

    return router
