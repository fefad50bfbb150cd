"""Reconnects, drains and disconnects: what was begun is finished, what is stale never lands."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import trio
import trio.testing

from bockd.drivers.memory.device import MemoryDevice
from bockd.nbd.protocol.handshake import Negotiated
from bockd.nbd.server.budget import Account, MemoryBudget
from bockd.nbd.server.channel import Channel
from bockd.nbd.server.connection import Connection
from bockd.nbd.server.limits import ServerLimits
from bockd.nbd.server.pace import Pace
from bockd.nbd.server.statistics import ExportStatistics
from bockd.nbd.server.together import Together
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Signal
from bockd.throttle.gates import Gates
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client, Closed
from tests.nbd.server.serving import FixedExports, in_jumping_time, in_trio, serving

MIB = 1 << 20


@in_trio
async def test_a_new_connection_sees_what_older_ones_had_sent(
    path: Path, exports: FixedExports
) -> None:
    async with serving(exports, path), await Client.go(path) as old:
        for n in range(20):
            stale = wire.write(n, 0, bytes([n]) * 60_000) * 5
            await old.send(stale)
            async with await Client.go(path) as new:
                assert await new.write(0, b"new") == 0
                assert await new.read_data(0, 4) == b"new" + bytes([n])
            for _ in range(5):
                assert await old.simple() == (n, 0)


@in_trio
async def test_a_new_connection_waits_for_writes_in_the_engine(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    gate = device.gate = Signal()
    device.immediate = False
    async with serving(exports, path), await Client.go(path) as old:
        await old.send(wire.write(1, 0, b"old"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await trio.aclose_forcefully(old.stream)
        entered = False
        async with trio.open_nursery() as nursery:

            async def enter() -> None:
                nonlocal entered
                async with await Client.go(path) as new:
                    entered = True
                    assert await new.read_data(0, 3) == b"old"

            nursery.start_soon(enter)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not entered
            gate.fire()
        assert entered


@in_trio
async def test_a_write_that_has_just_gone_to_the_engine_counts(
    exports: FixedExports, device: MemoryDevice
) -> None:
    """The fence that waited for its bytes may go on before the write's own task does."""
    device.immediate = False
    negotiated = Negotiated(structured=False, extended=False, allocation=False)
    for _ in range(40):
        gate = device.gate = Signal()
        ours, theirs = socket.socketpair()
        connection = Connection(
            Channel(ours),
            Account(MemoryBudget(64 * MIB)),
            StepRunner(),
            ServerLimits(),
            Together(Pace(), 0),
        )
        export = await exports.open("disk")
        connection.prepare(export, negotiated, ExportStatistics(), b"", Gates().open)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run, trio.lowlevel.checkpoint)
            await trio.testing.wait_all_tasks_blocked()
            theirs.sendall(wire.write(1, 0, b"old"))
            passed = False
            with trio.move_on_after(0.02):  # what `Registry` awaits before it lets a client in
                await connection.received_all()
                await connection.writes_finished()
                passed = True
            assert not passed
            gate.fire()
            await connection.writes_finished()
            assert device.calls[-1] == "write"
            connection.drop()
        ours.close()
        theirs.close()


