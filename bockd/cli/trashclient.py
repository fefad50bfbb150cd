"""The trash of a tenant, over the REST API's extension `bockd-trash`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bockd.cli.finding import is_id
from bockd.cli.records import read_time
from bockd.cli.storage import StorageClient, decode
from bockd.errors import BockdError, ConflictError, NotFoundError, UnavailableError
from bockd.pool.reports import Space

PATH = "bockd-trash"


@dataclass(frozen=True, slots=True)
class Trashed:
    """A volume or snapshot in the trash. Times are seconds since the epoch."""

    id: int
    kind: str
    """volume or snapshot."""
    name: str
    size_bytes: int
    deleted_at: float
    expires_at: float
    """When it is deleted for good."""
    consumes_quota: bool
    volume: int | None
    """Of a snapshot: its origin."""
    space: Space | None = None
    """None: not asked for."""


def list_trash(client: StorageClient) -> list[Trashed]:
    """List what the tenant has in the trash, by id. Raises BockdError."""
    return [_read(view) for view in client.get(PATH)["trash"]]


def show_trashed(client: StorageClient, node: int) -> Trashed:
    """Return one. Raises NotFoundError."""
    return _read(client.get(f"{PATH}/{node}")["trashed"])


def find_trashed(client: StorageClient, ref: str) -> Trashed:
    """Return the one of an id or a name. Raises NotFoundError, ConflictError for an ambiguous
    name."""
    if is_id(ref):
        return show_trashed(client, int(ref))
    found = [one for one in list_trash(client) if one.name == ref]
    if not found:
        raise NotFoundError(f"there is no {ref!r} in the trash; 'bock trash list' shows what is")
    if len(found) > 1:
        ids = ", ".join(f"{one.kind} {one.id}" for one in found)
        raise ConflictError(f"{len(found)} are named {ref!r} in the trash: give an id ({ids})")
    return found[0]


def space_of(client: StorageClient, node: int) -> Space:
    """Return what one takes. Raises BockdError."""
    space = client.get(f"{PATH}/{node}/bockd-space", patient=True)["space"]
    return Space(space["exclusive_bytes"], space["shared_bytes"])


def restore(client: StorageClient, node: int) -> None:
    """Bring one back. Raises NotFoundError, OverLimitError."""
    client.post(f"{PATH}/{node}/action", {"bockd-restore": {}})


def delete_for_good(client: StorageClient, node: int) -> None:
    """Delete one for good. Raises NotFoundError."""
    client.delete(f"{PATH}/{node}")


def empty_trash(client: StorageClient) -> int:
    """Delete all for good, one after the other, however long that takes; return how many. Raises
    BockdError."""
    deleted: int = decode(client.delete(PATH, patient=True))["deleted"]
    return deleted


def kept(client: StorageClient, node: int) -> Trashed | None:
    """Return what the trash has of something that was just deleted; None if it is gone for good, or
    the server has no trash, or does not answer now."""
    try:
        return show_trashed(client, node)
    except BockdError:
        return None


def _read(view: dict[str, Any]) -> Trashed:
    try:
        return Trashed(
            id=int(view["id"]),
            kind=view["kind"],
            name=view["displayName"] or view["bockd"]["name"],
            size_bytes=view["bockd"]["size_bytes"],
            deleted_at=read_time(view["deletedAt"]),
            expires_at=read_time(view["expiresAt"]),
            consumes_quota=view["consumesQuota"],
            volume=view.get("volumeId"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnavailableError(f"the answer is not one of bockd's trash ({error!r})") from error
