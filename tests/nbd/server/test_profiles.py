"""Device profiles over NBD, in time that jumps: what is answered when, what fails, and what does
not wait for answers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from bockd.descriptors import (
    CLIENT_DESCRIPTORS,
    CLIENTS_SHARE,
    IDLE_SHARE,
    LAYERS_SHARE,
    VOLUME_DESCRIPTORS,
)
from bockd.drivers.memory.device import MemoryDevice
from bockd.model import (
    DeviceOperation,
    DeviceProfile,
    ErrorRule,
    IoLimits,
    IoRate,
    NodeKind,
    Stall,
    VolumeId,
)
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.server.delaying import Delaying
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.limits import (
    MAX_ANSWER_BYTES,
    MAX_IN_FLIGHT,
    SHARED_MEMORY_BYTES,
    ServerLimits,
)
from bockd.nbd.server.nbd_server import NbdServer
from bockd.runtime.steps import Signal
from bockd.throttle.gates import Applied
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client, Closed
from tests.nbd.server.serving import FixedExports, in_jumping_time, serving

DISK = ExportKey(NodeKind.VOLUME, 1)
BLOCK = 4096
MIB = 1 << 20

SLOW = DeviceProfile(
    name="slow", read_us=1_000_000, write_us=2_000_000, trim_us=3_000_000, flush_us=4_000_000
)
STUCK = DeviceProfile(name="stuck", stalls=(Stall(seconds=3600, after_requests=0),))


class Profiled:
    """A server, and the profile and limits of its volume, which tests change."""

    def __init__(self, server: NbdServer, device: MemoryDevice) -> None:
        self.server = server
        self.device = device
        self.applied = Applied()
        server.gates.look_up = lambda volume: self.applied if volume == 1 else Applied()
        self.begun = trio.current_time()

    def profile(self, profile: DeviceProfile | None) -> None:
        """Change the profile, as the control interface does."""
        self.applied = replace(self.applied, profile=profile)
        self.server.gates.refresh([VolumeId(1)])

    def limit(self, limits: IoLimits) -> None:
        self.applied = replace(self.applied, limits=limits)
        self.server.gates.refresh([VolumeId(1)])

    @property
    def seconds(self) -> float:
        return trio.current_time() - self.begun

    @property
    def clients(self) -> int:
        return self.server.connections(DISK)

    def holds(self, offset: int, data: bytes) -> bool:
        """Whether the volume has these bytes there, now."""
        into = memoryview(bytearray(len(data)))
        assert self.device.try_read(offset, into)
        return into == data


@asynccontextmanager
async def profiled(
    exports: FixedExports,
    path: Path,
    profile: DeviceProfile | None,
    limits: ServerLimits | None = None,
) -> AsyncIterator[Profiled]:
    device = exports.devices["disk"]
    assert isinstance(device, MemoryDevice)
    async with serving(exports, path, limits) as server:
        found = Profiled(server, device)
        found.profile(profile)
        yield found


async def begun(client: Client, data: bytes) -> None:
    """Send requests, and wait until the server waits for nothing but time."""
    await client.send(data)
    await trio.testing.wait_all_tasks_blocked()


def soon(seconds: float) -> object:
    return pytest.approx(seconds, abs=0.01)


@in_jumping_time
async def test_each_operation_takes_its_time(path: Path, exports: FixedExports) -> None:
    async with profiled(exports, path, SLOW) as daemon, await Client.go(path) as client:
        assert await client.write(0, b"x" * BLOCK) == 0
        assert daemon.seconds == soon(2)
        assert await client.read_data(0, BLOCK) == b"x" * BLOCK
        assert daemon.seconds == soon(3)
        assert await client.command(nbd.CMD_FLUSH) == 0
        assert daemon.seconds == soon(7)
        assert await client.command(nbd.CMD_TRIM, 0, BLOCK) == 0
        assert daemon.seconds == soon(10)
        assert await client.write(0, b"y" * BLOCK, flags=nbd.CMD_FLAG_FUA) == 0
        assert daemon.seconds == soon(16)
        assert await client.command(nbd.CMD_WRITE_ZEROES, 0, BLOCK) == 0
        assert daemon.seconds == soon(19)
        no_hole = nbd.CMD_FLAG_NO_HOLE
        assert await client.command(nbd.CMD_WRITE_ZEROES, 0, BLOCK, flags=no_hole) == 0
        assert daemon.seconds == soon(21)


@in_jumping_time
async def test_questions_hints_and_refusals_take_no_time(path: Path, exports: FixedExports) -> None:
    async with profiled(exports, path, SLOW) as daemon, await Client.go(path) as client:
        assert await client.command(nbd.CMD_CACHE, 0, BLOCK) == 0
        beyond = await client.command(nbd.CMD_READ, daemon.device.size_bytes, BLOCK)
        assert beyond == nbd.EINVAL
        assert daemon.seconds < 0.1


@in_jumping_time
async def test_requests_overlap(path: Path, exports: FixedExports) -> None:
    """A short one passes a long one."""
    async with profiled(exports, path, SLOW) as daemon, await Client.go(path) as client:
        writes = b"".join(wire.write(1 + n, n * BLOCK, b"w" * BLOCK) for n in range(20))
        await client.send(writes + wire.request(nbd.CMD_READ, 99, 0, BLOCK))
        assert await client.simple() == (99, 0)
        assert await client.read(BLOCK) == b"w" * BLOCK
        assert daemon.seconds == soon(1)
        assert [await client.simple() for _ in range(20)] == [(1 + n, 0) for n in range(20)]
        assert daemon.seconds == soon(2)


@in_jumping_time
async def test_work_is_done_before_it_is_answered(path: Path, exports: FixedExports) -> None:
    """So who waits for work, a drain or a fence, waits for no answer."""
    async with profiled(exports, path, STUCK) as daemon, await Client.go(path) as client:
        await begun(client, wire.write(1, 0, b"x" * BLOCK) + wire.write(2, BLOCK, b"y" * MIB))
        assert daemon.holds(0, b"x" * BLOCK + b"y" * MIB)
        await daemon.server.drain(DISK)
        async with await Client.go(path):
            assert daemon.clients == 2
            assert daemon.seconds < 0.5
        assert await client.simple() == (1, 0)
        assert await client.simple() == (2, 0)
        assert daemon.seconds == soon(3600)


@in_jumping_time
async def test_who_connects_anew_does_not_answer_for_a_stuck_device(
    path: Path, exports: FixedExports
) -> None:
    """Also if the device has got more requests than may be under way: what is still in the socket
    is carried out, and so many answers go out as it needs room for."""
    more = 40
    count = MAX_IN_FLIGHT + more
    async with profiled(exports, path, STUCK) as daemon, await Client.go(path) as client:
        await begun(
            client, b"".join(wire.write(1 + n, n * BLOCK, b"x" * BLOCK) for n in range(count))
        )
        assert not daemon.holds(0, b"x" * BLOCK * count)
        async with await Client.go(path):
            assert daemon.holds(0, b"x" * BLOCK * count)
            assert daemon.clients == 2
            assert daemon.seconds < 0.5
        early = more + 1  # there has to be room behind the last one, too
        for number in range(count):
            assert (await client.simple())[1] == 0
            assert daemon.seconds == soon(0 if number < early else 3600)


@in_jumping_time
async def test_large_requests_take_their_time_once(path: Path, exports: FixedExports) -> None:
    async with profiled(exports, path, SLOW) as daemon, await Client.go(path) as client:
        assert await client.write(0, b"x" * 3 * MIB) == 0
        assert daemon.seconds == soon(2)
        assert await client.read_data(0, 3 * MIB) == b"x" * 3 * MIB
        assert daemon.seconds == soon(3)


@in_jumping_time
async def test_request_that_fails_is_not_carried_out(path: Path, exports: FixedExports) -> None:
    """Not even in part, however large."""
    rule = ErrorRule(operations=tuple(DeviceOperation), offset_bytes=MIB, length_bytes=BLOCK)
    failing = replace(SLOW, errors=(rule,))
    async with profiled(exports, path, None) as daemon, await Client.go(path) as client:
        assert await client.write(0, b"o" * 3 * MIB) == 0
        daemon.profile(failing)
        assert await client.write(MIB, b"n" * BLOCK) == nbd.EIO
        assert daemon.seconds == soon(2)
        assert await client.write(0, b"n" * 3 * MIB) == nbd.EIO
        assert daemon.seconds == soon(4)
        assert await client.command(nbd.CMD_READ, MIB + 512, 512) == nbd.EIO
        assert await client.command(nbd.CMD_READ, 0, 2 * MIB) == nbd.EIO
        assert daemon.seconds == soon(6)
        assert await client.command(nbd.CMD_TRIM, 0, 2 * MIB) == nbd.EIO
        assert await client.command(nbd.CMD_WRITE_ZEROES, 0, 2 * MIB) == nbd.EIO
        assert await client.command(nbd.CMD_FLUSH) == nbd.EIO
        assert daemon.holds(0, b"o" * 3 * MIB)
        assert await client.write(MIB + BLOCK, b"n" * BLOCK) == 0
        assert daemon.clients == 1
        assert daemon.server.statistics_of(DISK, "disk").errors == 7


@in_jumping_time
async def test_profiles_change_while_requests_wait(path: Path, exports: FixedExports) -> None:
    """What waits is answered at once: if the profile is taken away, and if another one comes."""
    async with profiled(exports, path, STUCK) as daemon, await Client.go(path) as client:
        for following in (None, STUCK, SLOW):
            await begun(client, wire.request(nbd.CMD_READ, 1, 0, BLOCK))
            daemon.profile(following)
            assert await client.simple() == (1, 0)
            await client.read(BLOCK)
        assert daemon.seconds < 0.5
        assert await client.read_data(0, BLOCK) == bytes(BLOCK)
        assert daemon.seconds == soon(1)
        assert daemon.clients == 1


@in_jumping_time
async def test_work_that_ends_behind_its_profile_is_answered_at_once(
    path: Path, exports: FixedExports
) -> None:
    """It had begun with the profile, and the volume took long."""
    async with profiled(exports, path, STUCK) as daemon, await Client.go(path) as client:
        daemon.device.immediate = False
        daemon.device.gate = Signal()
        await begun(client, wire.write(1, 0, b"x" * BLOCK))
        assert "write" not in daemon.device.calls
        daemon.profile(None)
        daemon.device.gate.fire()
        assert await client.simple() == (1, 0)
        assert daemon.seconds < 0.5


@in_jumping_time
async def test_profile_that_is_set_again_goes_on(path: Path, exports: FixedExports) -> None:
    """What was counted is not forgotten, nor by a client that comes later."""
    failing = DeviceProfile(name="failing", errors=(ErrorRule(after_requests=3),))
    async with profiled(exports, path, failing) as daemon:
        async with await Client.go(path) as client:
            assert [await client.write(0, bytes(BLOCK)) for _ in range(2)] == [0, 0]
        daemon.profile(failing)
        async with await Client.go(path) as client:
            assert [await client.write(0, bytes(BLOCK)) for _ in range(2)] == [0, nbd.EIO]
            daemon.profile(None)
            daemon.profile(failing)
            assert await client.write(0, bytes(BLOCK)) == 0


@in_jumping_time
async def test_connections_share_the_device(path: Path, exports: FixedExports) -> None:
    one_at_a_time = replace(SLOW, parallel=1)
    async with (
        profiled(exports, path, one_at_a_time) as daemon,
        await Client.go(path) as one,
        await Client.go(path) as other,
    ):
        await begun(one, wire.request(nbd.CMD_READ, 1, 0, BLOCK))
        await begun(other, wire.request(nbd.CMD_READ, 1, 0, BLOCK))
        for client, seconds in ((one, 1), (other, 2)):
            assert await client.simple() == (1, 0)
            await client.read(BLOCK)
            assert daemon.seconds == soon(seconds)


@in_jumping_time
async def test_limits_hold_too(path: Path, exports: FixedExports) -> None:
    async with profiled(exports, path, SLOW) as daemon, await Client.go(path) as client:
        daemon.limit(IoLimits(iops=IoRate(1)))
        await client.send(b"".join(wire.write(1 + n, 0, bytes(BLOCK)) for n in range(4)))
        for number in range(4):
            assert await client.simple() == (1 + number, 0)
            assert daemon.seconds == soon(2 + number)


@in_jumping_time
async def test_what_waits_is_bounded(path: Path, exports: FixedExports) -> None:
    """In number; data of reads that wait takes memory up to a bound, and nothing is lost."""
    async with profiled(exports, path, SLOW) as daemon, await Client.go(path) as client:
        length, count = 256 << 10, 2 * MAX_IN_FLIGHT
        assert await client.write(0, b"x" * length) == 0
        reads = [wire.request(nbd.CMD_READ, 1 + n, 0, length) for n in range(count)]
        await begun(client, b"".join(reads))
        members = daemon.server._registry.state(DISK, "disk").members
        assert [member.in_flight() for member in members] == [MAX_IN_FLIGHT]
        assert daemon.server._budget.free_bytes == SHARED_MEMORY_BYTES
        cookies = set()
        for _ in range(count):
            cookie, error = await client.simple()
            assert (error, await client.read(length)) == (0, b"x" * length)
            cookies.add(cookie)
        assert cookies == set(range(1, count + 1))
        assert daemon.seconds == soon(4)


@pytest.mark.parametrize("at_once", [True, False], ids=["read-at-once", "read-slowly"])
def test_reads_that_are_due_together_take_bounded_memory(
    path: Path, exports: FixedExports, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """While they wait, and while the client does not take them. Also if the volume has to wait for
    the data."""
    held = [0]
    begin = Delaying._begin

    def noting(delaying: Delaying, *arguments: Any) -> None:
        begin(delaying, *arguments)
        held.append(delaying._held_bytes)

    monkeypatch.setattr(Delaying, "_begin", noting)

    @in_jumping_time
    async def run() -> None:
        async with profiled(exports, path, STUCK) as daemon, await Client.go(path) as client:
            daemon.device.immediate = at_once
            length, count = 256 << 10, MAX_IN_FLIGHT
            reads = [wire.request(nbd.CMD_READ, 1 + n, 0, length) for n in range(count)]
            await begun(client, b"".join(reads))
            assert max(held) == 3 * length
            daemon.profile(None)
            await trio.testing.wait_all_tasks_blocked()
            assert len(held) - 1 < count  # the socket is full
            cookies = set()
            for _ in range(count):
                cookie, error = await client.simple()
                assert (error, await client.read(length)) == (0, bytes(length))
                cookies.add(cookie)
            assert cookies == set(range(1, count + 1))
            assert daemon.seconds < 0.5

    run()
    assert max(held) == MAX_ANSWER_BYTES
    assert len(held) - 1 == MAX_IN_FLIGHT


@in_jumping_time
async def test_answers_that_wait_take_the_descriptors_that_are_counted(
    path: Path, exports: FixedExports
) -> None:
    """And they are given back. The test's own end of the socket is one, too."""

    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    async with profiled(exports, path, STUCK) as daemon:
        before = held()
        async with await Client.go(path) as client:
            connected = held()
            await begun(client, b"".join(wire.write(1 + n, 0, bytes(BLOCK)) for n in range(9)))
            assert held() - before == 1 + CLIENT_DESCRIPTORS
            daemon.profile(None)
            await trio.testing.wait_all_tasks_blocked()
            assert held() == connected


