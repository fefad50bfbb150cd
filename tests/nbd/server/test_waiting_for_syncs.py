"""A connection that waits for its flush without the loop: who ends the wait, and what then.

Syncs end when a test says so (syncs.py). What real threads do: tests/runtime/test_syncing.py.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from bockd.nbd.server import connection, fastlane, pace
from bockd.nbd.server.nbd_server import NbdServer
from bockd.runtime import syncing
from bockd.runtime.steps import run_inline
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client
from tests.nbd.server.serving import FixedExports, counted, in_trio, serving
from tests.nbd.server.sides import PLACE_BYTES, Side
from tests.nbd.server.syncs import LONG_NS, Disk

FLUSH, FUA = 3, 1
IN_HEAD, FRESH = 4 * PLACE_BYTES, 11 * PLACE_BYTES


def nothing() -> None:
    pass


def wake_the_loop() -> None:
    trio.lowlevel.current_trio_token().run_sync_soon(nothing)


class Unforeseen(BaseException):
    """As KeyboardInterrupt is."""


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Nobody else has worked for long, and a turn is so long that it does not end a wait. Nor does
    it end behind a write, however slow that was: while the loop turns the test's own task is ready
    to run, which a flush that it has just asked for would not wait for."""
    disk = Disk()
    monkeypatch.setattr(syncing, "compiled", SimpleNamespace(begin=disk.begin))
    monkeypatch.setattr(pace, "_DESERTED_NS", -1)
    monkeypatch.setattr(pace, "TURN_NS", LONG_NS)
    monkeypatch.setattr(connection, "TURN_NS", LONG_NS)
    return disk


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    with closing(Side(tmp_path, compiled=True, structured=False, extended=False)) as opened:
        run_inline(opened.volume.flush())
        yield opened


@pytest.fixture
def exports(side: Side) -> FixedExports:
    return FixedExports({"disk": side.volume})


@pytest.fixture(params=["the connection", "a task"])
def beginner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who begins a sync anew that could not begin at first: a connection that is about to wait for
    its flush, or among busy ones the flush's task."""
    if request.param == "a task":
        monkeypatch.setattr(pace, "_DESERTED_NS", LONG_NS)


async def write(client: Client, offset: int = IN_HEAD) -> None:
    assert await client.write(offset, b"w" * 4096) == 0


async def begin_flush(client: Client, disk: Disk) -> None:
    """Write, send a flush, and return when its connection has begun to wait for it and gone back
    to the loop."""
    await write(client)
    waits = disk.waits
    disk.meanwhile = wake_the_loop
    await client.send(wire.request(FLUSH, 7))
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert (disk.waits, len(disk.syncs)) == (waits + 1, 1)


@in_trio
async def test_a_flush_is_waited_for_without_the_loop(
    path: Path, exports: FixedExports, disk: Disk, side: Side
) -> None:
    async with disk.behind(exports, path) as server, await Client.go(path) as client:
        await write(client)
        assert side.volume.durability.flusher.unsynced
        assert await client.command(FLUSH) == 0
        assert (disk.waits, len(disk.syncs)) == (1, 1)
        assert not side.volume.durability.flusher.unsynced
        assert await client.command(FLUSH) == 0  # there is nothing to sync
        assert len(disk.syncs) == 1
        (statistics,) = counted(server)
        assert (statistics.flushes, statistics.writes) == (2, 1)


@in_trio
async def test_a_barrier_is_waited_for_like_the_data(
    path: Path, exports: FixedExports, disk: Disk, side: Side
) -> None:
    tail = side.volume.durability.tail
    async with disk.behind(exports, path), await Client.go(path) as client:
        await write(client, FRESH)
        assert tail.durable < tail.last_change
        assert await client.command(FLUSH) == 0
        assert (disk.waits, len(disk.syncs)) == (2, 2)
        assert tail.durable == tail.last_change
        durable = await client.write(FRESH + 4096, b"f" * 4096, flags=FUA)
        assert (durable, disk.waits) == (0, 4)
        assert tail.durable == tail.last_change


