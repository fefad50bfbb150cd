"""No client holds the loop, nor more memory than it may, by what it asks or how it sends it.

"Before" is the measure here, not time: another client is served before the greedy one is done.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from bockd.drivers.memory.device import MemoryDevice
from bockd.model import BLOCK_SIZE, KIB, MIB
from bockd.nbd.protocol.replies import MAX_STATUS_BYTES, MAX_STATUS_EXTENTS, encoder_for
from bockd.nbd.protocol.transmission import MAX_INLINE_PAYLOAD_BYTES, RequestLimits, RequestParser
from bockd.nbd.server.batch import Batch
from bockd.nbd.server.channel import Channel
from bockd.nbd.server.limits import (
    MAX_BATCH_REQUESTS,
    MAX_LEAVING,
    MAX_SMALL_REPLY_BYTES,
    RECEIVE_BUFFER_BYTES,
    ServerLimits,
)
from bockd.nbd.server.statistics import ExportStatistics
from bockd.runtime.steps import Signal
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client
from tests.nbd.server.serving import FixedExports, in_trio, serving

OPTIONS = 3000
REFUSED = 200
"""Their answers fit what the kernel keeps for a reader."""


async def is_served_before(
    path: Path, greedy: Callable[[trio.Event], Awaitable[None]]
) -> tuple[bool, bool]:
    """Whether another client was served before `greedy`, which sets the event when it has begun,
    had what it wanted; and whether both came to an end."""
    begun, done = trio.Event(), trio.Event()

    async def be_greedy() -> None:
        await greedy(begun)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_greedy)
        await begun.wait()
        async with await Client.go(path, "other") as client:
            assert await client.write(0, b"served") == 0
        first = not done.is_set()
        await done.wait()
    return first, done.is_set()


@pytest.mark.parametrize(
    ("option", "asks"),
    [(wire.option(3), "list_exports"), (wire.option(6, wire.info_data("disk")), "describe")],
)
@in_trio
async def test_options_without_end(
    path: Path, exports: FixedExports, monkeypatch: pytest.MonkeyPatch, option: bytes, asks: str
) -> None:
    """All of them are there when the server begins, and nothing of it ever has to wait."""
    answered = 0
    method = getattr(exports, asks)

    async def counted(*arguments: str) -> object:
        nonlocal answered
        answered += 1
        return await method(*arguments)

    monkeypatch.setattr(exports, asks, counted)
    async with serving(exports, path), await Client.connect(path) as greedy:
        greedy.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
        await greedy.send(wire.FIXED_NEWSTYLE_NO_ZEROES + option * OPTIONS)
        async with await Client.go(path, "other") as client:
            assert await client.write(0, b"served") == 0
        assert answered < OPTIONS
        for _ in range(OPTIONS):
            while (await greedy.option_reply()).kind != 1:
                pass
        assert answered == OPTIONS


@pytest.mark.parametrize("length", [MAX_INLINE_PAYLOAD_BYTES, 4 * MAX_INLINE_PAYLOAD_BYTES])
@pytest.mark.parametrize("offset", [0, 1 << 40], ids=["written", "refused"])
@in_trio
async def test_a_byte_at_a_time(
    path: Path,
    exports: FixedExports,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    offset: int,
) -> None:
    """A sender that is as fast as we are, and sends byte after byte: there is always one more."""
    receive, poll = Channel.try_receive, Channel.poll
    monkeypatch.setattr(Channel, "try_receive", lambda self, into: receive(self, into[:1]))
    monkeypatch.setattr(Channel, "poll", lambda self, into, tries: poll(self, into[:1], tries))
    async with serving(exports, path):

        async def trickle(begun: trio.Event) -> None:
            async with await Client.go(path) as client, trio.open_nursery() as nursery:
                nursery.start_soon(client.send, wire.write(1, offset, bytes(length)))
                begun.set()
                assert await client.simple() == (1, 28 if offset else 0)

        assert await is_served_before(path, trickle) == (True, True)


@in_trio
async def test_refused_payloads_without_end(
    path: Path, exports: FixedExports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one has always come already, as a whole, and nothing of it is served."""
    refused = wire.write(1, 1 << 40, bytes(MAX_INLINE_PAYLOAD_BYTES + 1))
    left = REFUSED
    turns, seen = 0, set[int]()
    poll = Channel.poll

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    def one_more(channel: Channel, into: memoryview, tries: int) -> int | None:
        nonlocal left
        if not left:
            return poll(channel, into, tries)
        left -= 1
        seen.add(turns)
        into[: len(refused)] = refused
        return len(refused)

    async with serving(exports, path), await Client.go(path) as client:
        monkeypatch.setattr(Channel, "poll", one_more)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turn)
            await client.send(refused)
            for _ in range(REFUSED + 1):
                assert await client.simple() == (1, 28)
            nursery.cancel_scope.cancel()
    assert len(seen) > 1


