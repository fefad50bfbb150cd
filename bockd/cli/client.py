"""The client side of the control API: HTTP over the daemon's Unix socket.

Each method is one endpoint of `/control/v1`. All raise the BockdError that the daemon raised, and
UnavailableError when no daemon answers.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar
from urllib.parse import quote

import click

from bockd import errors
from bockd.config import load_settings
from bockd.control import (
    CheckReport,
    DaemonInfo,
    SnapshotInfo,
    Space,
    VolumeInfo,
    VolumeStatistics,
)
from bockd.model import NodeKind, Server, ServerKind

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

PREFIX = "/control/v1"

ANSWER_TIMEOUT_SECONDS = 60.0
"""For what the daemon does at once; a snapshot may wait for a flush of a slow disk."""

ERROR_OF_CODE = {
    family.code: family
    for family in vars(errors).values()
    if isinstance(family, type) and issubclass(family, errors.BockdError)
}


class ControlClient:
    """A connection to the daemon behind one socket. Nothing is opened before the first call."""

    def __init__(self, socket_path: Path, *, timeout_seconds: float | None = None) -> None:
        self._socket_path = socket_path
        self._timeout = ANSWER_TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds
        self._http: httpx.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def info(self) -> DaemonInfo:
        """Who answers, and where its doors are."""
        return self._get("/info", DaemonInfo)

    def list_volumes(self) -> list[VolumeInfo]:
        """All volumes by id."""
        return self._get("/volumes", list[VolumeInfo])

    def show_volume(self, ref: str) -> VolumeInfo:
        """One volume by id or name."""
        return self._get(f"/volumes/{segment(ref)}", VolumeInfo)

    def create_volume(
        self, name: str, size_bytes: int | None, from_snapshot: str | None = None
    ) -> VolumeInfo:
        """A blank volume, or a clone of a snapshot."""
        body = {"name": name, "size_bytes": size_bytes, "from_snapshot": from_snapshot}
        return self._post("/volumes", body, VolumeInfo)

    def extend_volume(self, ref: str, size_bytes: int) -> VolumeInfo:
        """Grow a volume to `size_bytes`."""
        return self._post(f"/volumes/{segment(ref)}/extend", {"size_bytes": size_bytes}, VolumeInfo)

    def delete_volume(self, ref: str) -> None:
        """Forget a volume; InUseError while a client is connected."""
        self._request("DELETE", f"/volumes/{segment(ref)}")

    def reopen_volume(self, ref: str) -> VolumeInfo:
        """Let a failed volume be used again."""
        return self._post(f"/volumes/{segment(ref)}/reopen", None, VolumeInfo)

    def list_snapshots(self, volume: str | None = None) -> list[SnapshotInfo]:
        """All snapshots by id, or those of one volume."""
        query = "" if volume is None else f"?volume={segment(volume)}"
        return self._get(f"/snapshots{query}", list[SnapshotInfo])

    def show_snapshot(self, ref: str) -> SnapshotInfo:
        """One snapshot by id or name."""
        return self._get(f"/snapshots/{segment(ref)}", SnapshotInfo)

    def create_snapshot(self, volume: str, name: str) -> SnapshotInfo:
        """Freeze what a volume holds now."""
        return self._post("/snapshots", {"volume": volume, "name": name}, SnapshotInfo)

    def delete_snapshot(self, ref: str) -> None:
        """Forget a snapshot; InUseError while it is read."""
        self._request("DELETE", f"/snapshots/{segment(ref)}")

    def revert_volume(self, snapshot: str) -> VolumeInfo:
        """Make the snapshot's volume hold again what the snapshot holds."""
        return self._post(f"/snapshots/{segment(snapshot)}/revert", None, VolumeInfo)

    def space(self, kind: NodeKind, ref: str) -> Space:
        """Exact space; the walk over a large volume takes its time."""
        path = f"/{kind.value}s/{segment(ref)}/space"
        return decode(self._request("GET", path, patient=True), Space)

    def list_servers(self) -> list[Server]:
        """All registered servers by name."""
        return self._get("/servers", list[Server])

    def show_server(self, name: str) -> Server:
        """One registered server."""
        return self._get(f"/servers/{segment(name)}", Server)

    def add_server(
        self, name: str, kind: ServerKind, qmp_socket: str | None, tenant: str | None
    ) -> Server:
        """Register a server."""
        body = {"name": name, "kind": kind.value, "qmp_socket": qmp_socket, "tenant": tenant}
        return self._post("/servers", body, Server)

    def remove_server(self, name: str) -> None:
        """Forget a server; InUseError while a volume is attached to it."""
        self._request("DELETE", f"/servers/{segment(name)}")

    def statistics(self) -> list[VolumeStatistics]:
        """Counters of each open volume and snapshot."""
        return self._get("/statistics", list[VolumeStatistics])

    def check(self) -> CheckReport:
        """Walk the pool, however long it takes."""
        return decode(self._request("POST", "/check", patient=True), CheckReport)

    def _get(self, path: str, answer: type[T]) -> T:
        return decode(self._request("GET", path), answer)

    def _post(self, path: str, body: Mapping[str, object] | None, answer: type[T]) -> T:
        return decode(self._request("POST", path, body), answer)

    def _open(self) -> httpx.Client:
        if self._http is None:
            try:
                self._socket_path.stat()
            except OSError as error:
                raise self._unreachable(error.strerror or str(error)) from error
            # Imported late: --help, and the shell's completion without a daemon, must not wait.
            import httpx

            self._http = httpx.Client(
                transport=httpx.HTTPTransport(uds=str(self._socket_path)),
                base_url="http://bockd",
                trust_env=False,  # a proxy of the environment must not come between
            )
        return self._http

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        patient: bool = False,
    ) -> bytes:
        http = self._open()
        import httpx

        timeout = httpx.Timeout(self._timeout, read=None if patient else self._timeout)
        try:
            response = http.request(method, PREFIX + path, json=body, timeout=timeout)
        except httpx.ConnectError as error:
            raise self._unreachable(str(error).partition("] ")[2]) from error
        except httpx.ReadTimeout as error:
            raise errors.UnavailableError(
                f"the daemon on {self._socket_path} took longer than {self._timeout:g} seconds "
                "to answer; the operation may still be carried out"
            ) from error
        except httpx.HTTPError as error:
            raise errors.UnavailableError(
                f"the daemon on {self._socket_path} went away during the request ({error})"
            ) from error
        if response.is_error:
            raise error_of_answer(response.content)
        return response.content

    def _unreachable(self, reason: str) -> errors.UnavailableError:
        if reason == os.strerror(errno.EACCES):
            return errors.UnavailableError(
                f"you may not use {self._socket_path}: run as the user who started the daemon"
            )
        return errors.UnavailableError(
            f"no daemon answers on {self._socket_path} ({reason}): start it with `bockd serve` "
            "or `make run`, or set BOCKD_DATA to the directory of the one that runs"
        )


def segment(text: str) -> str:
    """One URL path segment that means exactly `text`."""
    if not text:
        raise errors.InvalidRequestError("an empty name or id refers to nothing")
    if not text.strip("."):
        return "%2E" * len(text)  # "." and ".." would be resolved as in a directory
    return quote(text, safe="", errors="surrogateescape")


def decode(content: bytes, answer: type[T]) -> T:
    """The record in an answer. Raises UnavailableError when it is not what bockd answers."""
    import msgspec

    try:
        return msgspec.json.decode(content, type=answer)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise errors.UnavailableError(
            f"the answer on the socket is not this bockd's ({error}): is the daemon of another "
            "version? Restart it"
        ) from error


def error_of_answer(content: bytes) -> errors.BockdError:
    """The daemon's error, of the class it had there."""
    fault = decode(content, dict[str, dict[str, str]]).get("error", {})
    family = ERROR_OF_CODE.get(fault.get("code", ""), errors.BockdError)
    return family(fault.get("message", "the daemon failed and did not say why"))


def connect() -> ControlClient:
    """The daemon that the environment points to, until the command ends."""
    client = ControlClient(load_settings().api_socket)
    click.get_current_context().call_on_close(client.close)
    return client
