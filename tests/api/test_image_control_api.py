"""The control API's images over a real Hypercorn socket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from api.app import create_app
from api.serve import serve_api
from bockd.cli.client import ControlClient
from bockd.errors import ConflictError, InUseError, InvalidRequestError, NotFoundError
from bockd.model import MIB, VolumeId

from .memory_control import MemoryControl
from .memory_images import MemoryImages

CHECKSUM = "0" * 64


def life(client: ControlClient, images: MemoryImages) -> None:
    """All endpoints, through the client that `bock` uses."""
    begun = client.begin_import("debian", "qcow2", 4 * MIB, 7, CHECKSUM)
    assert (begun.size_bytes, client.list_images()) == (4 * MIB, [])
    images.connected.add(begun.id)
    refused(InUseError, lambda: client.finish_import(begun.id))
    refused(InUseError, lambda: client.cancel_import(begun.id))
    images.connected.clear()
    made = client.finish_import(begun.id)
    assert (made.id, made.name, made.checksum, made.file_bytes) == (
        begun.image,
        "debian",
        CHECKSUM,
        7,
    )
    assert client.list_images() == [client.show_image("debian")] == [client.show_image(made.id)]
    refused(ConflictError, lambda: client.begin_import("x", "qcow2", MIB, 7, CHECKSUM))
    refused(InvalidRequestError, lambda: client.begin_import("../x", "raw", MIB, 7, "1" * 64))
    refused(InvalidRequestError, lambda: client.begin_import("x", "raw", MIB + 1, 7, "1" * 64))
    other = client.begin_import("x", "raw", MIB, 7, "1" * 64)
    client.cancel_import(other.id)
    for gone in (other.id, VolumeId(10**30), VolumeId(-1)):
        refused(NotFoundError, lambda gone=gone: client.finish_import(gone))  # type: ignore[misc]
        refused(NotFoundError, lambda gone=gone: client.cancel_import(gone))  # type: ignore[misc]
    client.delete_image("debian")
    refused(NotFoundError, lambda: client.delete_image(made.id))


def refused(family: type[Exception], call: Callable[[], object]) -> None:
    """The call raises exactly this."""
    with pytest.raises(family) as caught:
        call()
    assert caught.type is family


def test_life_of_an_image(tmp_path: Path) -> None:
    images = MemoryImages()
    socket = tmp_path / "api.sock"

    def ask() -> None:
        with ControlClient(socket) as client:
            life(client, images)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_api, create_app(MemoryControl(tmp_path), images), socket)
            await trio.to_thread.run_sync(ask)
            nursery.cancel_scope.cancel()

    trio.run(run)
