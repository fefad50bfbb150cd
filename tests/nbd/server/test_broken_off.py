"""A reply that was broken off in its middle: nothing more is sent, or the client would take that
for the rest of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from bockd.drivers.memory.device import MemoryDevice
from bockd.errors import VolumeTakenError
from bockd.model import BLOCK_SIZE, KIB, MIB
from bockd.nbd.server import channel, fastlane
from bockd.nbd.server.nbd_server import NbdServer
from bockd.runtime.steps import Signal
from tests.nbd.protocol import wire
from tests.nbd.server.bursts import BurstDevice
from tests.nbd.server.client import Client
from tests.nbd.server.serving import FixedExports, in_trio, serving
from tests.nbd.server.sides import PLACE_BYTES, Side
from tests.nbd.server.takeable import Takeable

READ, FLUSH = 0, 3
FUA = 1
LENGTH = 256 * KIB
COUNT = 4
"""So many reads of that length are more than a socket takes."""


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "SOCKET_BUFFER_BYTES", 64 * KIB)


def filled(device: MemoryDevice) -> bytes:
    """Write random data, and return it. The device does what it can at once from now on."""
    content = random.Random(1).randbytes(8 * MIB)
    device.immediate = True
    assert device.try_write(0, memoryview(content))
    device.commit()
    return content


def header(cookie: int) -> bytes:
    return bytes.fromhex("6744669800000000") + cookie.to_bytes(8, "big")


async def taken_now(client: Client) -> bytes:
    """Receive until nothing comes any more."""
    data = b""
    with trio.move_on_after(0.2) as scope:
        while part := await client.stream.receive_some():
            data += part
            scope.deadline = trio.current_time() + 0.2
    return data


async def broken_off(
    server: NbdServer, client: Client, exports: FixedExports, finish: Callable[[], None]
) -> bytes:
    """Ask for more than the socket takes, have the connection dropped, make room, and `finish` what
    is still under way. Return all that has come."""
    asked = [wire.request(READ, n, n * LENGTH, LENGTH) for n in range(COUNT)]
    await client.send(b"".join(asked))
    await trio.testing.wait_all_tasks_blocked(0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.disconnect, exports.key("disk"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        data = await taken_now(client)
        assert exports.open_holds == 1
        finish()
    return data + await client.closes()


def assert_only_begun(data: bytes, content: bytes) -> None:
    """The client has got a part of the replies, and nothing else."""
    whole = b"".join(header(n) + content[n * LENGTH : (n + 1) * LENGTH] for n in range(COUNT))
    assert 0 < len(data) < len(whole)
    assert data == whole[: len(data)]


@in_trio
async def test_a_burst_that_lands_later_is_not_answered(path: Path) -> None:
    device = BurstDevice(8 * MIB)
    content = filled(device)
    exports = FixedExports({"disk": device})
    async with serving(exports, path) as server, await Client.go(path) as client:
        device.immediate = False
        await client.send(b"".join(wire.request(READ, 100 + n, 0, BLOCK_SIZE) for n in range(3)))
        while len(device.pending) < 3:
            await trio.testing.wait_all_tasks_blocked()
        device.immediate = True
        data = await broken_off(server, client, exports, device.end)
    assert_only_begun(data, content)


@in_trio
async def test_what_a_task_finishes_later_is_not_answered(path: Path) -> None:
    device = MemoryDevice(8 * MIB)
    content = filled(device)
    exports = FixedExports({"disk": device})
    async with serving(exports, path) as server, await Client.go(path) as client:
        gate = device.gate = Signal()
        device.immediate = False
        await client.send(wire.request(READ, 100, 0, BLOCK_SIZE))
        await trio.testing.wait_all_tasks_blocked(0.01)
        device.immediate = True
        data = await broken_off(server, client, exports, gate.fire)
    assert_only_begun(data, content)


@pytest.mark.parametrize("handed", [False, True], ids=["tasks", "completions"])
@in_trio
async def test_who_waits_behind_a_reply_in_pieces_that_fails_is_not_answered(
    path: Path, handed: bool
) -> None:
    """Its reply would have just as many bytes as are missing."""
    device = BurstDevice(8 * MIB)
    content = filled(device)
    missing = len(header(2)) + BLOCK_SIZE
    async with serving(FixedExports({"disk": device}), path), await Client.go(path) as client:
        if handed:
            device.immediate = False
            await client.send(wire.request(READ, 3, 0, BLOCK_SIZE))
            while not device.pending:
                await trio.testing.wait_all_tasks_blocked()
            device.end()
            assert await client.simple() == (3, 0)
            await client.read(BLOCK_SIZE)
            device.immediate = True
        real = device.try_read

        def try_read(offset: int, into: memoryview) -> bool:
            if offset == MIB:
                raise OSError(5, "bad sector")
            return real(offset, into)

        device.try_read = try_read  # type: ignore[method-assign]
        await client.send(wire.request(READ, 1, 0, MIB + missing))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.send(wire.request(READ, 2, 0, BLOCK_SIZE))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await client.closes() == header(1) + content[:MIB]


class _Breaking(Takeable):
    """Taken when something is written; a flush waits."""

    def __init__(self, device: object) -> None:
        super().__init__(device)
        self.gate = Signal()

    def try_write(self, offset: int, data: memoryview) -> bool:
        raise VolumeTakenError("taken")

    async def flush(self) -> None:
        await self.gate


@in_trio
async def test_what_the_lane_has_begun_to_send_is_not_continued(path: Path, tmp_path: Path) -> None:
    """A request behind it in the same buffer ends the connection before the rest is sent."""
    if fastlane.compiled is None:
        pytest.skip("the fast lane is not compiled")
    side = Side(tmp_path / "pool", compiled=True, structured=False, extended=False)
    breaking, device = _Breaking.over(side.volume)
    assert isinstance(breaking, _Breaking)
    exports = FixedExports({"disk": device})
    reads = [wire.request(READ, n, 8 * PLACE_BYTES, PLACE_BYTES) for n in range(COUNT)]
    whole = b"".join(header(n) + b"h" * PLACE_BYTES for n in range(COUNT))
    async with serving(exports, path), await Client.go(path) as client:
        await client.send(wire.request(FLUSH, 100))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.send(b"".join(reads) + wire.write(101, 0, b"x" * BLOCK_SIZE, FUA))
        await trio.testing.wait_all_tasks_blocked(0.01)
        data = await taken_now(client)
        breaking.gate.fire()
        data += await client.closes()
    side.close()
    assert 0 < len(data) < len(whole)
    assert data == whole[: len(data)]