@in_trio
async def test_those_that_hung_up_are_dropped_with_half_a_request(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    async with serving(exports, path) as server, await Client.go(path) as old:
        await old.send(wire.write(1, 0, bytes(4096))[:-1])
        await trio.aclose_forcefully(old.stream)
        async with await Client.go(path):
            assert server.connections(exports.key("disk")) == 1
            assert device.calls == []


@in_trio
async def test_a_fence_does_not_wait_for_the_rest_of_a_payload(
    path: Path, exports: FixedExports
) -> None:
    """Whether it stops at once, or in the middle of a piece: the client may just be slow."""
    limits = ServerLimits(fence_seconds=1000)
    request = wire.write(1, 0, b"o" * (2 * MIB))
    async with serving(exports, path, limits) as server:
        for sent in (28, 5000, MIB + 5000):
            async with await Client.go(path) as old:
                await old.send(request[:sent])
                await trio.testing.wait_all_tasks_blocked(0.01)
                async with await Client.go(path) as new:
                    assert await new.write(0, b"new") == 0
                    assert server.connections(exports.key("disk")) == 2
                await old.send(request[sent:])
                assert await old.simple() == (1, 0)


@in_jumping_time
async def test_an_old_connection_that_cannot_be_read_is_dropped(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    limits = ServerLimits(fence_seconds=3)
    async with serving(exports, path, limits) as server, await Client.go(path) as old:
        with trio.move_on_after(1):
            while True:
                await old.send(wire.request(0, 1, 0, 200_000) * 50)
        async with await Client.go(path) as new:
            assert server.connections(exports.key("disk")) == 1
            assert await new.write(0, b"new") == 0


@in_trio
async def test_connections_of_one_export_live_side_by_side(
    path: Path, exports: FixedExports
) -> None:
    async with serving(exports, path) as server, trio.open_nursery() as nursery:

        async def work(number: int) -> None:
            async with await Client.go(path) as client:
                for n in range(30):
                    data = bytes([number]) * 20_000
                    assert await client.write(number * MIB + n, data) == 0
                    assert await client.read_data(number * MIB + n, 20_000) == data

        for number in range(8):
            nursery.start_soon(work, number)
        await trio.testing.wait_all_tasks_blocked(0.0)
        assert server.connections(exports.key("other")) == 0


@in_trio
async def test_drain_waits_for_what_has_begun(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    gate = device.gate = Signal()
    device.immediate = False
    async with serving(exports, path) as server, await Client.go(path) as client:
        await server.drain(exports.key("disk"))
        await client.send(wire.write(1, 0, b"slow"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.move_on_after(0.01) as scope:
            await server.drain(exports.key("disk"))
        assert scope.cancelled_caught
        gate.fire()
        await server.drain(exports.key("disk"))
        assert device.calls == ["write"]


@in_trio
async def test_disconnect_finishes_received_writes(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    gate = device.gate = Signal()
    device.immediate = False
    async with serving(exports, path) as server, await Client.go(path) as client:
        await client.send(wire.write(1, 0, b"slow"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.disconnect, exports.key("disk"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert server.connections(exports.key("disk")) == 1
            gate.fire()
        assert device.calls == ["write"]
        assert server.connections(exports.key("disk")) == 0
        assert exports.open_holds == 0
        await client.closes()


@in_trio
async def test_only_those_who_came_by_the_name_are_wound_up_and_what_they_sent_is_answered(
    path: Path, exports: FixedExports
) -> None:
    exports.devices["alias"] = exports.devices["disk"]
    exports.same = {"alias": "disk"}
    key = exports.key("disk")
    async with (
        serving(exports, path) as server,
        await Client.go(path) as stays,
        await Client.go(path, "alias") as goes,
    ):
        assert (server.connections(key), server.connections(key, "alias")) == (2, 1)
        await goes.send(b"".join(wire.write(n, n * 4096, bytes([n]) * 4096) for n in range(50)))
        await server.drain_and_close(key, "alias", 10)
        for n in range(50):
            assert await goes.simple() == (n, 0)
        assert await goes.closes() == b""
        assert await stays.read_data(49 * 4096, 1) == bytes([49])
        assert server.connections(key) == 1


@in_trio
async def test_winding_up_does_not_wait_for_a_client_that_goes_on_and_on(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    async with serving(exports, path) as server, trio.open_nursery() as nursery:
        client = await Client.go(path)
        started = trio.Event()

        async def write_for_ever() -> None:
            with suppress(Closed, trio.BrokenResourceError):
                while True:
                    assert await client.write(0, bytes(4096)) == 0
                    started.set()

        nursery.start_soon(write_for_ever)
        await started.wait()
        # Of the test's 60 s: it would wait for ever.
        await server.drain_and_close(exports.key("disk"), "disk", 1e9)
        landed = len(device.calls)
        await trio.testing.wait_all_tasks_blocked()
        assert len(device.calls) == landed
    await trio.aclose_forcefully(client.stream)


@in_trio
async def test_winding_up_drops_half_a_write(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    for length in (4096, 3 * MIB):
        async with serving(exports, path) as server, await Client.go(path) as client:
            data = wire.write(1, MIB, b"x" * length)
            await client.send(data[:-1])
            await server.drain_and_close(exports.key("disk"), "disk", 1e9)
            before = list(device.calls)
            with suppress(trio.BrokenResourceError):
                await client.send(data[-1:])
            assert await client.closes() == b""
            assert device.calls == before
        path.unlink(missing_ok=True)


@in_jumping_time
async def test_winding_up_cuts_off_who_takes_no_answers(path: Path, exports: FixedExports) -> None:
    async with serving(exports, path) as server, await Client.go(path) as client:
        with trio.move_on_after(1):
            while True:
                await client.send(wire.request(0, 1, 0, 200_000) * 50)
        begun = trio.current_time()
        await server.drain_and_close(exports.key("disk"), "disk", 7)
        assert 7 <= trio.current_time() - begun < 8
        assert server.connections(exports.key("disk")) == 0


@in_trio
async def test_who_is_dropped_on_the_threshold_has_written_nothing(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    gate = device.gate = Signal()
    device.immediate = False
    async with serving(exports, path) as server, await Client.go(path) as old:
        await old.send(wire.write(1, 0, b"slow"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with trio.open_nursery() as nursery:

            async def enter() -> None:
                client = await Client.connect(path)
                behind = wire.write(1, MIB, b"behind")
                await client.send(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.go("disk") + behind)
                assert await client.closes() == b""
                await trio.aclose_forcefully(client.stream)

            nursery.start_soon(enter)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert server.connections(exports.key("disk")) == 2
            nursery.start_soon(server.disconnect, exports.key("disk"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            gate.fire()
        assert device.calls == ["write"]


@in_trio
async def test_stopping_the_server_finishes_received_writes(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    device.blocking = True
    device.immediate = False
    async with serving(exports, path):
        client = await Client.go(path)
        await client.send(wire.write(1, 0, b"slow"))
        await trio.lowlevel.checkpoint()
    assert device.calls == ["write"]
    assert exports.open_holds == 0
    await trio.aclose_forcefully(client.stream)