def test_shares_of_descriptors_leave_some_for_the_rest() -> None:
    clients = (CLIENT_DESCRIPTORS + VOLUME_DESCRIPTORS) / CLIENTS_SHARE
    assert clients + VOLUME_DESCRIPTORS / IDLE_SHARE + 1 / LAYERS_SHARE <= 7 / 8


# -- ends ------------------------------------------------------------------------------------------


@in_jumping_time
async def test_a_detach_answers_at_once(path: Path, exports: FixedExports) -> None:
    """Also what is still in the socket, behind as much as may be under way."""
    count = MAX_IN_FLIGHT + 40
    async with profiled(exports, path, STUCK) as daemon, await Client.go(path) as client:
        await begun(client, b"".join(wire.write(1 + n, 0, bytes(BLOCK)) for n in range(count)))
        await daemon.server.drain_and_close(DISK, "disk", 10)
        assert [await client.simple() for _ in range(count)] == [(1 + n, 0) for n in range(count)]
        assert daemon.seconds < 0.5
        assert daemon.clients == 0


@in_jumping_time
async def test_a_forced_detach_does_not_wait(path: Path, exports: FixedExports) -> None:
    async with profiled(exports, path, STUCK) as daemon, await Client.go(path) as client:
        await begun(client, wire.write(1, 0, bytes(BLOCK)))
        await daemon.server.disconnect(DISK)
        assert (daemon.seconds < 0.5, daemon.clients) == (True, 0)


