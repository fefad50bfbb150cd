"""What requests of the REST API say of names and sizes."""

from __future__ import annotations

from bockd.model import GIB


def edited(name: str | None, description: str | None) -> dict[str, object]:
    """Return what a request says that changes a name and a description; None leaves what is
    there."""
    texts = {"display_name": name, "display_description": description}
    return {key: text for key, text in texts.items() if text is not None}


def sized(key: str, size_bytes: int, content_bytes: int | None = None) -> dict[str, object]:
    """Return a size as a request has it: GiB, rounded up, under the API's key; and bytes for a
    bockd."""
    exactly = {"size_bytes": size_bytes}
    if content_bytes not in (None, size_bytes):
        exactly["content_bytes"] = content_bytes
    return {key: -(-size_bytes // GIB), "bockd": exactly}
