"""IoLimits over NBD, in time that jumps: what passes when, and what need not wait for tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bockd.drivers.memory.device import MemoryDevice
from bockd.model import IoLimits, IoRate, NodeKind, VolumeId
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.server.connection import Connection
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.limits import (
    MAX_HELD_BYTES,
    MAX_IN_FLIGHT,
    SHARED_MEMORY_BYTES,
    ServerLimits,
)
from bockd.nbd.server.nbd_server import NbdServer
from bockd.throttle.gates import Applied
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client, Closed
from tests.nbd.server.serving import FixedExports, in_jumping_time, serving

DISK = ExportKey(NodeKind.VOLUME, 1)
TEN = IoLimits(iops=IoRate(10))
MANY = IoLimits(iops=IoRate(1_000_000))
BLOCK = 4096


class Limited:
    """A server, and the limits of its volumes, which tests change."""

    def __init__(self, server: NbdServer, device: MemoryDevice) -> None:
        self.server = server
        self.device = device
        self.applied: dict[int, Applied] = {}
        server.gates.look_up = lambda volume: self.applied.get(volume, Applied())
        self.begun = trio.current_time()

    def limit(self, limits: IoLimits, volume: int = 1) -> None:
        """Change a volume's own limits, as the control interface does."""
        self.applied[volume] = replace(self.applied.get(volume, Applied()), limits=limits)
        self.server.gates.refresh([VolumeId(volume)])

    def tenant(self, limits: IoLimits, *volumes: int) -> None:
        """Change the limits of a tenant that has these volumes."""
        for volume in volumes:
            old = self.applied.get(volume, Applied())
            self.applied[volume] = replace(old, tenant="acme", tenant_limits=limits)
        self.server.gates.refresh()

    @property
    def seconds(self) -> float:
        """Since it was served."""
        return trio.current_time() - self.begun

    @property
    def clients(self) -> int:
        return self.server.connections(DISK)


@asynccontextmanager
async def limited(
    exports: FixedExports, path: Path, limits: IoLimits, server_limits: ServerLimits | None = None
) -> AsyncIterator[Limited]:
    device = exports.devices["disk"]
    assert isinstance(device, MemoryDevice)
    async with serving(exports, path, server_limits) as server:
        found = Limited(server, device)
        found.limit(limits)
        yield found


def writes(count: int, first: int = 0) -> bytes:
    """So many writes of a block each, whose bytes say which one it is."""
    numbers = range(first, first + count)
    return b"".join(wire.write(1 + n, n * BLOCK, bytes([1 + n % 255]) * BLOCK) for n in numbers)


def written(device: MemoryDevice, count: int) -> list[bool]:
    """Which of the first blocks hold what `writes` puts there."""
    into = memoryview(bytearray(count * BLOCK))
    assert device.try_read(0, into)
    return [into[n * BLOCK : (n + 1) * BLOCK] == bytes([1 + n % 255]) * BLOCK for n in range(count)]


def held_bytes(daemon: Limited) -> int:
    """Payloads that wait."""
    members = daemon.server._registry.state(DISK, "disk").members
    holdings = [member._holding for member in members if isinstance(member, Connection)]
    return sum(holding._bytes for holding in holdings if holding is not None)


async def hold(daemon: Limited, client: Client, count: int) -> None:
    """Have a client send writes of which the first passes and the others wait."""
    await client.send(writes(count))
    assert await client.simple() == (1, 0)
    await trio.testing.wait_all_tasks_blocked()
    assert written(daemon.device, count) == [True] + [False] * (count - 1)


@in_jumping_time
async def test_requests_are_answered_at_the_rate(path: Path, exports: FixedExports) -> None:
    async with limited(exports, path, TEN) as daemon, await Client.go(path) as client:
        await client.send(writes(31))
        for number in range(31):
            assert await client.simple() == (1 + number, 0)
            assert daemon.seconds == pytest.approx(number / 10, abs=0.002)
        assert all(written(daemon.device, 31))


@in_jumping_time
async def test_bytes_are_answered_at_the_rate(path: Path, exports: FixedExports) -> None:
    limits = IoLimits(read_bps=IoRate(10 * BLOCK))
    async with limited(exports, path, limits) as daemon, await Client.go(path) as client:
        assert await client.write(0, b"x" * BLOCK) == 0  # not limited
        for number in range(10):
            assert await client.read_data(0, BLOCK) == b"x" * BLOCK
            assert daemon.seconds == pytest.approx(number / 10, abs=0.002)


