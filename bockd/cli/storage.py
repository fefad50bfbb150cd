"""The client side of the REST API: a tenant's volumes, snapshots, attachments and limits.

Volumes and snapshots are named by id or by name. Display names may repeat; one that fits several is
refused, with their ids. All methods raise the BockdError that the API's fault stands for, and
UnavailableError when nobody answers. Logging in happens at the first request.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import click

from bockd import errors
from bockd.cli.bodies import edited, sized
from bockd.cli.client import ControlClient, segment
from bockd.cli.faults import error_of_fault
from bockd.cli.finding import choose, is_id, looked_for, not_there
from bockd.cli.http import Http
from bockd.cli.login import (
    Session,
    find_login,
    log_in,
    openstack_variables,
    refuse_not_honoured,
)
from bockd.cli.records import (
    Attached,
    Snapshot,
    Volume,
    WayIn,
    read_snapshot,
    read_volume,
    read_way_in,
)
from bockd.config import Settings, load_settings
from bockd.control import DaemonInfo
from bockd.model import CacheMode, NodeKind, export_uri, is_uuid
from bockd.pool.reports import Space
from bockd.tls.trust import Trust
from bockd.validation import check_name, check_volume_size

PAGE = 1000
"""As many as the API gives at once."""

T = TypeVar("T")


class StorageClient:
    """A tenant's block storage, at the daemon that the environment points to."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        within_seconds: float | None = None,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._within = within_seconds
        self._http: Http | None = None
        self._session: Session | None = None
        self._neighbour: DaemonInfo | None = None
        self._looked_for_neighbour = False
        self.page = PAGE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._http is not None:
            self._http.close()

    # -- volumes -----------------------------------------------------------------------------

    def list_volumes(self, name: str | None = None) -> list[Volume]:
        """List all volumes by id, or those with this display name."""
        return [self._volume(view) for view in self._list("os-volumes", "volumes", name)]

    def find_volume(self, ref: str) -> Volume:
        """Return the volume of an id or a name. Raises NotFoundError, ConflictError for an
        ambiguous name."""
        if is_id(ref):
            with looked_for(NodeKind.VOLUME, ref):
                return self.show_volume(int(ref))
        return choose(NodeKind.VOLUME, ref, self.list_volumes(ref), lambda: self.list_volumes())

    def show_volume(self, volume: int) -> Volume:
        """Return one volume by id."""
        return self._volume(self.get(f"os-volumes/{volume}")["volume"])

    def create_volume(
        self,
        name: str,
        size_bytes: int | None,
        from_snapshot: str | None = None,
        *,
        from_image: str | None = None,
        from_volume: int | None = None,
        content_bytes: int | None = None,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Volume:
        """Create a blank volume, or a copy of a snapshot, an image or a volume. `content_bytes` is
        the size of the image that will be written to a blank one. Raises ConflictError when the
        tenant has a volume of that name: the API allows it, but then the name would be
        ambiguous."""
        check_name(name)
        if size_bytes is not None:
            check_volume_size(size_bytes)
        if taken := self.list_volumes(name):
            raise errors.ConflictError(
                f"a volume named {name!r} exists already ({taken[0].id}); choose another name"
            )
        body: dict[str, object] = {"display_name": name}
        if description is not None:
            body["display_description"] = description
        if metadata is not None:
            body["metadata"] = metadata
        if from_snapshot is not None:
            body["snapshot_id"] = self.find_snapshot(from_snapshot).id
        if from_volume is not None:
            body["source_volid"] = from_volume
        if from_image is not None:
            body["imageRef"] = self.find_image(from_image)
        if size_bytes is not None:
            body |= sized("size", size_bytes, content_bytes)
        created = self.post("os-volumes", {"volume": body})["volume"]
        # The reply says "creating", as specified; it is ready.
        return self.show_volume(created["id"])

    def find_image(self, ref: str) -> str:
        """Return the id of an image, given by name or by id. Raises NotFoundError,
        ConflictError."""
        if is_uuid(ref):
            return ref
        if not ref:
            raise errors.InvalidRequestError("an empty name or id refers to nothing")
        _, session = self._log_in()
        host = urlsplit(session.url)
        asked = quote(ref, safe="", errors="surrogateescape")
        try:
            url = f"{host.scheme}://{host.netloc}/v2/images?name={asked}"
            found = decode(self._ask("GET", url))["images"]
        except errors.NotFoundError as error:
            raise errors.NotFoundError(
                f"images have no names there: give its id ({error})"
            ) from error
        if not found:
            everything = decode(self._ask("GET", f"{host.scheme}://{host.netloc}/v2/images"))
            raise not_there("image", ref, (one["name"] or "" for one in everything["images"]))
        if len(found) > 1:
            ids = ", ".join(str(one["id"]) for one in found)
            raise errors.ConflictError(f"{len(found)} images are named {ref!r}: give an id ({ids})")
        return str(found[0]["id"])

    def extend_volume(self, volume: int, size_bytes: int) -> Volume:
        """Grow a volume to `size_bytes`."""
        check_volume_size(size_bytes)
        return self._act(volume, {"os-extend": sized("new_size", size_bytes)})

    def revert_volume(self, volume: int, snapshot: int) -> Volume:
        """Make a volume hold again what one of its snapshots holds."""
        return self._act(volume, {"revert": {"snapshot_id": snapshot}})

    def reopen_volume(self, volume: int) -> Volume:
        """Let a volume be used again that was in status error."""
        return self._act(volume, {"bockd-reopen": None})

    def set_cache(self, volume: int, mode: CacheMode) -> Volume:
        """Choose how a volume is cached."""
        return self._act(volume, {"bockd-set-cache": {"mode": mode.value}})

    def discard_cache(self, volume: int) -> Volume:
        """Give up what was answered of a volume and is not in the pool."""
        return self._act(volume, {"bockd-discard-cache": None})

    def edit_volume(
        self,
        volume: int,
        *,
        name: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Volume:
        """Give a volume another name, description and metadata, at once; None leaves what is there,
        "" removes a description."""
        edit = edited(name, description)
        if metadata is not None:
            edit["metadata"] = metadata
        self._request("PUT", f"os-volumes/{volume}", {"volume": edit})
        return self.show_volume(volume)

    def set_metadata(self, volume: int, items: Mapping[str, str]) -> None:
        """Set items of a volume's metadata; others stay."""
        self.post(f"os-volumes/{volume}/metadata", {"metadata": items})

    def remove_metadata(self, volume: int, key: str) -> None:
        """Remove one item of a volume's metadata. Raises NotFoundError when it is not there."""
        self._request("DELETE", f"os-volumes/{volume}/metadata/{segment(key)}")

    def hold_volume(self, volume: int, reason: str, *, instead_of: str | None = None) -> Volume:
        """Keep everybody off a volume, or replace the reason of a hold. Raises InvalidStateError
        while it is used, or held for another reason."""
        return self._act(volume, {"bockd-hold": {"reason": reason, "instead_of": instead_of}})

    def release_volume(self, volume: int, *, reason: str | None = None) -> Volume:
        """Make a volume that is held available again. Raises InvalidStateError if it is not held,
        ConflictError if it is held for another reason than the one given."""
        return self._act(volume, {"bockd-release": {"reason": reason}})

    def delete_volume(self, volume: int, *, hold: str | None = None) -> None:
        """Delete a volume; with `hold`, only if it is held for this reason. Raises
        InvalidStateError while a client is connected, or if it is not held, but should be;
        ConflictError if it is held for another reason."""
        query = "" if hold is None else f"?hold={quote(hold, safe='')}"
        self._request("DELETE", f"os-volumes/{volume}{query}")

    def discard_volume(self, volume: int) -> None:
        """Delete a volume that was to be filled and is not complete: it is not kept in the trash,
        where it would take space and quota, and the place of what its tenant has deleted. Raises
        what `delete_volume` does."""
        self._request("DELETE", f"os-volumes/{volume}?bockd-for-good=true")

    def _act(self, volume: int, action: Mapping[str, object]) -> Volume:
        self._request("POST", f"os-volumes/{volume}/action", action)
        return self.show_volume(volume)

    # -- snapshots ---------------------------------------------------------------------------

    def list_snapshots(self, name: str | None = None) -> list[Snapshot]:
        """List all snapshots by id, or those with this display name."""
        return [self._snapshot(view) for view in self._list("os-snapshots", "snapshots", name)]

    def find_snapshot(self, ref: str) -> Snapshot:
        """Return the snapshot of an id or a name. Raises NotFoundError, ConflictError for an
        ambiguous name."""
        if is_id(ref):
            with looked_for(NodeKind.SNAPSHOT, ref):
                return self.show_snapshot(int(ref))
        return choose(
            NodeKind.SNAPSHOT, ref, self.list_snapshots(ref), lambda: self.list_snapshots()
        )

    def show_snapshot(self, snapshot: int) -> Snapshot:
        """Return one snapshot by id."""
        return self._snapshot(self.get(f"os-snapshots/{snapshot}")["snapshot"])

    def create_snapshot(self, volume: int, name: str, *, consumes_quota: bool = True) -> Snapshot:
        """Create a snapshot of what a volume holds now, attached or not. Raises ConflictError when
        the tenant has a snapshot of that name, as for a volume."""
        check_name(name)
        if taken := self.list_snapshots(name):
            raise errors.ConflictError(
                f"a snapshot named {name!r} exists already ({taken[0].id}); choose another name"
            )
        body: dict[str, object] = {"volume_id": volume, "display_name": name, "force": True}
        if not consumes_quota:
            body["bockd"] = {"consumes_quota": False}
        created = self.post("os-snapshots", {"snapshot": body})["snapshot"]
        return self.show_snapshot(created["id"])

    def changes(self, older: int, newer: int, offset: int = 0) -> Iterator[tuple[int, int]]:
        """Yield offset and length in bytes of where a snapshot may hold something else than an
        older one, from an offset on. Raises NotFoundError."""
        size_bytes = self.show_snapshot(newer).size_bytes
        while offset < size_bytes:
            path = f"os-snapshots/{newer}/bockd-changes?since={older}&offset={offset}"
            changes = decode(self._request("GET", path, patient=True))["changes"]
            yield from ((begin, length) for begin, length in changes["ranges"])
            offset = changes["end_bytes"]

    def edit_snapshot(
        self, snapshot: int, *, name: str | None = None, description: str | None = None
    ) -> Snapshot:
        """Give a snapshot another name and description, as `edit_volume` does."""
        edit = edited(name, description)
        self._request("PUT", f"os-snapshots/{snapshot}", {"snapshot": edit})
        return self.show_snapshot(snapshot)

    def delete_snapshot(self, snapshot: int) -> None:
        """Delete a snapshot. Raises InvalidStateError while it is read."""
        self._request("DELETE", f"os-snapshots/{snapshot}")

    # -- what is beside them -----------------------------------------------------------------

    def space(self, kind: NodeKind, node: int) -> Space:
        """Return the exact space of a volume or snapshot. The walk over a large volume takes its
        time."""
        path = f"os-{kind.value}s/{node}/bockd-space"
        space = decode(self._request("GET", path, patient=True))["space"]
        return Space(space["exclusive_bytes"], space["shared_bytes"])

    def server_kind(self, server: str) -> str | None:
        """Return the kind of a server: host, vm or plain; None where the API does not tell. Raises
        NotFoundError."""
        view = self.get(f"servers/{segment(server)}")["server"]
        kind: str | None = view.get("bockd", {}).get("kind")
        return kind

    def attach(self, server: str, volume: int, device: str | None) -> WayIn:
        """Open a volume's export for a server; a virtual machine gets the device, too."""
        body = {"volumeAttachment": {"volumeId": volume, "device": device}}
        answer = self.post(f"servers/{segment(server)}/os-volume_attachments", body)
        return read_way_in(answer["volumeAttachment"])

    def way_in(self, attached: Attached) -> WayIn:
        """Return how the server reaches the volume. Raises NotFoundError when it has been
        detached."""
        return read_way_in(self.get(attachment_path(attached))["volumeAttachment"])

    def detach(self, attached: Attached, *, force: bool = False) -> None:
        """End the server's connections and close the export, at once with `force`."""
        self._request("DELETE", attachment_path(attached) + ("?force=true" if force else ""))

    def limits(self) -> dict[str, int]:
        """Return the quota and its use, by the API's own names."""
        found = self.get("limits")["limits"]["absolute"]
        return {str(name): int(number) for name, number in found.items()}

    @property
    def address(self) -> str:
        """Where we ask: OS_AUTH_URL, or the path of the daemon's socket."""
        return self._environ.get("OS_AUTH_URL") or str(self._settings.api_socket)

    def find_mount(self, volume: Volume) -> str | None:
        """Return where the daemon that has a volume mounts its file view, if it is on this machine
        and has one; else None."""
        neighbour = self._find_neighbour() if volume.uri else None
        return None if neighbour is None else neighbour.mount

    @property
    def pool_directory(self) -> Path | None:
        """Where this machine's daemon keeps its pool. None: in a cluster."""
        neighbour = self._find_neighbour()
        return self._settings.data_dir if neighbour is None else neighbour.pool_directory

    @property
    def tenant_id(self) -> str:
        """Who we are."""
        return self._log_in()[1].tenant_id

    @property
    def token(self) -> str:
        """What our requests carry."""
        return self._log_in()[1].token

    # -- requests ----------------------------------------------------------------------------

    def _list(self, path: str, key: str, name: str | None) -> list[dict[str, Any]]:
        """All pages."""
        query = f"limit={self.page}"
        if name is not None:
            query += f"&display_name={quote(name, safe='', errors='surrogateescape')}"
        found: list[dict[str, Any]] = []
        while True:
            after = f"&marker={found[-1]['id']}" if found else ""
            page = self.get(f"{path}/detail?{query}{after}")[key]
            found += page
            if len(page) < self.page:
                return found

    def get(self, path: str, *, patient: bool = False) -> Any:
        """Send a GET request, as `post` does. With `patient`, for as long as the answer takes."""
        return decode(self._request("GET", path, patient=patient))

    def delete(self, path: str, *, patient: bool = False) -> bytes:
        """Send a DELETE request, as `get` does, and return the answer as it came."""
        return self._request("DELETE", path, patient=patient)

    def post(self, path: str, body: Mapping[str, object]) -> Any:
        """Send a POST request and return the decoded answer. `path` is below the tenant's URL."""
        content = self._request("POST", path, body)
        return decode(content) if content else None

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        patient: bool = False,
    ) -> bytes:
        _, session = self._log_in()
        return self._ask(method, f"{session.url}/{path}", body, patient=patient)

    def _ask(
        self,
        method: str,
        url: str,
        body: Mapping[str, object] | None = None,
        *,
        patient: bool = False,
    ) -> bytes:
        http, session = self._log_in()
        headers = {"X-Auth-Token": session.token}
        answer = http.request(method, url, body, headers=headers, patient=patient)
        if answer.status == HTTPStatus.UNAUTHORIZED:
            # A command may run for longer than a token is valid.
            self._session = log_in(http, find_login(self._environ, self._settings))
            headers = {"X-Auth-Token": self._session.token}
            answer = http.request(method, url, body, headers=headers, patient=patient)
        if answer.is_error:
            raise error_of_fault(answer, url)
        return answer.content

    def _log_in(self) -> tuple[Http, Session]:
        if self._http is None or self._session is None:
            refuse_not_honoured(openstack_variables(self._environ))
            remote = self._environ.get("OS_AUTH_URL")
            self._http = Http(
                None if remote else self._settings.api_socket,
                within_seconds=self._within,
                trust=Trust.of_environment(self._environ),
            )
            self._http.find()  # no daemon at all is the first thing to say
            self._session = log_in(self._http, find_login(self._environ, self._settings))
        return self._http, self._session

    # -- records -----------------------------------------------------------------------------

    def _volume(self, view: dict[str, Any]) -> Volume:
        return understood(read_volume, view, self._uri(view))

    def _snapshot(self, view: dict[str, Any]) -> Snapshot:
        return understood(read_snapshot, view, self._uri(view))

    def _uri(self, view: Mapping[str, Any]) -> str | None:
        """The NBD URI on this machine, when the daemon that answers is this machine's."""
        backing = view.get("bockd", {})
        neighbour = self._find_neighbour() if backing else None
        if neighbour is None or neighbour.daemon != backing.get("daemon"):
            return None
        return export_uri(backing["export"], neighbour.nbd_socket)

    def _find_neighbour(self) -> DaemonInfo | None:
        """The daemon behind this machine's control socket, if we may use it."""
        # Who is in a hurry wants names.
        if not self._looked_for_neighbour and self._within is None:
            self._looked_for_neighbour = True
            with (
                contextlib.suppress(errors.UnavailableError),
                ControlClient(self._settings.api_socket) as control,
            ):
                self._neighbour = control.info()
        return self._neighbour


def decode(content: bytes) -> Any:
    """Decode a JSON reply. Raises UnavailableError when it is not JSON."""
    import msgspec

    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise errors.UnavailableError(f"the answer is not JSON ({error})") from error


def understood(
    read: Callable[[dict[str, Any], str | None], T], view: dict[str, Any], uri: str | None
) -> T:
    """Read a record from a reply. Raises UnavailableError when the reply is another API's."""
    try:
        return read(view, uri)
    except (KeyError, TypeError, ValueError) as error:
        raise errors.UnavailableError(
            f"the answer is not one of the HP Block Storage API ({error!r}): is OS_AUTH_URL right?"
        ) from error


def attachment_path(attached: Attached) -> str:
    """Return the path of an attachment, below the tenant's URL."""
    return f"servers/{segment(attached.server)}/os-volume_attachments/{attached.volume}"


def connect() -> StorageClient:
    """Return a client of the tenant's storage that the environment points to. It is closed when the
    command ends."""
    client = StorageClient(load_settings(), os.environ)
    click.get_current_context().call_on_close(client.close)
    return client