@in_trio
@pytest.mark.parametrize("fails", [1, 2], ids=["head", "journal"])
@pytest.mark.parametrize("here", [True, False], ids=["while it waits", "in the background"])
async def test_a_sync_that_fails_is_final(
    path: Path, exports: FixedExports, disk: Disk, side: Side, fails: int, here: bool
) -> None:
    """The same answers and the same volume, whether the connection waits or not."""

    def end() -> None:
        disk.end(errno.EIO if len(disk.syncs) == fails else 0)

    disk.meanwhile = end if here else wake_the_loop
    async with disk.behind(exports, path), await Client.go(path) as client:
        await write(client, FRESH)
        await client.send(wire.request(FLUSH, 7))
        if not here:
            for _ in range(fails):
                await trio.testing.wait_all_tasks_blocked(0.01)
                end()
        assert await client.simple() == (7, errno.EIO)
        reason = side.volume.durability.failed
        what = "the head layer" if fails == 1 else "the journal"
        assert reason == f"syncing {what} failed: [Errno 5] Input/output error"
        assert await client.write(IN_HEAD, b"more") == errno.EIO
        assert await client.command(FLUSH) == errno.EIO
        assert len(disk.syncs) == fails


@in_trio
@pytest.mark.usefixtures("beginner")
async def test_a_sync_that_cannot_begin_at_first_is_made(
    path: Path,
    exports: FixedExports,
    disk: Disk,
    side: Side,
) -> None:
    """Whoever does the step begins it again: a flush that is answered has been synced (D2)."""
    flusher = side.volume.durability.flusher
    disk.refuse(MemoryError())
    async with disk.behind(exports, path), await Client.go(path) as client:
        await write(client)
        await client.send(wire.request(FLUSH, 7))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (disk.waits, len(disk.syncs), flusher.turn.held) == (0, 1, True)
        disk.end()
        assert await client.simple() == (7, 0)
        assert (flusher.turn.held, flusher.unsynced) == (False, False)


@in_trio
@pytest.mark.usefixtures("beginner")
async def test_a_sync_that_can_never_begin_is_final(
    path: Path,
    exports: FixedExports,
    disk: Disk,
    side: Side,
) -> None:
    disk.refuse(MemoryError("one"), MemoryError("two"), MemoryError("three"))
    async with disk.behind(exports, path), await Client.go(path) as client:
        await write(client)
        assert await client.command(FLUSH) == errno.EIO
        reason = side.volume.durability.failed
        assert str(reason).startswith("syncing the head layer failed: ")
        assert await client.command(FLUSH) == errno.EIO
        assert disk.syncs == []
        assert not side.volume.durability.flusher.turn.held


@in_trio
@pytest.mark.usefixtures("beginner")
async def test_a_flush_whose_connection_is_broken_off_is_finished(
    path: Path,
    exports: FixedExports,
    disk: Disk,
    side: Side,
) -> None:
    """By what nobody foresees: it has begun, and others would wait for its turn."""
    flusher = side.volume.durability.flusher
    disk.refuse(Unforeseen())
    with pytest.RaisesGroup(Unforeseen, flatten_subgroups=True):
        async with disk.behind(exports, path), await Client.go(path) as client:
            await write(client)
            await client.send(wire.request(FLUSH, 7))
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert (len(disk.syncs), flusher.turn.held) == (1, True)
    assert (flusher.turn.held, flusher.unsynced) == (False, False)
    assert side.volume.durability.failed is None


@in_trio
@pytest.mark.parametrize("own", [True, False], ids=["the same client", "another client"])
async def test_a_request_ends_the_wait(
    path: Path, exports: FixedExports, disk: Disk, own: bool
) -> None:
    async with (
        disk.behind(exports, path),
        await Client.go(path) as neighbour,
        await Client.go(path) as client,
    ):
        await write(client)
        asking = client if own else neighbour
        request = wire.request(0, 5, IN_HEAD, 4)
        disk.meanwhile = partial(os.write, asking.stream.socket.fileno(), request)
        await client.send(wire.request(FLUSH, 7))
        assert await asking.simple() == (5, 0)
        assert await asking.read(4) == b"wwww"
        disk.end()
        assert await client.simple() == (7, 0)
        assert (disk.waits, len(disk.syncs)) == (1, 1)