@in_jumping_time
async def test_reads_pass_writes_that_wait(path: Path, exports: FixedExports) -> None:
    limits = IoLimits(write_iops=IoRate(1))
    async with limited(exports, path, limits) as daemon, await Client.go(path) as client:
        await hold(daemon, client, 3)
        for _ in range(20):
            assert await client.read_data(0, BLOCK, cookie=99) == b"\1" * BLOCK
        assert daemon.seconds < 0.5
        assert await client.simple() == (2, 0)
        assert await client.simple() == (3, 0)
        assert daemon.seconds == pytest.approx(2, abs=0.002)


@in_jumping_time
async def test_flushes_and_questions_cost_nothing(path: Path, exports: FixedExports) -> None:
    async with limited(exports, path, TEN) as daemon, await Client.go(path) as client:
        for _ in range(50):
            assert await client.command(nbd.CMD_FLUSH) == 0
        beyond = await client.command(nbd.CMD_READ, daemon.device.size_bytes, BLOCK)
        assert beyond == nbd.EINVAL
        assert daemon.seconds < 0.1


@in_jumping_time
async def test_what_moves_data_costs_bytes(path: Path, exports: FixedExports) -> None:
    """CACHE, which reads, and zeroes that are written; not trims and those that leave a hole."""
    mib = 1 << 20
    async with (
        limited(exports, path, IoLimits(bps=IoRate(mib))) as daemon,
        await Client.go(path) as client,
    ):
        hole = await client.command(nbd.CMD_WRITE_ZEROES, 0, mib)
        assert (hole, await client.command(nbd.CMD_TRIM, 0, mib)) == (0, 0)
        no_hole = nbd.CMD_FLAG_NO_HOLE
        assert await client.command(nbd.CMD_WRITE_ZEROES, 0, mib, flags=no_hole) == 0
        assert daemon.seconds < 0.1
        assert await client.command(nbd.CMD_CACHE, 0, mib) == 0
        assert daemon.seconds == pytest.approx(1, abs=0.05)
        await client.read_data(0, 512)
        assert daemon.seconds == pytest.approx(1.9, abs=0.05)


@in_jumping_time
async def test_limits_count_for_open_connections(path: Path, exports: FixedExports) -> None:
    """When they are set, changed and lifted; what waits then passes at once."""
    async with limited(exports, path, IoLimits()) as daemon, await Client.go(path) as client:
        await client.send(writes(100))
        for _ in range(100):
            await client.simple()
        assert daemon.seconds < 0.1
        daemon.limit(IoLimits(iops=IoRate(1)))
        await client.send(writes(50))
        assert (await client.simple())[1] == 0
        assert (await client.simple())[1] == 0
        assert daemon.seconds > 0.9
        daemon.limit(IoLimits())
        since = daemon.seconds
        for _ in range(48):
            assert (await client.simple())[1] == 0
        assert daemon.seconds - since < 0.1
        await client.send(writes(100))
        for _ in range(100):
            await client.simple()
        assert daemon.seconds - since < 0.1
        assert daemon.clients == 1


@in_jumping_time
async def test_connections_share_the_limits_of_a_volume(path: Path, exports: FixedExports) -> None:
    async with (
        limited(exports, path, TEN) as daemon,
        await Client.go(path) as one,
        await Client.go(path) as other,
    ):
        await one.send(writes(20))
        await other.send(writes(20))
        for _ in range(20):
            await one.simple()
            await other.simple()
        assert daemon.seconds == pytest.approx(3.9, abs=0.01)


@in_jumping_time
async def test_volumes_share_the_limits_of_a_tenant(path: Path, exports: FixedExports) -> None:
    """In turn: one with many requests gets no more than one with few."""
    async with (
        limited(exports, path, IoLimits()) as daemon,
        await Client.go(path) as disk,
        await Client.go(path, "other") as other,
    ):
        daemon.tenant(TEN, 1, 2)
        daemon.begun = trio.current_time()
        await disk.send(writes(100))
        for _ in range(10):
            assert await other.write(0, bytes(BLOCK)) == 0
        assert daemon.seconds == pytest.approx(2, abs=0.15)
        daemon.tenant(IoLimits(), 1, 2)
        for _ in range(100):
            assert (await disk.simple())[1] == 0
        assert daemon.seconds == pytest.approx(2, abs=0.15)


