"""Parameters in the URL: ids in the path, and which part of a list is wanted.

Paths are routed as they were sent (see `api.intake`), so segments are decoded here. An id is any
segment but `detail`, which is a list of its own, with methods of its own.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from fastapi import Depends, Path, Query
from pydantic import WithJsonSchema
from starlette.convertors import StringConvertor, register_url_convertor

from api.openstack import values
from bockd.blockstorage.contract import Page
from bockd.errors import InvalidRequestError
from bockd.model import SnapshotId, VolumeId

NUMBER = {"type": "integer", "minimum": 0}

PathNumber = Annotated[str, WithJsonSchema({**NUMBER, "maximum": values.MAX_ID}), Path()]
"""Described as the integer it is, but read as text: other text is a 404, not a 400."""

QueryNumber = Annotated[str | None, WithJsonSchema(NUMBER), Query()]
"""Read as text too, so that what clients send for it is refused in one place."""


class NodeConvertor(StringConvertor):
    """`{volume_id:node}` in a route."""

    regex = r"(?!detail(?:/|$))[^/]+"


register_url_convertor("node", NodeConvertor())


async def volume_in_path(volume_id: PathNumber) -> VolumeId:
    """Return the id of the path's `{volume_id}`. Raise NotFoundError for what cannot be one."""
    return values.volume_id(unquote(volume_id))


async def snapshot_in_path(snapshot_id: PathNumber) -> SnapshotId:
    """Return the id of the path's `{snapshot_id}`. Raise NotFoundError for what cannot be one."""
    return values.snapshot_id(unquote(snapshot_id))


async def server_in_path(
    server_id: Annotated[str, Path(description="A server's id: an integer, or a UUID")],
) -> str:
    """Return the path's `{server_id}`; whether it can be a server's is for the service to say."""
    return unquote(server_id)


def count(name: str, text: str) -> int:
    """Read a number of items, or an id to begin after. Raises InvalidRequestError."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 4300 else -1
    if number < 0:
        raise InvalidRequestError(f"{name} is not a positive integer: {values.shown(text)!r}")
    return min(number, values.MAX_ID)


async def page_in_query(
    limit: QueryNumber = None,
    marker: QueryNumber = None,
    offset: QueryNumber = None,
    display_name: Annotated[str | None, Query(description="Only what has this name")] = None,
) -> Page:
    """Read the query's `limit`, `marker`, `offset` and `display_name`. Raises
    InvalidRequestError."""
    return Page(
        limit=None if limit is None else count("limit", limit),
        marker=None if marker is None else count("marker", marker),
        offset=0 if offset is None else count("offset", offset),
        display_name=display_name,
    )


async def changes_in_query(
    since: Annotated[str, WithJsonSchema(NUMBER), Query(description="The older snapshot's id")],
    offset: Annotated[
        str | None, WithJsonSchema(NUMBER), Query(description="In bytes: from there on")
    ] = None,
) -> tuple[SnapshotId, int]:
    """Read the query's `since` and `offset`. Raises InvalidRequestError, or NotFoundError for an id
    that cannot be one."""
    return values.snapshot_id(since), 0 if offset is None else count("offset", offset)


async def for_good_in_query(
    for_good: Annotated[
        str | None,
        WithJsonSchema({"type": "string", "enum": list(values.FLAGS)}),
        Query(alias="bockd-for-good", description="Do not keep it in the trash"),
    ] = None,
) -> bool:
    """Read the query's `bockd-for-good`. Raises InvalidRequestError."""
    return for_good is not None and values.flag("bockd-for-good", for_good)


async def force_in_query(
    force: Annotated[
        str | None,
        WithJsonSchema({"type": "string", "enum": list(values.FLAGS)}),
        Query(description="Cut the server's connections at once"),
    ] = None,
) -> bool:
    """Read the query's `force`. Raises InvalidRequestError."""
    return force is not None and values.flag("force", force)


InForce = Annotated[bool, Depends(force_in_query)]
InForGood = Annotated[bool, Depends(for_good_in_query)]
InHold = Annotated[str | None, Query(description="The reason that it must be held for")]
InVolume = Annotated[VolumeId, Depends(volume_in_path)]
InSnapshot = Annotated[SnapshotId, Depends(snapshot_in_path)]
InServer = Annotated[str, Depends(server_in_path)]
InChanges = Annotated[tuple[SnapshotId, int], Depends(changes_in_query)]
InPage = Annotated[Page, Depends(page_in_query)]
