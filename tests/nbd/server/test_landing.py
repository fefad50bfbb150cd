"""Requests that wait for completions: no task for each, and one call sends what ends together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from bockd.errors import DeviceError
from bockd.model import BLOCK_SIZE, KIB, MIB
from bockd.nbd.protocol.replies import Buffer
from bockd.nbd.server import channel
from bockd.nbd.server.channel import Channel
from tests.nbd.protocol import wire
from tests.nbd.server.bursts import BurstDevice
from tests.nbd.server.client import Client
from tests.nbd.server.serving import FixedExports, counted, in_trio, serving

READ, WRITE, DISC, FLUSH = 0, 1, 2, 3
FUA = 1
MANY = 16


class Bench:
    """A device behind a server, and what its channel has sent at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = BurstDevice(8 * MIB)
        self.exports = FixedExports({"disk": self.device})
        self.sent: list[int] = []
        """The replies of each burst."""
        self.left: list[bool | None] = []
        """Whether something was left of each to be sent later; None: all, behind others."""
        send = Channel.send_at_once

        def noting(one: Channel, parts: Sequence[Buffer]) -> Sequence[Buffer] | None:
            rest = send(one, parts)
            self.sent.append(len(parts))
            self.left.append(None if rest is None else bool(rest))
            return rest

        monkeypatch.setattr(Channel, "send_at_once", noting)
        monkeypatch.setattr(channel, "SOCKET_BUFFER_BYTES", 64 * KIB)

    async def settle(self, pending: int) -> None:
        """Wait until so many operations are pending, and the loop has nothing to do."""
        while len(self.device.pending) != pending:
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def fill(client: Client, device: BurstDevice) -> bytes:
    """Write random data through the device's back door."""
    content = random.Random(1).randbytes(8 * MIB)
    device.immediate = True
    assert device.try_write(0, memoryview(content))
    device.commit()
    device.immediate = False
    return content


@in_trio
async def test_a_burst_is_answered_by_one_call_and_needs_no_tasks(bench: Bench, path: Path) -> None:
    async with serving(bench.exports, path), await Client.go(path) as client:
        content = await fill(client, bench.device)
        await trio.testing.wait_all_tasks_blocked()
        before = tasks()
        for number in range(MANY):
            await client.send(wire.request(READ, number, number * BLOCK_SIZE, BLOCK_SIZE))
        await bench.settle(MANY)
        assert tasks() == before
        bench.device.end([3, 1, 2])
        for number in (3, 1, 2):
            assert await client.simple() == (number, 0)
            assert await client.read(BLOCK_SIZE) == content[number * BLOCK_SIZE :][:BLOCK_SIZE]
        bench.device.end()
        answered = set()
        for _ in range(MANY - 3):
            number, error = await client.simple()
            assert error == 0
            answered.add(number)
            assert await client.read(BLOCK_SIZE) == content[number * BLOCK_SIZE :][:BLOCK_SIZE]
        assert len(answered) == MANY - 3
        assert bench.sent == [3, MANY - 3]


@in_trio
async def test_a_durable_write_waits_for_the_flush_too(bench: Bench, path: Path) -> None:
    async with serving(bench.exports, path), await Client.go(path) as client:
        await client.send(wire.write(1, 0, b"x" * BLOCK_SIZE, FUA))
        await bench.settle(1)
        bench.device.end()
        await bench.settle(1)
        assert bench.sent == []
        assert bench.device.calls == ["write"]
        bench.device.end()
        assert await client.simple() == (1, 0)
        assert bench.device.calls == ["write", "flush"]


@in_trio
async def test_what_then_waits_for_a_thread_has_a_task(bench: Bench, path: Path) -> None:
    bench.device.then_blocking = True
    async with serving(bench.exports, path), await Client.go(path) as client:
        content = await fill(client, bench.device)
        for number in range(MANY):
            await client.send(wire.request(READ, number, number * BLOCK_SIZE, BLOCK_SIZE))
        await bench.settle(MANY)
        bench.device.end()
        for _ in range(MANY):
            number, error = await client.simple()
            assert error == 0
            assert await client.read(BLOCK_SIZE) == content[number * BLOCK_SIZE :][:BLOCK_SIZE]


@in_trio
async def test_one_that_fails_is_answered_with_its_error(bench: Bench, path: Path) -> None:
    async with serving(bench.exports, path) as server, await Client.go(path) as client:
        await client.send(wire.request(READ, 1, 0, BLOCK_SIZE))
        await client.send(wire.write(2, 0, b"x" * BLOCK_SIZE))
        await bench.settle(2)
        bench.device.failures["read"] = DeviceError("broken")
        bench.device.end()
        assert await client.simple() == (1, 5)
        assert await client.simple() == (2, 0)
        [found] = counted(server)
        assert (found.errors, found.reads, found.writes) == (1, 1, 1)


