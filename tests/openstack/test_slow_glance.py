"""A Glance that is never silent and never done."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.abc

from bockd.blockstorage.contract import ImageId
from bockd.config.sections import GlanceSettings
from bockd.daemon import glance
from bockd.daemon.glance import Glance, GlanceImage
from bockd.errors import UnavailableError

BOUND_SECONDS = 60
IMAGE = "0f7dcba5-0000-4000-8000-000000000000"


async def trickle(stream: trio.abc.HalfCloseableStream) -> None:
    """An answer of which a byte comes each hundredth of a second."""
    try:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            await trio.sleep(0.01)
            await stream.send_all(b" ")
    except trio.BrokenResourceError:
        pass


async def describe(client: Glance) -> None:
    await client.describe(ImageId(IMAGE), "token")


async def download(client: Glance) -> None:
    image = GlanceImage(IMAGE, "active", size=1_000_000, checksum="0" * 32)
    with tempfile.TemporaryFile() as file:
        await client.download(image, "token", file)


@pytest.mark.parametrize("ask", [describe, download])
def test_a_trickle_is_given_up(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[Glance], Awaitable[None]]
) -> None:
    monkeypatch.setattr(glance, "SLOWEST_BYTES_PER_SECOND", 1 << 30)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, trickle, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            client = Glance(GlanceSettings(url=f"http://127.0.0.1:{port}", timeout_seconds=1))
            with trio.fail_after(BOUND_SECONDS), pytest.raises(UnavailableError, match="too slow"):
                await ask(client)
            nursery.cancel_scope.cancel()

    trio.run(main)