@in_trio
async def test_small_requests_for_large_answers(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    """Block status of a fragmented export: 28 bytes ask for 32 KiB, and for milliseconds."""
    fragment(device)
    count = 100

    async with serving(exports, path):

        async def ask(begun: trio.Event) -> None:
            options = [wire.option(8), wire.option(10, wire.meta_data("disk", "base:allocation"))]
            async with (
                await Client.go(path, "disk", *options) as client,
                trio.open_nursery() as nursery,
            ):
                requests = [wire.request(7, n, 0, 100 * MIB) for n in range(count)]
                nursery.start_soon(client.send, b"".join(requests))
                begun.set()
                for cookie in range(count):
                    chunk = await client.chunk()
                    assert (chunk.cookie, len(chunk.payload)) == (
                        cookie,
                        4 + 8 * MAX_STATUS_EXTENTS,
                    )

        assert await is_served_before(path, ask) == (True, True)


def fragment(device: MemoryDevice) -> None:
    """Every second block holds something."""
    for block in range(0, 2 * MAX_STATUS_EXTENTS, 2):
        device.try_write(block * BLOCK_SIZE, memoryview(b"x"))


def batch_of(device: MemoryDevice) -> Batch:
    """What serves a connection that has negotiated structured replies and base:allocation."""
    limits = RequestLimits(read_only=False, extended=False, chunked=True, allocation=True)
    return Batch(device, encoder_for(structured=True, extended=False), limits, ExportStatistics())


def test_the_answers_of_a_batch_are_bounded(
    device: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever 256 KiB of requests ask for, and however quick that is."""
    fragment(device)
    monkeypatch.setattr("bockd.nbd.server.batch.perf_counter_ns", lambda: 0)
    batch = batch_of(device)
    one_reply = 20 + 4 + 8 * MAX_STATUS_EXTENTS
    for request, at_most in [
        (wire.request(7, 1, 0, 100 * MIB), MAX_SMALL_REPLY_BYTES // one_reply + 1),
        (wire.request(99, 1), MAX_BATCH_REQUESTS),
        (wire.request(0, 1, 0, 1), MAX_BATCH_REQUESTS),
    ]:
        stream = memoryview(request * (RECEIVE_BUFFER_BYTES // len(request)))
        requests, _ = RequestParser(extended=False).parse(stream, 0, len(stream))
        served = batch.serve(requests, 0, stream, room=128)
        assert 0 < served <= at_most
        assert sum(map(len, batch.finish())) <= MAX_SMALL_REPLY_BYTES + one_reply


@pytest.mark.parametrize("command", [3, 4, 5, 6, 7, 99])
def test_a_batch_ends_with_its_turn(
    device: MemoryDevice, monkeypatch: pytest.MonkeyPatch, command: int
) -> None:
    """However slow each request is, there is at most one too many."""
    milliseconds = iter(range(1000))
    monkeypatch.setattr(
        "bockd.nbd.server.batch.perf_counter_ns", lambda: next(milliseconds) * 1_000_000
    )
    stream = memoryview(wire.request(command, 1, 0, 4096) * 100)
    requests, _ = RequestParser(extended=False).parse(stream, 0, len(stream))
    assert batch_of(device).serve(requests, 0, stream, room=128) == 2


def test_a_block_status_that_waits_is_charged(device: MemoryDevice) -> None:
    """Its extents are kept meanwhile: not for as many requests as a batch has."""
    device.immediate, device.gate = False, Signal()
    stream = memoryview(wire.request(7, 1, 0, 4096) * 100)
    requests, _ = RequestParser(extended=False).parse(stream, 0, len(stream))
    batch = batch_of(device)
    assert batch.serve(requests, 0, stream, room=128) == len(batch.background) == 2
    assert [item.charged_bytes for item in batch.background] == [MAX_STATUS_BYTES] * 2


@in_trio
async def test_large_writes_in_flight_are_limited(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    """A client that takes no replies gets nothing more done, large writes neither."""
    device.immediate, device.blocking = False, True
    limits = ServerLimits(max_in_flight=64)
    async with (
        serving(exports, path, limits),
        await Client.go(path) as client,
        trio.open_nursery() as nursery,
    ):
        # More than the kernel keeps for a reader that takes nothing.
        reads = b"".join(wire.request(0, n, 0, 256 * KIB) for n in range(60))
        write = wire.write(99, 0, bytes(MAX_INLINE_PAYLOAD_BYTES + 1))
        nursery.start_soon(client.send, reads + write * 200)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert 0 < device.calls.count("write") <= limits.max_in_flight
        for _ in range(260):
            cookie, error = await client.simple()
            assert error == 0
            await client.read(256 * KIB if cookie < 99 else 0)
        assert device.calls.count("write") == 200


@in_trio
async def test_a_client_that_has_gone_is_served_no_more(
    path: Path, exports: FixedExports, device: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much it has asked for before: what is in flight fails, and nothing follows."""
    read = device.try_read
    pieces = 0

    def counted(offset: int, into: memoryview) -> bool:
        nonlocal pieces
        pieces += 1
        return read(offset, into)

    monkeypatch.setattr(device, "try_read", counted)
    limits = ServerLimits(max_in_flight=8)
    async with serving(exports, path, limits) as server:
        async with await Client.go(path) as client:
            await client.send(wire.request(0, 1, 0, 16 * MIB) * 1000)
            await trio.testing.wait_all_tasks_blocked(0.05)
            before = pieces
        while server.connections(exports.key("disk")):
            await trio.lowlevel.checkpoint()
        assert pieces - before <= 2 * limits.max_in_flight


@in_trio
async def test_a_newcomer_takes_the_place_of_the_oldest_handshake(
    path: Path, exports: FixedExports
) -> None:
    limits = ServerLimits(max_connections=3)
    async with serving(exports, path, limits), await Client.go(path) as served:
        silent = [await Client.connect(path) for _ in range(2)]
        async with await Client.go(path, "other") as newcomer:
            assert await silent[0].closes() == b""
            await silent[1].send(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.option(77))
            assert (await silent[1].option_reply()).kind == 0x80000001
            async with await Client.go(path, "other") as another:
                assert await silent[1].closes() == b""
                refused = await trio.open_unix_socket(str(path))
                assert await refused.receive_some() == b""
                for client in (served, newcomer, another):
                    assert await client.write(0, b"still here") == 0
                await refused.aclose()
        for client in silent:
            await trio.aclose_forcefully(client.stream)


@in_trio
async def test_handshakes_that_lost_their_place_count_until_they_end(
    path: Path, exports: FixedExports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handshake that cannot be ended at once (its export is being opened) is counted on."""
    release = trio.Event()
    describe = exports.describe

    async def slowly(name: str) -> object:
        with trio.CancelScope(shield=True):
            await release.wait()
        return await describe(name)

    monkeypatch.setattr(exports, "describe", slowly)
    async with serving(exports, path, ServerLimits(max_connections=2)):
        clients = []
        try:
            for _ in range(2 + MAX_LEAVING):
                clients.append(await Client.connect(path))
                data = wire.info_data("disk")
                await clients[-1].send(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.option(6, data))
                await trio.testing.wait_all_tasks_blocked()
            refused = await trio.open_unix_socket(str(path))
            assert await refused.receive_some() == b""
            await refused.aclose()
        finally:
            release.set()
        for client in clients[:-2]:
            await client.closes()
        for client in clients[-2:]:
            assert struct.unpack(">Q", (await client.option_reply()).data[2:10]) == (200 * MIB,)
        for client in clients:
            await trio.aclose_forcefully(client.stream)