@in_jumping_time
async def test_snapshots_have_no_limits(path: Path, exports: FixedExports) -> None:
    async with limited(exports, path, TEN) as daemon:
        for volume in (1, 2, 3):
            daemon.limit(TEN, volume)
        async with await Client.go(path, "snapshot/monday") as client:
            for _ in range(100):
                await client.read_data(0, BLOCK)
        assert daemon.seconds < 0.5


@in_jumping_time
async def test_a_client_that_leaves_takes_what_waits_with_it(
    path: Path, exports: FixedExports
) -> None:
    async with limited(exports, path, IoLimits(iops=IoRate(1))) as daemon:
        async with await Client.go(path) as client:
            await hold(daemon, client, 20)
        await trio.testing.wait_all_tasks_blocked()
        assert daemon.clients == 0
        await trio.sleep(30)
        assert written(daemon.device, 20) == [True] + [False] * 19


@in_jumping_time
async def test_what_waits_is_given_up_together(
    path: Path, exports: FixedExports, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokens would do for the second one once the first one has gone, and both have left."""
    limits = IoLimits(bps=IoRate(10_000, burst=100_000))
    async with limited(exports, path, limits) as daemon:
        throttle = daemon.server.gates.gate(VolumeId(1)).throttle
        async with await Client.go(path) as client:
            assert await client.write(0, b"1" * (64 << 10)) == 0
            held = wire.write(2, 0, b"2" * (64 << 10)) + wire.write(3, 0, b"3" * BLOCK)
            await client.send(held)
            await trio.testing.wait_all_tasks_blocked()
            assert len(throttle._flows) == 1
        await trio.sleep(0.1)
        assert daemon.clients == 0
        assert not throttle._flows
        assert daemon.server._budget.free_bytes == SHARED_MEMORY_BYTES
        assert not caplog.records
        into = memoryview(bytearray(BLOCK))
        assert daemon.device.try_read(0, into)
        assert into == b"1" * BLOCK


@in_jumping_time
async def test_a_client_that_leaves_behind_a_payload_is_noticed(
    path: Path, exports: FixedExports
) -> None:
    """While its payload waits in the socket nothing is received; it is looked for all the same."""
    async with limited(exports, path, IoLimits(bps=IoRate(1000))) as daemon:
        async with await Client.go(path) as client:
            assert await client.write(0, bytes(BLOCK)) == 0  # a debt of four seconds
            await client.send(wire.write(2, 0, b"x" * 100_000)[:50_000])
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(1)
        assert daemon.clients == 0
        assert daemon.seconds < 2


@in_jumping_time
async def test_what_waits_when_a_client_says_goodbye_is_done(
    path: Path, exports: FixedExports
) -> None:
    """proto.md: at NBD_CMD_DISC the server handles all outstanding requests."""
    async with limited(exports, path, TEN) as daemon, await Client.go(path) as client:
        await hold(daemon, client, 10)
        await client.send(wire.request(nbd.CMD_DISC))
        for number in range(1, 10):
            assert await client.simple() == (1 + number, 0)
        assert daemon.seconds == pytest.approx(0.9, abs=0.05)
        with pytest.raises(Closed):
            await client.simple()
        assert all(written(daemon.device, 10))


@in_jumping_time
async def test_who_says_goodbye_and_is_gone_is_not_waited_for(
    path: Path, exports: FixedExports
) -> None:
    async with limited(exports, path, IoLimits(iops=IoRate(1))) as daemon:
        async with await Client.go(path) as client:
            await hold(daemon, client, 100)
            await client.send(wire.request(nbd.CMD_DISC))
        await trio.sleep(1.1)
        assert daemon.clients == 0


@in_jumping_time
async def test_a_detach_does_not_wait_for_tokens(path: Path, exports: FixedExports) -> None:
    """What was sent is carried out and answered at once, also what is still in the socket."""
    async with (
        limited(exports, path, IoLimits(iops=IoRate(1))) as daemon,
        await Client.go(path) as client,
    ):
        await hold(daemon, client, MAX_IN_FLIGHT + 72)
        await daemon.server.drain_and_close(DISK, "disk", 10)
        for number in range(1, MAX_IN_FLIGHT + 72):
            assert await client.simple() == (1 + number, 0)
        assert daemon.seconds < 1
        assert all(written(daemon.device, MAX_IN_FLIGHT + 72))


@in_jumping_time
async def test_a_forced_detach_drops_what_waits(path: Path, exports: FixedExports) -> None:
    async with limited(exports, path, IoLimits(iops=IoRate(1))) as daemon:
        async with await Client.go(path) as client:
            await hold(daemon, client, 20)
            await daemon.server.disconnect(DISK)
            assert daemon.seconds < 0.5
        await trio.sleep(30)
        assert written(daemon.device, 20) == [True] + [False] * 19


@in_jumping_time
async def test_a_drain_does_not_wait_for_what_has_not_begun(
    path: Path, exports: FixedExports
) -> None:
    async with (
        limited(exports, path, IoLimits(iops=IoRate(1))) as daemon,
        await Client.go(path) as client,
    ):
        await hold(daemon, client, 20)
        await daemon.server.drain(DISK)
        assert daemon.seconds < 0.5


@in_jumping_time
async def test_a_fence_carries_out_what_waits(path: Path, exports: FixedExports) -> None:
    """Or it would land on what the new client writes. Those who come later pay for it."""
    async with (
        limited(exports, path, IoLimits(iops=IoRate(1))) as daemon,
        await Client.go(path) as old,
    ):
        await hold(daemon, old, 20)
        await trio.sleep(0.5)
        async with await Client.go(path) as new:
            assert all(written(daemon.device, 20))
            assert daemon.seconds < 1
            assert daemon.clients == 2
            assert await new.write(0, b"n" * BLOCK) == 0
            assert daemon.seconds == pytest.approx(20, abs=0.1)
        for number in range(1, 20):
            assert await old.simple() == (1 + number, 0)


@pytest.mark.parametrize(
    ("before", "meanwhile"), [(IoLimits(), IoLimits(iops=IoRate(1))), (MANY, IoLimits())]
)
def test_limits_may_change_while_a_fence_waits(
    path: Path, exports: FixedExports, before: IoLimits, meanwhile: IoLimits
) -> None:
    """What the older client had sent is on the device when the newcomer is let in."""

    @in_jumping_time
    async def run() -> None:
        async with limited(exports, path, before) as daemon, await Client.go(path) as old:
            length = 256 << 10
            await old.send(b"".join(wire.request(0, n, 0, length) for n in range(64)))
            await trio.testing.wait_all_tasks_blocked()  # it takes no replies yet
            await old.send(writes(20))
            async with trio.open_nursery() as nursery:

                async def come() -> None:
                    async with await Client.go(path):
                        assert all(written(daemon.device, 20))
                        assert daemon.seconds < 1

                nursery.start_soon(come)
                await trio.testing.wait_all_tasks_blocked()
                daemon.limit(meanwhile)
                for number in range(64):
                    assert await old.simple() == (number, 0)
                    await old.read(length)
                for number in range(20):
                    assert await old.simple() == (1 + number, 0)

    run()


@in_jumping_time
async def test_a_newcomer_waits_until_what_fences_let_pass_is_paid(
    path: Path, exports: FixedExports
) -> None:
    """Or one could connect again and again, and nothing would wait for ever."""
    async with (
        limited(exports, path, TEN) as daemon,
        await Client.go(path) as busy,
    ):
        for number in range(4):
            await busy.send(writes(30))
            await trio.testing.wait_all_tasks_blocked()
            async with await Client.go(path):
                assert daemon.seconds == pytest.approx(3 * number, abs=0.6)
            for _ in range(30):
                await busy.simple()


async def outside(daemon: Limited, path: Path, *, behind: bytes = b"") -> Client:
    """A client that is not let in yet, because of what another one owes."""
    client = await Client.connect(path)
    await client.send(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.go("disk") + behind)
    await trio.testing.wait_all_tasks_blocked()
    return client


@in_jumping_time
async def test_who_waits_outside_may_leave(path: Path, exports: FixedExports) -> None:
    """It takes up no place then, and nobody waits for it: not a detach, nor what comes in time."""
    async with (
        limited(exports, path, IoLimits(iops=IoRate(1))) as daemon,
        await Client.go(path) as old,
    ):
        await hold(daemon, old, 100)
        async with await Client.go(path):
            assert all(written(daemon.device, 100))
        async with await outside(daemon, path):
            assert daemon.clients == 2
        await trio.sleep(1.1)
        assert daemon.clients == 1
        for behind in (b"", wire.write(1, 200 * BLOCK, b"x" * BLOCK)):
            async with await outside(daemon, path, behind=behind):
                since = daemon.seconds
                await daemon.server.drain_and_close(DISK, "disk", 10)
                assert daemon.clients == 0
                assert daemon.seconds - since < 1.5
        assert daemon.seconds < 10


@in_jumping_time
async def test_nobody_owes_for_a_large_request_that_has_waited(
    path: Path, exports: FixedExports
) -> None:
    async with (
        limited(exports, path, IoLimits(bps=IoRate(1 << 20))) as daemon,
        await Client.go(path) as client,
    ):
        await client.read_data(0, 4 << 20)
        async with await Client.go(path):
            assert daemon.seconds < 0.5


@in_jumping_time
async def test_large_requests_pass_at_the_rate(path: Path, exports: FixedExports) -> None:
    """Each is larger than the bucket. A payload is not received before it may pass."""
    mib = 1 << 20
    async with (
        limited(exports, path, IoLimits(bps=IoRate(4 * mib))) as daemon,
        await Client.go(path) as client,
    ):
        for number in range(4):
            assert await client.write(number * mib, bytes([number]) * mib) == 0
            assert await client.read_data(number * mib, mib) == bytes([number]) * mib
        assert daemon.seconds == pytest.approx(7 / 4, abs=0.02)


@in_jumping_time
async def test_what_is_held_is_bounded(path: Path, exports: FixedExports) -> None:
    """In number and in bytes: what comes behind it stays in the socket, and nothing is lost."""
    limits = ServerLimits(max_in_flight=8)
    async with (
        limited(exports, path, IoLimits(iops=IoRate(1)), limits) as daemon,
        await Client.go(path) as client,
    ):
        payload = bytes(64 << 10)
        requests = [wire.write(1 + n, n * len(payload), payload) for n in range(20)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"".join(requests))
            assert await client.simple() == (1, 0)
            await trio.testing.wait_all_tasks_blocked()
            assert held_bytes(daemon) == 8 * len(payload)
            for number in range(1, 20):
                assert await client.simple() == (1 + number, 0)
        assert daemon.seconds == pytest.approx(19, abs=0.1)
        assert not held_bytes(daemon)


@in_jumping_time
async def test_writes_that_wait_are_bounded_in_bytes(path: Path, exports: FixedExports) -> None:
    async with (
        limited(exports, path, IoLimits(write_iops=IoRate(1))) as daemon,
        await Client.go(path) as client,
    ):
        payload = bytes(64 << 10)
        requests = [wire.write(1 + n, n * len(payload), payload) for n in range(40)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"".join(requests))
            assert await client.simple() == (1, 0)
            await trio.testing.wait_all_tasks_blocked()
            assert held_bytes(daemon) == MAX_HELD_BYTES
            # Each connection has reserved as much: it is not taken from what all share.
            assert daemon.server._budget.free_bytes == SHARED_MEMORY_BYTES
            daemon.limit(IoLimits())
            for number in range(1, 40):
                assert await client.simple() == (1 + number, 0)


@in_jumping_time
async def test_what_was_served_while_others_passed_made_room(
    path: Path, exports: FixedExports
) -> None:
    """A flush takes its turn behind all that was held; what is behind the flush found no room
    before, and would wait for what has come already."""
    limits, length = ServerLimits(max_in_flight=64), 256 << 10
    async with (
        limited(exports, path, IoLimits(iops=IoRate(1)), limits) as daemon,
        await Client.go(path) as client,
    ):
        await client.read_data(0, length)
        await client.send(b"".join(wire.request(0, n, 0, length) for n in range(64)))
        await trio.testing.wait_all_tasks_blocked()
        daemon.limit(IoLimits())  # more is answered now than a socket takes
        await trio.testing.wait_all_tasks_blocked()
        await client.send(wire.request(nbd.CMD_FLUSH, 64) + wire.request(0, 65, 0, BLOCK))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(10):
            for number in range(64):
                assert await client.simple() == (number, 0)
                await client.read(length)
            assert await client.simple() == (64, 0)
            assert await client.simple() == (65, 0)
            await client.read(BLOCK)


@in_jumping_time
async def test_the_end_does_not_wait_for_tokens(path: Path, exports: FixedExports) -> None:
    async with AsyncExitStack() as stack:
        async with limited(exports, path, IoLimits(iops=IoRate(1))) as daemon:
            client = await stack.enter_async_context(await Client.go(path))
            await hold(daemon, client, 100)
            since = daemon.seconds
        assert daemon.seconds - since < 0.5
        with pytest.raises(Closed):
            await client.simple()
