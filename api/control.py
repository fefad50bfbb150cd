"""The control API: `/control/v1/...`, one endpoint for each method of `bockd.control.Control`.

It is the operator's frontend: served on a Unix socket whose permissions are the guard, not on TCP.
A `{ref}` in a path is an id in decimal or a name, percent-encoded as one segment. Sizes are in
bytes, times in seconds since the epoch. Answers are the records of `bockd.control` as JSON objects;
errors are those of `api.faults`.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from api.listing import answer_array, answer_record
from bockd.control import (
    Control,
    DaemonInfo,
    FrozenPool,
    PoolInfo,
    RecordingInfo,
    SnapshotInfo,
    Unowned,
    VolumeInfo,
    VolumeStatistics,
)
from bockd.model import DeviceProfile, IoLimits, IoRate, NodeKind, Server, ServerKind
from bockd.pool.gateways import Gateway
from bockd.pool.reports import BackupRecord, CheckReport, FamilyUsage, ScrubStatus, Space, SpacePage
from bockd.profiles.document import read_profile

PREFIX = "/control/v1"


class Body(BaseModel):
    """A request's JSON object: no key but those named, no value of another type."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Adopt(Body):
    """`tenant` is an id."""

    tenant: str


class AddServer(Body):
    """`tenant` is an id or a name; `qmp_socket` is for a vm."""

    name: str
    kind: Annotated[ServerKind, Field(strict=False)]
    qmp_socket: str | None = None
    tenant: str | None = None


class RateBody(Body):
    """A limit per second. `burst` is the rate of a burst, and `burst_seconds` its length."""

    per_second: int
    burst: int | None = None
    burst_seconds: int = 1

    def rate(self) -> IoRate:
        """Return the limit."""
        return IoRate(self.per_second, self.burst, self.burst_seconds)


class LimitsBody(Body):
    """IoLimits of I/O: operations (iops) and bytes (bps) per second, of reads, of writes, and of
    both together. What is left out has none. A request counts as one operation for each
    `iops_size` bytes that it begins."""

    iops: RateBody | None = None
    read_iops: RateBody | None = None
    write_iops: RateBody | None = None
    bps: RateBody | None = None
    read_bps: RateBody | None = None
    write_bps: RateBody | None = None
    iops_size: int | None = None

    def wanted(self) -> IoLimits:
        """Return the limits that the body asks for."""

        def rate(given: RateBody | None) -> IoRate | None:
            return None if given is None else given.rate()

        return IoLimits(
            iops=rate(self.iops),
            read_iops=rate(self.read_iops),
            write_iops=rate(self.write_iops),
            bps=rate(self.bps),
            read_bps=rate(self.read_bps),
            write_bps=rate(self.write_bps),
            iops_size=self.iops_size,
        )


class SetLimits(Body):
    """IoLimits that replace those that there are; null restores the default."""

    limits: LimitsBody | None

    def wanted(self) -> IoLimits | None:
        """Return the limits that the body asks for."""
        return None if self.limits is None else self.limits.wanted()


class SetProfile(Body):
    """A device profile, as docs/profiles.md has its fields; null takes it away."""

    profile: dict[str, Any] | None

    def wanted(self) -> DeviceProfile | None:
        """Return the profile that the body has. Raises InvalidRequestError."""
        return None if self.profile is None else read_profile(self.profile)


class Scrub(Body):
    """`rate_mib` is in MiB per second, as configured if null; `restart` abandons a pass in
    progress."""

    rate_mib: Annotated[int, Field(ge=1, le=65536)] | None = None
    restart: bool = False


class RecordsResponse(Response):
    """Records of a trace, as they are."""

    media_type = "application/octet-stream"


class SnapshotFilter(BaseModel):
    """The query of a listing."""

    model_config = ConfigDict(extra="forbid")

    volume: str | None = None


class SpaceQuery(BaseModel):
    """The id to begin after, and the time to take, in seconds."""

    model_config = ConfigDict(extra="forbid")

    after: Annotated[int, Field(ge=0)] = 0
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


def decode_ref(
    ref: Annotated[str, Path(description="An id or a name, percent-encoded")],
) -> str:
    """Decode the reference of the path. Paths are routed as they were sent (see `api.intake`), so
    this segment is still encoded."""
    return unquote(ref)


Ref = Annotated[str, Depends(decode_ref)]


def control_router(control: Control) -> APIRouter:
    """Build the router of the control API below PREFIX, answered by `control`."""
    router = APIRouter()
    router.include_router(pool_router(control))
    router.include_router(volume_router(control))
    router.include_router(snapshot_router(control))
    router.include_router(server_router(control))
    router.include_router(recording_router(control))
    return router


