"""Requests about volumes, snapshots and attachments, as the tests of the public API make them."""

from __future__ import annotations

from typing import Any

import httpx

from ..api.public import fault_of

NEW_CACHE = {
    "mode": "write-through",
    "dirty_at": None,
    "dirty_since": None,
    "dirty_bytes": None,
    "error": None,
    "discarded_at": None,
    "salvaged_bytes": None,
    "given_up_bytes": None,
}
"""What is told of the cache of a new volume, where volumes may have one."""


def create(client: httpx.Client, **volume: object) -> Any:
    """Create a volume; return its record."""
    answer = client.post("/os-volumes", json={"volume": {"size": 1, **volume}})
    assert answer.status_code == 200, answer.text
    return answer.json()["volume"]


def show(client: httpx.Client, volume: object) -> Any:
    """Return a volume's record."""
    return client.get(f"/os-volumes/{volume}").json()["volume"]


def attach(client: httpx.Client, volume: object, server: int = 1, device: object = None) -> Any:
    wanted = {"volumeId": volume, "device": device}
    path = f"/servers/{server}/os-volume_attachments"
    return client.post(path, json={"volumeAttachment": wanted})


def detach(client: httpx.Client, volume: object, server: int = 1) -> httpx.Response:
    return client.delete(f"/servers/{server}/os-volume_attachments/{volume}")


def snapshot(client: httpx.Client, volume: object, **more: object) -> httpx.Response:
    return client.post("/os-snapshots", json={"snapshot": {"volume_id": volume, **more}})


def refuses_state(answer: httpx.Response, kind: str = "volume") -> None:
    """Assert that an answer refuses a request because of what state something is in."""
    status, name, message = fault_of(answer)
    assert (status, name) == (400, "badRequest")
    assert message.startswith(f"Invalid {kind}: ")