@in_jumping_time
async def test_who_says_goodbye_is_answered_at_once(path: Path, exports: FixedExports) -> None:
    async with profiled(exports, path, STUCK) as daemon, await Client.go(path) as client:
        await client.send(wire.write(1, 0, b"x" * BLOCK) + wire.request(nbd.CMD_DISC))
        assert await client.simple() == (1, 0)
        with pytest.raises(Closed):
            await client.simple()
        assert daemon.seconds < 0.5


@pytest.mark.parametrize("count", [1, MAX_IN_FLIGHT + 40])
def test_a_client_that_leaves_is_not_waited_for(
    path: Path, exports: FixedExports, count: int
) -> None:
    """Nor if it has sent more than may be under way, so that nothing is received any more."""

    @in_jumping_time
    async def run() -> None:
        async with profiled(exports, path, STUCK) as daemon:
            async with await Client.go(path) as client:
                await begun(
                    client, b"".join(wire.write(1 + n, 0, bytes(BLOCK)) for n in range(count))
                )
                assert daemon.clients == 1
            await trio.sleep(1)
            assert daemon.clients == 0
            assert daemon.server._budget.free_bytes == SHARED_MEMORY_BYTES

    run()


@in_jumping_time
async def test_the_end_does_not_wait(path: Path, exports: FixedExports) -> None:
    async with AsyncExitStack() as stack:
        async with profiled(exports, path, STUCK) as daemon:
            client = await stack.enter_async_context(await Client.go(path))
            await begun(client, b"".join(wire.write(1 + n, 0, bytes(BLOCK)) for n in range(200)))
            since = daemon.seconds
        assert daemon.seconds - since < 0.5
        with pytest.raises(Closed):
            await client.simple()