@in_trio
async def test_the_wait_for_a_barrier_ends_like_that_for_the_data(
    path: Path, exports: FixedExports, disk: Disk, side: Side
) -> None:
    """And what goes on in the background is the sync of the journal."""
    tail = side.volume.durability.tail

    def head_only() -> None:
        if len(disk.syncs) == 1:
            disk.end()
        else:
            wake_the_loop()

    disk.meanwhile = head_only
    async with disk.behind(exports, path), await Client.go(path) as client:
        await write(client, FRESH)
        await client.send(wire.request(FLUSH, 7))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (disk.waits, len(disk.syncs)) == (2, 2)
        assert tail.durable < tail.last_change
        disk.end()
        assert await client.simple() == (7, 0)
        assert tail.durable == tail.last_change


@in_trio
async def test_a_task_that_is_to_run_does_not_wait_for_the_flush(
    path: Path, exports: FixedExports, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that the loop has taken from its queue does not show: that is every other time. Once it
    was seen, it is reckoned with for a while."""
    monkeypatch.setattr(pace, "_BUSY_NS", LONG_NS)

    async def hop() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    async with (
        disk.behind(exports, path),
        await Client.go(path) as client,
        trio.open_nursery() as nursery,
    ):
        await write(client)
        nursery.start_soon(hop)
        for number in range(20):
            await write(client)
            await client.send(wire.request(FLUSH, number))
            while len(disk.syncs) <= number:
                await trio.lowlevel.checkpoint()
            disk.end()
            assert await client.simple() == (number, 0)
        assert disk.waits < 20
        nursery.cancel_scope.cancel()


@in_trio
async def test_the_next_deadline_ends_the_wait(
    path: Path, exports: FixedExports, disk: Disk
) -> None:
    disk.meanwhile = nothing
    async with disk.behind(exports, path), await Client.go(path) as client:
        await write(client)
        with trio.move_on_after(0.05) as scope:
            await client.send(wire.request(FLUSH, 7))
            await client.simple()
        assert (scope.cancelled_caught, disk.waits) == (True, 1)
        disk.end()
        assert await client.simple() == (7, 0)


@in_trio
async def test_the_wait_ends_with_its_time(
    path: Path, exports: FixedExports, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "TURN_NS", 1_000_000)
    disk.meanwhile = nothing
    async with disk.behind(exports, path), await Client.go(path) as client:
        await write(client)
        await client.send(wire.request(FLUSH, 7))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert disk.waits == 1
        disk.end()
        assert await client.simple() == (7, 0)


@in_trio
async def test_among_others_nobody_waits_without_the_loop(
    path: Path, exports: FixedExports, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_DESERTED_NS", LONG_NS)
    async with (
        disk.behind(exports, path),
        await Client.go(path) as client,
        await Client.go(path) as neighbour,
    ):
        await write(neighbour)
        await write(client)
        await client.send(wire.request(FLUSH, 7))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (disk.waits, len(disk.syncs)) == (0, 1)
        assert disk.begun_in == ["_serve_client"]  # at once, not when its own task runs
        disk.end()
        assert await client.simple() == (7, 0)


@in_trio
async def test_a_client_that_leaves_during_its_flush_holds_nobody_up(
    path: Path, exports: FixedExports, disk: Disk, side: Side
) -> None:
    async with disk.behind(exports, path) as server:
        async with await Client.go(path) as client:
            await write(client)
            descriptor = os.dup(client.stream.socket.fileno())
            hung_up = trio.Event()

            def hang_up() -> None:
                client.stream.socket.shutdown(2)
                hung_up.set()

            disk.meanwhile = hang_up
            await client.send(wire.request(FLUSH, 7))
            await hung_up.wait()
            os.close(descriptor)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert server.connections(exports.key("disk")) == 1  # until its flush is finished
        assert side.volume.durability.flusher.turn.held
        disk.end()
        while server.connections(exports.key("disk")):
            await trio.lowlevel.checkpoint()
        assert not side.volume.durability.flusher.turn.held
        disk.meanwhile = disk.end
        async with await Client.go(path) as another:
            await write(another)
            assert await another.command(FLUSH) == 0
        assert len(disk.syncs) == 2


@in_trio
async def test_a_fence_waits_for_a_flush_that_was_waited_for(
    path: Path, exports: FixedExports, disk: Disk
) -> None:
    async with disk.behind(exports, path), await Client.go(path) as old:
        await begin_flush(old, disk)
        entered = trio.Event()
        async with trio.open_nursery() as nursery:

            async def enter() -> None:
                async with await Client.go(path):
                    entered.set()

            nursery.start_soon(enter)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not entered.is_set()
            disk.end()
        assert await old.simple() == (7, 0)


async def drain(server: NbdServer, exports: FixedExports) -> None:
    await server.drain(exports.key("disk"))


async def wind_up(server: NbdServer, exports: FixedExports) -> None:
    await server.drain_and_close(exports.key("disk"), "disk", 1e9)


async def disconnect(server: NbdServer, exports: FixedExports) -> None:
    await server.disconnect(exports.key("disk"))


@in_trio
@pytest.mark.parametrize("how", [drain, wind_up, disconnect])
async def test_a_detach_during_the_wait_lets_the_flush_be_finished(
    path: Path, exports: FixedExports, disk: Disk, side: Side, how: Callable[..., object]
) -> None:
    async with disk.behind(exports, path) as server, await Client.go(path) as client:
        await begin_flush(client, disk)
        ended = False
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                nonlocal ended
                await how(server, exports)  # type: ignore[misc]
                ended = True

            nursery.start_soon(end)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not ended
            disk.end()
        assert not side.volume.durability.flusher.turn.held
        assert await client.simple() == (7, 0)
        assert server.connections(exports.key("disk")) == (1 if how is drain else 0)


@in_trio
async def test_the_end_of_the_server_lets_the_flush_be_finished(
    path: Path, exports: FixedExports, disk: Disk, side: Side
) -> None:
    """SIGTERM comes while the only client's flush is waited for."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with serving(exports, path), await Client.go(path) as client:
            await write(client)
            disk.meanwhile = lambda: os.kill(os.getpid(), signal.SIGTERM)
            await client.send(wire.request(FLUSH, 7))
            async for number in signals:
                assert number == signal.SIGTERM
                break
            assert disk.waits == 1
            assert side.volume.durability.flusher.turn.held
            trio.lowlevel.current_trio_token().run_sync_soon(disk.end)
        assert not side.volume.durability.flusher.turn.held
    assert exports.open_holds == 0


@in_trio
async def test_a_flood_of_flushes_that_takes_no_answers_holds_nobody_up(
    path: Path, exports: FixedExports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_DESERTED_NS", -1)
    async with (
        serving(exports, path),
        await Client.go(path) as hostile,
        await Client.go(path) as neighbour,
        trio.open_nursery() as nursery,
    ):
        flood = (wire.write(1, IN_HEAD, b"x") + wire.request(FLUSH, 2)) * 100_000
        nursery.start_soon(hostile.send, flood)
        for _ in range(50):
            await write(neighbour, FRESH)
            assert await neighbour.command(FLUSH) == 0
        nursery.cancel_scope.cancel()


@in_trio
@pytest.mark.parametrize("flags", [0, FUA])
async def test_with_and_without_waiting_the_replies_and_bytes_are_the_same(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    """In the compiled lane, where a connection waits, and in Python's, where it does not."""
    said: list[object] = []
    held: list[bytes] = []
    monkeypatch.setattr(pace, "_DESERTED_NS", -1)
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(fastlane, "compiled", None)
            monkeypatch.setattr(syncing, "compiled", None)
        root = tmp_path / str(compiled)
        with closing(Side(root, compiled=compiled, structured=False, extended=False)) as side:
            exports = FixedExports({"disk": side.volume})
            async with serving(exports, path) as server, await Client.go(path) as client:
                for n, offset in enumerate((IN_HEAD, FRESH, 0, FRESH + 512, IN_HEAD)):
                    await client.send(wire.write(n, offset, bytes([n + 1]) * 4096, flags))
                    said.append(await client.simple())
                    await client.send(wire.request(FLUSH, 100 + n))
                    said.append(await client.simple())
                await client.send(wire.request(2))
                assert await client.closes() == b""
                (found,) = counted(server)
                said.append((found.writes, found.written_bytes, found.flushes))
            path.unlink()
            held.append(side.content_after_death())
    assert said[: len(said) // 2] == said[len(said) // 2 :]
    assert held[0] == held[1]
