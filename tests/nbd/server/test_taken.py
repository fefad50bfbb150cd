"""A device that another gateway has taken: no answer any more, and its connections end at once."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from bockd.drivers.memory.device import MemoryDevice
from bockd.errors import VolumeTakenError
from bockd.model import BLOCK_SIZE, MIB
from bockd.nbd.server import fastlane
from bockd.pool.device import SharedDevice
from bockd.runtime.steps import Completion, Signal
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client, Closed
from tests.nbd.server.serving import FixedExports, counted, in_trio, serving
from tests.nbd.server.sides import PLACE_BYTES, Side
from tests.nbd.server.takeable import Takeable

STRUCTURED = wire.option(8)
CONTEXT = wire.option(10, wire.meta_data("disk", "base:allocation"))
FUA = 1

REQUESTS = {
    "read": wire.request(0, 1, 0, BLOCK_SIZE),
    "large read": wire.request(0, 1, 0, 3 * MIB),
    "write": wire.write(1, 0, b"x" * BLOCK_SIZE),
    "durable write": wire.write(1, 0, b"x" * BLOCK_SIZE, FUA),
    "large write": wire.write(1, 0, b"x" * 3 * MIB),
    "large durable write": wire.write(1, 0, b"x" * 3 * MIB, FUA),
    "flush": wire.request(3, 1),
    "trim": wire.request(4, 1, 0, BLOCK_SIZE),
    "zero": wire.request(6, 1, 0, BLOCK_SIZE),
    "block status": wire.request(7, 1, 0, BLOCK_SIZE),
    "read-ahead": wire.request(5, 1, 0, BLOCK_SIZE),
}

OPERATIONS = ("read", "write", "commit", "flush", "trim", "zero", "extents", "cache")


@pytest.fixture(params=["compiled", "python"], autouse=True)
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(fastlane, "compiled", None)
    elif fastlane.compiled is None:
        pytest.skip("the fast lane is not compiled")
    return cast(str, request.param)


class Bench:
    """A device that may be taken, as "disk", and another one."""

    def __init__(self, device: object = None) -> None:
        self.below = MemoryDevice(16 * MIB)
        self.taken, self.device = Takeable.over(device or self.below)
        self.exports = FixedExports({"disk": self.device, "other": MemoryDevice(MIB)})

    def replace(self) -> Takeable:
        """Open the volume anew, as a pool does for who asks after it was taken."""
        taken, self.exports.devices["disk"] = Takeable.over(self.below)
        return taken


def test_ours_is_such_a_device() -> None:
    assert isinstance(Bench().device, SharedDevice)
    assert not isinstance(MemoryDevice(MIB), SharedDevice)


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("immediate", [True, False], ids=["at once", "waiting"])
@pytest.mark.parametrize("style", ["simple", "structured"])
@in_trio
async def test_what_fails_so_gets_no_answer(
    path: Path, name: str, immediate: bool, style: str
) -> None:
    """Though the device has not told of it: the error alone ends the connections."""
    if name == "block status" and style == "simple":
        pytest.skip("is not negotiated")
    options = (STRUCTURED, CONTEXT) if style == "structured" else ()
    bench = Bench()
    error = VolumeTakenError("taken")
    bench.below.failures = dict.fromkeys(OPERATIONS, error)
    bench.below.immediate = immediate
    async with (
        serving(bench.exports, path) as server,
        await Client.go(path, "disk", *options) as client,
        await Client.go(path, "disk", *options) as idle,
        await Client.go(path, "other") as other,
    ):
        await client.send(REQUESTS[name])
        with trio.fail_after(10):
            assert await client.closes() == b""
            assert await idle.closes() == b""
        assert await other.write(0, b"unharmed") == 0
        assert counted(server)[0].errors == 0


@pytest.mark.parametrize("name", REQUESTS)
@in_trio
async def test_all_connections_end_at_once_with_requests_under_way(path: Path, name: str) -> None:
    """They do not wait for the device, which may hang with the cluster."""
    bench = Bench()
    gate = bench.below.gate = Signal()
    bench.below.immediate = False
    async with (
        serving(bench.exports, path),
        await Client.go(path, "disk", STRUCTURED, CONTEXT) as busy,
        await Client.go(path, "disk") as idle,
        await Client.go(path, "other") as other,
    ):
        await busy.send(REQUESTS[name])
        await trio.testing.wait_all_tasks_blocked(0.01)
        bench.taken.take()
        with trio.fail_after(10):
            assert await busy.closes() == b""
            assert await idle.closes() == b""
        assert await other.write(0, b"unharmed") == 0
        assert bench.exports.open_holds == 2  # what has begun is finished in any case
        gate.fire()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert bench.exports.open_holds == 1


class Elsewhere(MemoryDevice):
    """Waits for completions, as a device in a cluster does."""

    def __init__(self) -> None:
        super().__init__(16 * MIB)
        self.immediate = False
        self.waiting: list[Completion[None]] = []

    async def _pause(self, operation: str) -> None:
        self.waiting.append(Completion())
        await self.waiting[-1]
        self._check(operation)


@pytest.mark.parametrize("tells", [True, False], ids=["lost", "only the error"])
@pytest.mark.parametrize("name", REQUESTS)
@in_trio
async def test_what_waits_for_completions_ends_so_too(path: Path, name: str, tells: bool) -> None:
    elsewhere = Elsewhere()
    bench = Bench(elsewhere)
    exports = bench.exports
    async with serving(exports, path) as server:
        async with (
            await Client.go(path, "disk", STRUCTURED, CONTEXT) as busy,
            await Client.go(path, "disk") as idle,
        ):
            await busy.send(REQUESTS[name])
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert elsewhere.waiting
            if tells:
                bench.taken.take()
            else:
                error = VolumeTakenError("taken")
                elsewhere.failures = dict.fromkeys(OPERATIONS, error)
                for one in elsewhere.waiting:
                    one.finish(None)
            with trio.fail_after(10):
                assert await busy.closes() == b""
                assert await idle.closes() == b""
        if tells:
            for one in elsewhere.waiting:
                one.finish(None)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert exports.open_holds == 0
        assert counted(server)[0].errors == 0


@in_trio
async def test_a_payload_that_is_on_its_way_is_not_waited_for(path: Path) -> None:
    bench = Bench()
    async with serving(bench.exports, path), await Client.go(path) as client:
        await client.send(wire.write(1, 0, bytes(3 * MIB))[: 2 * MIB])
        await trio.testing.wait_all_tasks_blocked(0.01)
        bench.taken.take()
        with trio.fail_after(10):
            assert await client.closes() == b""


@in_trio
async def test_a_client_that_takes_no_replies_is_not_waited_for(path: Path) -> None:
    bench = Bench()
    async with serving(bench.exports, path) as server, await Client.go(path) as client:
        await client.send(b"".join(wire.request(0, n, 0, 8 * MIB) for n in range(8)))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert bench.exports.open_holds == 1
        bench.taken.take()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert bench.exports.open_holds == 0
        assert server.connections(bench.exports.key("disk")) == 0


@pytest.mark.parametrize("style", ["simple", "structured"])
@in_trio
async def test_a_large_read_ends_in_its_middle_without_an_error(path: Path, style: str) -> None:
    bench = Bench()
    options = (STRUCTURED,) if style == "structured" else ()
    async with serving(bench.exports, path), await Client.go(path, "disk", *options) as client:
        real = bench.below.try_read

        def try_read(offset: int, into: memoryview) -> bool:
            if offset >= MIB:
                raise VolumeTakenError("taken")
            return real(offset, into)

        bench.below.try_read = try_read  # type: ignore[method-assign]
        await client.send(wire.request(0, 1, 0, 3 * MIB))
        with trio.fail_after(10):
            data = await client.closes()
        if style == "simple":
            assert len(data) == 16 + MIB
        else:  # one chunk, and no other
            assert len(data) == 20 + 8 + MIB


@in_trio
async def test_clients_go_on_with_the_volume_as_it_is_opened_anew(path: Path) -> None:
    bench = Bench()
    gate = bench.below.gate = Signal()
    bench.below.immediate = False
    async with serving(bench.exports, path) as server:
        async with await Client.go(path) as client:
            await client.send(wire.write(1, 0, b"old"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            bench.taken.take()
            await client.closes()
        bench.below.gate = None
        second = bench.replace()
        gate.fire()
        async with await Client.go(path) as again, await Client.go(path) as another:
            assert await again.write(0, b"new") == 0
            assert await another.read_data(0, 3) == b"new"
            assert server.connections(bench.exports.key("disk")) == 2
            second.take()
            with trio.fail_after(10):
                assert await again.closes() == b""
                assert await another.closes() == b""
        bench.replace()
        async with await Client.go(path) as last:
            assert await last.read_data(0, 3) == b"new"


@in_trio
async def test_who_comes_to_a_device_that_is_lost_already_is_sent_away(path: Path) -> None:
    bench = Bench()
    async with serving(bench.exports, path):
        async with await Client.go(path) as client:
            assert await client.write(0, b"before") == 0
        bench.taken.take()
        client = await Client.connect(path)
        async with client:
            await client.send(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.go("disk"))
            with trio.fail_after(10):
                await client.closes()
        bench.replace()
        async with await Client.go(path) as client:
            assert await client.read_data(0, 6) == b"before"


@in_trio
async def test_nothing_is_logged_as_a_failure(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench = Bench()
    async with serving(bench.exports, path), await Client.go(path) as client:
        bench.below.failures["flush"] = VolumeTakenError("another gateway has taken the volume")
        await client.send(wire.request(3, 1))
        await client.closes()
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert [one.levelname for one in caplog.records] == ["INFO"]
    assert "another gateway has taken the volume" in caplog.text


@in_trio
async def test_busy_connections_of_a_volume_in_files_end_too(
    path: Path, tmp_path: Path, lane: str
) -> None:
    """The fast lane serves them without asking the device; whatever it does, it ends soon."""
    side = Side(tmp_path / "pool", compiled=True, structured=False, extended=False)
    bench = Bench(side.volume)
    ended = 0

    async def ask() -> None:
        nonlocal ended
        one = wire.write(1, 4 * PLACE_BYTES, b"h" * BLOCK_SIZE)
        one += wire.request(0, 2, 0, BLOCK_SIZE)
        answer = 16 + 16 + BLOCK_SIZE
        async with await Client.go(path) as client:
            with suppress(Closed, trio.BrokenResourceError):
                while True:
                    await client.send(one * 8)
                    await client.read(8 * answer)
        ended += 1

    async with serving(bench.exports, path), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
        await trio.sleep(0.2)
        assert ended == 0
        bench.taken.take()
        with trio.fail_after(10):
            while ended < 3:
                await trio.sleep(0.01)
        while bench.exports.open_holds:
            await trio.sleep(0.01)
    side.close()


# -- winding up: another gateway asks ------------------------------------------------------------


@in_trio
async def test_winding_up_answers_what_was_sent_and_ends_all(path: Path) -> None:
    bench = Bench()
    gate = bench.below.gate = Signal()
    bench.below.immediate = False
    async with (
        serving(bench.exports, path) as server,
        await Client.go(path) as busy,
        await Client.go(path) as idle,
        await Client.go(path, "other") as other,
    ):
        await busy.send(wire.write(1, 0, b"x" * BLOCK_SIZE) + wire.request(3, 2))
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.wind_up, bench.exports.key("disk"), 10)
            await trio.testing.wait_all_tasks_blocked(0.01)
            gate.fire()
        answers = {await busy.simple(), await busy.simple()}
        assert answers == {(1, 0), (2, 0)}
        assert await busy.closes() == b""
        assert await idle.closes() == b""
        assert await other.write(0, b"unharmed") == 0


@in_trio
async def test_winding_up_does_not_wait_for_long(path: Path) -> None:
    bench = Bench()
    gate = bench.below.gate = Signal()
    bench.below.immediate = False
    async with serving(bench.exports, path) as server, await Client.go(path) as busy:
        await busy.send(wire.write(1, 0, b"x" * BLOCK_SIZE))
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(10):
            await server.wind_up(bench.exports.key("disk"), 0.05)
            assert await busy.closes() == b""
        assert bench.exports.open_holds == 1
        gate.fire()
