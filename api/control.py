"""The control API: `/control/v1/...`, one endpoint for each method of `bockd.control.Control`.

It is the operator's door: served on a Unix socket whose permissions are the guard, never on TCP.
A `{ref}` in a path is an id in decimal or a name, percent-encoded as one segment. Sizes are in
bytes, times in seconds since the epoch. Answers are the records of `bockd.control` as JSON objects;
errors are those of `api.faults`.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from bockd.control import (
    CheckReport,
    Control,
    DaemonInfo,
    SnapshotInfo,
    Space,
    VolumeInfo,
    VolumeStatistics,
)
from bockd.model import NodeKind, Server, ServerKind

PREFIX = "/control/v1"


class Body(BaseModel):
    """A request's JSON object: no key but those named, no value of another type."""

    model_config = ConfigDict(strict=True, extra="forbid")


class CreateVolume(Body):
    """A blank volume needs a size; a clone may leave it out."""

    name: str
    size_bytes: int | None = None
    from_snapshot: str | None = None


class ExtendVolume(Body):
    """The new size, not the difference."""

    size_bytes: int


class CreateSnapshot(Body):
    """`volume` is an id or a name, `name` is the snapshot's own."""

    volume: str
    name: str


class AddServer(Body):
    """`tenant` is an id or a name; `qmp_socket` is for a vm."""

    name: str
    kind: Annotated[ServerKind, Field(strict=False)]
    qmp_socket: str | None = None
    tenant: str | None = None


class SnapshotFilter(BaseModel):
    """The query of a listing."""

    model_config = ConfigDict(extra="forbid")

    volume: str | None = None


def decode_ref(
    ref: Annotated[str, Path(description="An id or a name, percent-encoded")],
) -> str:
    """The path was routed as it was sent (see `api.intake`), so this segment is still encoded."""
    return unquote(ref)


Ref = Annotated[str, Depends(decode_ref)]


def control_router(control: Control) -> APIRouter:
    """All endpoints of the control API, answered by `control`."""
    router = APIRouter(prefix=PREFIX)
    router.include_router(pool_router(control))
    router.include_router(volume_router(control))
    router.include_router(snapshot_router(control))
    router.include_router(server_router(control))
    return router


def pool_router(control: Control) -> APIRouter:
    """The daemon and the pool as a whole."""
    router = APIRouter(tags=["pool"])

    @router.get("/info")
    async def info() -> DaemonInfo:
        """Who answers, and where its doors are."""
        return await control.info()

    @router.get("/statistics")
    async def statistics() -> list[VolumeStatistics]:
        """Counters of each open volume and snapshot."""
        return await control.statistics()

    @router.post("/check")
    async def check() -> CheckReport:
        """Walk the pool while it serves, without repairing."""
        return await control.check()

    return router


def volume_router(control: Control) -> APIRouter:
    """Volumes."""
    router = APIRouter(prefix="/volumes", tags=["volumes"])

    @router.get("")
    async def list_volumes() -> list[VolumeInfo]:
        """All volumes by id."""
        return await control.list_volumes()

    @router.post("", status_code=201)
    async def create_volume(body: CreateVolume) -> VolumeInfo:
        """A blank volume, or a clone of a snapshot."""
        return await control.create_volume(body.name, body.size_bytes, body.from_snapshot)

    @router.get("/{ref}")
    async def show_volume(ref: Ref) -> VolumeInfo:
        """One volume."""
        return await control.show_volume(ref)

    @router.delete("/{ref}", status_code=204)
    async def delete_volume(ref: Ref) -> None:
        """Forget a volume; refused while a client is connected."""
        await control.delete_volume(ref)

    @router.post("/{ref}/extend")
    async def extend_volume(ref: Ref, body: ExtendVolume) -> VolumeInfo:
        """Grow a volume."""
        return await control.extend_volume(ref, body.size_bytes)

    @router.post("/{ref}/reopen")
    async def reopen_volume(ref: Ref) -> VolumeInfo:
        """Let a failed volume be used again, accepting that its latest writes may be lost."""
        return await control.reopen_volume(ref)

    @router.get("/{ref}/space")
    async def volume_space(ref: Ref) -> Space:
        """Exact space, by a walk over the volume's maps."""
        return await control.space(NodeKind.VOLUME, ref)

    return router


def snapshot_router(control: Control) -> APIRouter:
    """Snapshots."""
    router = APIRouter(prefix="/snapshots", tags=["snapshots"])

    @router.get("")
    async def list_snapshots(query: Annotated[SnapshotFilter, Query()]) -> list[SnapshotInfo]:
        """All snapshots by id, or those of one volume."""
        return await control.list_snapshots(query.volume)

    @router.post("", status_code=201)
    async def create_snapshot(body: CreateSnapshot) -> SnapshotInfo:
        """Freeze what a volume holds now."""
        return await control.create_snapshot(body.volume, body.name)

    @router.get("/{ref}")
    async def show_snapshot(ref: Ref) -> SnapshotInfo:
        """One snapshot."""
        return await control.show_snapshot(ref)

    @router.delete("/{ref}", status_code=204)
    async def delete_snapshot(ref: Ref) -> None:
        """Forget a snapshot; volumes made from it stay."""
        await control.delete_snapshot(ref)

    @router.post("/{ref}/revert")
    async def revert_volume(ref: Ref) -> VolumeInfo:
        """Make the snapshot's volume hold again what the snapshot holds."""
        return await control.revert_volume(ref)

    @router.get("/{ref}/space")
    async def snapshot_space(ref: Ref) -> Space:
        """Exact space, by a walk over the snapshot's maps."""
        return await control.space(NodeKind.SNAPSHOT, ref)

    return router


def server_router(control: Control) -> APIRouter:
    """Servers that volumes are attached to."""
    router = APIRouter(prefix="/servers", tags=["servers"])

    @router.get("")
    async def list_servers() -> list[Server]:
        """All registered servers by name."""
        return await control.list_servers()

    @router.post("", status_code=201)
    async def add_server(body: AddServer) -> Server:
        """Register a server."""
        return await control.add_server(Server(body.name, body.kind, body.qmp_socket, body.tenant))

    @router.get("/{ref}")
    async def show_server(ref: Ref) -> Server:
        """One registered server."""
        return await control.show_server(ref)

    @router.delete("/{ref}", status_code=204)
    async def remove_server(ref: Ref) -> None:
        """Forget a server; refused while a volume is attached to it."""
        await control.remove_server(ref)

    return router
