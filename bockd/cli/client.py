"""The client side of the control API: HTTP over the daemon's Unix socket.

Each method is one endpoint of `/control/v1`. All raise the BockdError that the daemon raised, and
UnavailableError when no daemon answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import quote

import click

from bockd import errors
from bockd.cli.finding import suggesting
from bockd.cli.http import SOCKET_URL, Http
from bockd.config import load_settings
from bockd.control import (
    DaemonInfo,
    FrozenPool,
    ImageInfo,
    ImportInfo,
    PoolInfo,
    RecordingInfo,
    SnapshotInfo,
    Unowned,
    VolumeInfo,
    VolumeStatistics,
)
from bockd.dashboardcontrol import DashboardLink
from bockd.model import DeviceProfile, IoLimits, NodeKind, Server, ServerKind, VolumeId
from bockd.pool.gateways import Gateway
from bockd.pool.reports import BackupRecord, CheckReport, FamilyUsage, ScrubStatus, Space, SpacePage
from bockd.profiles.document import profile_document

T = TypeVar("T")

PREFIX = "/control/v1"

ERROR_OF_CODE = {
    family.code: family
    for family in vars(errors).values()
    if isinstance(family, type) and issubclass(family, errors.BockdError)
}


class ControlClient:
    """A connection to the daemon behind one socket. Nothing is opened before the first call."""

    def __init__(self, socket_path: Path, *, within_seconds: float | None = None) -> None:
        self._http = Http(socket_path, within_seconds=within_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def info(self) -> DaemonInfo:
        """Return which daemon answers, and where its frontends are."""
        return self.get("/info", DaemonInfo)

    def list_volumes(self) -> list[VolumeInfo]:
        """List all volumes by id."""
        return self.get("/volumes", list[VolumeInfo])

    def show_volume(self, ref: str) -> VolumeInfo:
        """Return one volume by id or by its name in the pool."""
        with suggesting(ref, lambda: (one.name for one in self.list_volumes())):
            return self.get(f"/volumes/{segment(ref)}", VolumeInfo)

    def limit_volume(self, ref: str, limits: IoLimits | None) -> VolumeInfo:
        """Limit a volume's I/O; None restores the default."""
        body = {"limits": None if limits is None else asdict(limits)}
        return decode(self.request("PUT", f"/volumes/{segment(ref)}/limits", body), VolumeInfo)

    def profile_volume(self, ref: str, profile: DeviceProfile | None) -> VolumeInfo:
        """Give a volume a device profile; None takes it away."""
        body = {"profile": None if profile is None else profile_document(profile)}
        return decode(self.request("PUT", f"/volumes/{segment(ref)}/profile", body), VolumeInfo)

    def list_snapshots(self, volume: str | None = None) -> list[SnapshotInfo]:
        """List all snapshots by id, or those of one volume."""
        query = "" if volume is None else f"?volume={segment(volume)}"
        return self.get(f"/snapshots{query}", list[SnapshotInfo])

    def space(self, kind: NodeKind, ref: str) -> Space:
        """Return the exact space of a volume or snapshot. The walk over a large volume takes its
        time."""
        path = f"/{kind.value}s/{segment(ref)}/space"
        return decode(self.request("GET", path, patient=True), Space)

    def spaces(self, after: int = 0, seconds: float | None = None) -> SpacePage:
        """Return the exact space of all volumes and of the snapshots in use; see bockd.control."""
        query = f"after={after}" if seconds is None else f"after={after}&seconds={seconds}"
        return decode(self.request("GET", f"/space?{query}", patient=True), SpacePage)

    def pool(self) -> PoolInfo:
        """Return what the pool takes, however long the walk over it takes."""
        return decode(self.request("GET", "/pool", patient=True), PoolInfo)

    def usage(self) -> list[FamilyUsage]:
        """Return what each volume and snapshot takes, however long the walk over all maps takes."""
        return decode(self.request("GET", "/usage", patient=True), list[FamilyUsage])

    def list_gateways(self) -> list[Gateway]:
        """List the gateways that serve the pool, by name."""
        return self.get("/gateways", list[Gateway])

    def list_servers(self) -> list[Server]:
        """List all registered servers by name."""
        return self.get("/servers", list[Server])

    def show_server(self, name: str) -> Server:
        """Return one registered server by name."""
        with suggesting(name, lambda: (one.name for one in self.list_servers())):
            return self.get(f"/servers/{segment(name)}", Server)

    def add_server(
        self, name: str, kind: ServerKind, qmp_socket: str | None, tenant: str | None
    ) -> Server:
        """Register a server."""
        body = {"name": name, "kind": kind.value, "qmp_socket": qmp_socket, "tenant": tenant}
        return decode(self.request("POST", "/servers", body), Server)

    def remove_server(self, name: str) -> None:
        """Remove a server. Raises InUseError while a volume is attached to it."""
        self.request("DELETE", f"/servers/{segment(name)}")

    def statistics(self) -> list[VolumeStatistics]:
        """Return the counters of each open volume and snapshot."""
        return self.get("/statistics", list[VolumeStatistics])

    def check(self) -> CheckReport:
        """Have the daemon check the pool, however long it takes."""
        return decode(self.request("POST", "/check", patient=True), CheckReport)

    def begin_backup(self) -> FrozenPool:
        """Have all volumes frozen for a backup, however many there are."""
        return decode(self.request("POST", "/backup", patient=True), FrozenPool)

    def end_backup(self, backup: str) -> None:
        """End a backup. Raises NotFoundError if the pool was not kept as it was."""
        self.request("POST", f"/backup/{segment(backup)}/end", patient=True)

    def list_backups(self) -> list[BackupRecord]:
        """List the last backup into each directory, the latest first."""
        return self.get("/backups", list[BackupRecord])

    def scrub(self, rate_mib: int | None, restart: bool) -> ScrubStatus:
        """Have the daemon verify in the background what snapshots hold."""
        body = {"rate_mib": rate_mib, "restart": restart}
        return decode(self.request("POST", "/scrub", body), ScrubStatus)

    def scrub_status(self) -> ScrubStatus:
        """Return how far the scrub is."""
        return self.get("/scrub", ScrubStatus)

    def begin_recording(self, ref: str) -> RecordingInfo:
        """Begin to record what a volume is sent."""
        return decode(self.request("POST", f"/volumes/{segment(ref)}/recording"), RecordingInfo)

    def take_records(self, recording: str) -> bytes:
        """Return the records since the last call, or a part of them if there are many."""
        return self.request("POST", f"/recordings/{segment(recording)}/records")

    def end_recording(self, recording: str) -> bytes:
        """End a recording. Return the records that are left, and the one that ends a trace."""
        return self.request("POST", f"/recordings/{segment(recording)}/end")

    def unowned(self) -> Unowned:
        """List what belongs to no tenant."""
        return self.get("/unowned", Unowned)

    def adopt(self, kind: NodeKind, ref: str, tenant: str) -> None:
        """Give a volume or snapshot that belongs to no tenant to a tenant."""
        self.request("POST", f"/{kind.value}s/{segment(ref)}/adopt", {"tenant": tenant})

    def list_images(self) -> list[ImageInfo]:
        """List all images by name."""
        return self.get("/images", list[ImageInfo])

    def show_image(self, ref: str) -> ImageInfo:
        """Return one image by id or name."""
        with suggesting(ref, lambda: (one.name for one in self.list_images())):
            return self.get(f"/images/{segment(ref)}", ImageInfo)

    def delete_image(self, ref: str) -> None:
        """Delete an image. Raises InUseError while it is read."""
        self.request("DELETE", f"/images/{segment(ref)}")

    def begin_import(
        self,
        name: str,
        disk_format: str,
        size_bytes: int,
        file_bytes: int,
        checksum: str,
        content_bytes: int | None = None,
    ) -> ImportInfo:
        """Create a volume to be filled with an image's content. All sizes are in bytes."""
        body = {
            "name": name,
            "disk_format": disk_format,
            "size_bytes": size_bytes,
            "content_bytes": content_bytes,
            "file_bytes": file_bytes,
            "checksum": checksum,
        }
        return decode(self.request("POST", "/imports", body), ImportInfo)

    def finish_import(self, volume: VolumeId) -> ImageInfo:
        """Make an image of what was written, however long its flush takes."""
        path = f"/imports/{volume}/finish"
        return decode(self.request("POST", path, patient=True), ImageInfo)

    def cancel_import(self, volume: VolumeId) -> None:
        """Discard what was written. Raises InUseError while a client is connected."""
        self.request("DELETE", f"/imports/{volume}")

    def make_dashboard_link(self) -> DashboardLink:
        """Have a link to the dashboard made that works once."""
        return decode(self.request("POST", "/dashboard/link"), DashboardLink)

    def get(self, path: str, answer: type[T]) -> T:
        """Return the record at a path below `PREFIX`."""
        return decode(self.request("GET", path), answer)

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        patient: bool = False,
    ) -> bytes:
        """Send a request to one endpoint and return its answer. Raises the daemon's error, of the
        class it had there. With `patient`, wait for the answer as long as it takes."""
        answer = self._http.request(method, SOCKET_URL + PREFIX + path, body, patient=patient)
        if answer.is_error:
            raise error_of_answer(answer.content)
        return answer.content


def segment(text: str) -> str:
    """Quote `text` as one segment of a URL path."""
    if not text:
        raise errors.InvalidRequestError("an empty name or id refers to nothing")
    if not text.strip("."):
        return "%2E" * len(text)  # "." and ".." would be resolved as in a directory
    return quote(text, safe="", errors="surrogateescape")


def decode(content: bytes, answer: type[T]) -> T:
    """Decode the record in an answer. Raises UnavailableError when it is not what bockd answers."""
    import msgspec

    try:
        return msgspec.json.decode(content, type=answer)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise errors.UnavailableError(
            f"the answer on the socket is not this bockd's ({error}): is the daemon of another "
            "version? Restart it"
        ) from error


def error_of_answer(content: bytes) -> errors.BockdError:
    """Return the daemon's error, of the class it had there."""
    fault = decode(content, dict[str, dict[str, str]]).get("error", {})
    family = ERROR_OF_CODE.get(fault.get("code", ""), errors.BockdError)
    return family(fault.get("message", "the daemon failed and did not say why"))


def connect() -> ControlClient:
    """Return a client of the daemon that the environment points to. It is closed when the command
    ends."""
    client = ControlClient(load_settings().api_socket)
    click.get_current_context().call_on_close(client.close)
    return client
