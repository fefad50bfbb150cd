"""Requests to an open image whose results are waited for: for whatever kind of image it is."""

from __future__ import annotations

from collections.abc import Callable

from bockd.drivers.rbd.completions import Image, Request
from bockd.runtime.steps import run_inline


def read(image: Image, offset: int, length: int) -> bytes:
    """Read a range. Raises OSError."""
    return bytes(_result(image, lambda request: image.aio_read(offset, length, request)) or b"")


def write(image: Image, data: bytes, offset: int) -> None:
    """Write. Raises OSError."""
    _result(image, lambda request: image.aio_write(data, offset, request))


def discard(image: Image, offset: int, length: int) -> None:
    """Trim. Raises OSError."""
    _result(image, lambda request: image.aio_discard(offset, length, request))


def _result(image: Image, send: Callable[[Request], object]) -> bytes | bytearray | None:
    async def steps() -> bytes | bytearray | None:
        request = Request()
        send(request)
        return await request

    return run_inline(steps())