@pytest.mark.parametrize("interrupting", [False, True], ids=["alone", "beside other replies"])
@in_trio
async def test_what_the_socket_does_not_take_comes_later_and_whole(
    bench: Bench, path: Path, interrupting: bool
) -> None:
    """256 KiB each; a refused request and a large read are answered by others meanwhile."""
    length = 256 * KIB
    async with serving(bench.exports, path), await Client.go(path) as client:
        content = await fill(client, bench.device)
        left = set(range(MANY))
        for number in range(MANY):
            await client.send(wire.request(READ, number, number * length, length))
        await bench.settle(MANY)
        bench.device.end(range(MANY // 2))
        await bench.settle(MANY // 2)
        bench.device.end()
        await bench.settle(0)
        assert bench.sent == [MANY // 2, MANY // 2]
        assert bench.left == [True, None]
        if interrupting:
            await client.send(wire.request(READ, 101, 0, MIB))
            await bench.settle(1)
            bench.device.end()
            await client.send(wire.request(READ, 100, 8 * MIB, BLOCK_SIZE))
            left |= {100, 101}
        while left:
            number, error = await client.simple()
            left.remove(number)
            assert bool(error) == (number == 100)
            if number == 101:
                assert await client.read(MIB) == content[:MIB]
            elif not error:
                assert await client.read(length) == content[number * length :][:length]
        # The way is free again.
        await client.send(wire.request(READ, 7, 0, BLOCK_SIZE))
        await bench.settle(1)
        bench.device.end()
        assert await client.simple() == (7, 0)
        assert await client.read(BLOCK_SIZE) == content[:BLOCK_SIZE]


@in_trio
async def test_who_says_goodbye_is_answered_first(bench: Bench, path: Path) -> None:
    async with serving(bench.exports, path), await Client.go(path) as client:
        for number in range(MANY):
            await client.send(wire.write(number, 0, b"x" * BLOCK_SIZE))
        await client.send(wire.request(DISC, 0, 0, 0))
        await bench.settle(MANY)
        bench.device.end()
        answered = await client.closes()
        assert len(answered) == MANY * 16
    assert bench.device.calls == ["write"] * MANY
    assert bench.exports.open_holds == 0


@pytest.mark.parametrize("leaving", ["client", "server"])
@in_trio
async def test_what_has_begun_is_finished_though_the_connection_ends(
    bench: Bench, path: Path, leaving: str
) -> None:
    async with serving(bench.exports, path) as server, await Client.go(path) as client:
        for number in range(MANY):
            await client.send(wire.write(number, 0, b"x" * BLOCK_SIZE))
        await bench.settle(MANY)
        key = bench.exports.key("disk")
        async with trio.open_nursery() as nursery:
            ended = trio.Event()

            async def end() -> None:
                if leaving == "client":
                    await trio.aclose_forcefully(client.stream)
                    await server.drain(key)
                else:
                    await server.disconnect(key)
                ended.set()

            nursery.start_soon(end)
            await trio.testing.wait_all_tasks_blocked()
            assert not ended.is_set()
            bench.device.end()
        assert bench.device.calls == ["write"] * MANY
        while bench.exports.open_holds:
            await trio.testing.wait_all_tasks_blocked()


@in_trio
async def test_a_client_that_takes_no_replies_can_be_dropped(bench: Bench, path: Path) -> None:
    """While the rest of a burst waits for it, and other replies behind that."""
    async with serving(bench.exports, path) as server, await Client.go(path) as client:
        for number in range(2 * MANY):
            await client.send(wire.request(READ, number, 0, 256 * KIB))
        await bench.settle(2 * MANY)
        bench.device.end(range(MANY))
        await trio.testing.wait_all_tasks_blocked()
        bench.device.end(range(4))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.disconnect, bench.exports.key("disk"))
                await trio.testing.wait_all_tasks_blocked()
                bench.device.end()
        assert bench.left[:2] == [True, None]
        replies = await client.closes()
        assert len(replies) < MANY * (16 + 256 * KIB)


@in_trio
async def test_no_more_are_in_flight_than_may_be(bench: Bench, path: Path) -> None:
    async with serving(bench.exports, path), await Client.go(path) as client:
        for number in range(200):
            await client.send(wire.request(READ, number, 0, 512))
        await bench.settle(128)
        bench.device.end([0])
        assert await client.simple() == (0, 0)
        await client.read(512)
        await bench.settle(128)
        bench.device.end()
        await bench.settle(71)
        bench.device.end()
        for _ in range(199):
            assert (await client.simple())[1] == 0
            await client.read(512)