def pool_router(control: Control) -> APIRouter:
    """Build the router of the daemon and the pool as a whole."""
    router = APIRouter(tags=["pool"])

    @router.get("/info")
    async def info() -> DaemonInfo:
        """Show which daemon answers, and where its frontends are."""
        return await control.info()

    @router.get("/gateways")
    async def list_gateways() -> list[Gateway]:
        """List the gateways that serve the pool."""
        return await control.list_gateways()

    @router.get("/statistics", response_model=list[VolumeStatistics])
    async def statistics() -> Response:
        """Show the counters of each open volume and snapshot."""
        return await answer_array(await control.statistics())

    @router.get("/space", response_model=SpacePage)
    async def spaces(query: Annotated[SpaceQuery, Query()]) -> Response:
        """Show the exact space of all volumes, and of the snapshots that are in use."""
        return answer_record(await control.spaces(query.after, query.seconds))

    @router.get("/pool")
    async def pool() -> PoolInfo:
        """Show what the pool takes of its file system, and what it has promised."""
        return await control.pool()

    @router.get("/usage", response_model=list[FamilyUsage])
    async def usage() -> Response:
        """Show what each volume and snapshot takes and shares."""
        return await answer_array(await control.usage())

    @router.get("/unowned")
    async def unowned() -> Unowned:
        """List the volumes and snapshots that belong to no tenant."""
        return await control.unowned()

    @router.post("/check")
    async def check() -> CheckReport:
        """Check the pool while it serves, without repairing."""
        return await control.check()

    @router.get("/backups")
    async def list_backups() -> list[BackupRecord]:
        """List the last backup into each directory."""
        return await control.list_backups()

    @router.post("/backup")
    async def begin_backup() -> FrozenPool:
        """Freeze the pool for the process that holds its backup lock."""
        return await control.begin_backup()

    @router.post("/backup/{backup}/end", status_code=204)
    async def end_backup(backup: str) -> None:
        """End the freeze of a backup; an error if the pool was not frozen all the time."""
        await control.end_backup(backup)

    @router.post("/scrub")
    async def scrub(body: Scrub) -> ScrubStatus:
        """Verify in the background what snapshots hold."""
        return await control.scrub(body.rate_mib, body.restart)

    @router.get("/scrub")
    async def scrub_status() -> ScrubStatus:
        """Show how far the scrub has come, and what is damaged."""
        return await control.scrub_status()

    return router


def volume_router(control: Control) -> APIRouter:
    """Build the router of volumes."""
    router = APIRouter(prefix="/volumes", tags=["volumes"])

    @router.get("", response_model=list[VolumeInfo])
    async def list_volumes() -> Response:
        """List all volumes by id."""
        return await answer_array(await control.list_volumes())

    @router.get("/{ref}")
    async def show_volume(ref: Ref) -> VolumeInfo:
        """Show one volume."""
        return await control.show_volume(ref)

    @router.put("/{ref}/limits")
    async def limit_volume(ref: Ref, body: SetLimits) -> VolumeInfo:
        """Limit a volume's I/O."""
        return await control.limit_volume(ref, body.wanted())

    @router.put("/{ref}/profile")
    async def profile_volume(ref: Ref, body: SetProfile) -> VolumeInfo:
        """Make a volume as slow as another device, and fail like one."""
        return await control.profile_volume(ref, body.wanted())

    @router.post("/{ref}/release", status_code=204)
    async def release_volume(ref: Ref) -> None:
        """Close a volume that nobody uses, so that another process can open it at once."""
        await control.release_volume(ref)

    @router.post("/{ref}/adopt", status_code=204)
    async def adopt_volume(ref: Ref, body: Adopt) -> None:
        """Give a volume that belongs to nobody to a tenant."""
        await control.adopt(NodeKind.VOLUME, ref, body.tenant)

    @router.get("/{ref}/space")
    async def volume_space(ref: Ref) -> Space:
        """Compute a volume's exact space, by a walk over its maps."""
        return await control.space(NodeKind.VOLUME, ref)

    return router


def snapshot_router(control: Control) -> APIRouter:
    """Build the router of snapshots."""
    router = APIRouter(prefix="/snapshots", tags=["snapshots"])

    @router.get("", response_model=list[SnapshotInfo])
    async def list_snapshots(query: Annotated[SnapshotFilter, Query()]) -> Response:
        """List all snapshots by id, or those of one volume."""
        return await answer_array(await control.list_snapshots(query.volume))

    @router.post("/{ref}/adopt", status_code=204)
    async def adopt_snapshot(ref: Ref, body: Adopt) -> None:
        """Give a snapshot that belongs to nobody to a tenant."""
        await control.adopt(NodeKind.SNAPSHOT, ref, body.tenant)

    @router.get("/{ref}/space")
    async def snapshot_space(ref: Ref) -> Space:
        """Compute a snapshot's exact space, by a walk over its maps."""
        return await control.space(NodeKind.SNAPSHOT, ref)

    return router


def server_router(control: Control) -> APIRouter:
    """Build the router of servers, to which volumes are attached."""
    router = APIRouter(prefix="/servers", tags=["servers"])

    @router.get("")
    async def list_servers() -> list[Server]:
        """List all registered servers by name."""
        return await control.list_servers()

    @router.post("", status_code=201)
    async def add_server(body: AddServer) -> Server:
        """Register a server."""
        return await control.add_server(Server(body.name, body.kind, body.qmp_socket, body.tenant))

    @router.get("/{ref}")
    async def show_server(ref: Ref) -> Server:
        """Show one registered server."""
        return await control.show_server(ref)

    @router.delete("/{ref}", status_code=204)
    async def remove_server(ref: Ref) -> None:
        """Remove a server; refused while a volume is attached to it."""
        await control.remove_server(ref)

    return router


def recording_router(control: Control) -> APIRouter:
    """Build the router of recordings of what volumes are sent."""
    router = APIRouter(tags=["recordings"])

    @router.post("/volumes/{ref}/recording", status_code=201)
    async def begin_recording(ref: Ref) -> RecordingInfo:
        """Begin to record what a volume is sent."""
        return await control.begin_recording(ref)

    @router.post("/recordings/{recording}/records", response_class=RecordsResponse)
    async def take_records(recording: str) -> RecordsResponse:
        """Take the records since the last call, in the format of a trace without its header."""
        return RecordsResponse(await control.take_records(recording))

    @router.post("/recordings/{recording}/end", response_class=RecordsResponse)
    async def end_recording(recording: str) -> RecordsResponse:
        """End a recording, and take the records that are left and the one that ends a trace."""
        return RecordsResponse(await control.end_recording(recording))

    return router
