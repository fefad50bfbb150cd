"""Turns that several connections take together, over a server: clients read what they wrote,
and who takes no part."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from bockd.model import BLOCK_SIZE
from bockd.nbd.server import connection, fastlane
from bockd.nbd.server.connection import Connection
from bockd.nbd.server.fastlane import LaneArguments
from bockd.nbd.server.flushhabit import FlushHabit
from bockd.nbd.server.limits import ServerLimits
from bockd.nbd.server.pace import Polling
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client, Closed
from tests.nbd.server.serving import FixedExports, counted, in_trio, serving
from tests.nbd.server.sides import PLACE_BYTES, WRITTEN, Side


class Counting:
    """The compiled module, with its turns counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lanes = 0
        """Of all turns, with more than one lane each."""
        self.threads = set[int]()
        """How many they may have had."""
        compiled = cast(Any, fastlane.compiled)

        def serve_together(lanes: list[Any], *rest: int) -> object:
            self.lanes += len(lanes) if len(lanes) > 1 else 0
            self.threads.add(rest[-1])
            return compiled.serve_together(lanes, *rest)

        names = {name: getattr(compiled, name) for name in dir(compiled) if name[0] != "_"}
        module = SimpleNamespace(**{**names, "serve_together": serve_together})
        monkeypatch.setattr(fastlane, "compiled", module)
        monkeypatch.setattr(connection, "_WORTH_JOINING", 0)  # the clients are slow


async def ask_much_and_listen_late(path: Path, name: str) -> None:
    """Read more than the sockets hold, so that replies are sent in parts."""
    async with await Client.go(path, name) as client:
        await client.send(b"".join(wire.request(0, n, n * 64, BLOCK_SIZE) for n in range(1000)))
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        for _ in range(1000):
            assert (await client.simple())[1] == 0
            assert await client.read(BLOCK_SIZE) == b"f" * BLOCK_SIZE


async def write_and_read(path: Path, name: str, places: range, seed: int, rounds: int) -> None:
    """Write to blocks that nobody else has, several at once, and read them."""
    chance = random.Random(seed)
    blocks = [place * PLACE_BYTES + block * BLOCK_SIZE for place in places for block in range(16)]
    held: dict[int, bytes] = {}
    async with await Client.go(path, name) as client:
        for _ in range(rounds):
            chosen = chance.sample(blocks, 8)
            stream = b""
            for cookie, offset in enumerate(chosen):
                held[offset] = bytes([chance.randint(1, 255)]) * BLOCK_SIZE
                stream += wire.write(cookie, offset, held[offset])
            if chance.random() < 0.1:
                stream += wire.request(3, 8)
            await client.send(stream)
            for _ in range(len(chosen) + (len(stream) % BLOCK_SIZE == 28 * 9)):
                assert (await client.simple())[1] == 0
            await client.send(
                b"".join(wire.request(0, offset, offset, BLOCK_SIZE) for offset in chosen)
            )
            for _ in chosen:
                offset, error = await client.simple()
                assert error == 0
                assert await client.read(BLOCK_SIZE) == held[offset]


@pytest.fixture
def volumes() -> Iterator[dict[str, Side]]:
    """Open volumes, by the names of their exports."""
    with tempfile.TemporaryDirectory() as root, ExitStack() as stack:
        sides = {}
        for name in ("a", "b", "c"):
            side = Side(Path(root, name), compiled=True, structured=False, extended=False)
            stack.callback(side.close)
            sides[name] = side
        yield sides


@in_trio
async def test_clients_of_several_volumes_read_what_they_wrote(
    path: Path, volumes: dict[str, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of each, at once, some of whose requests are for the owner thread, and some of whose
    replies are sent in parts; one that hangs up among them disturbs nobody."""
    counting = Counting(monkeypatch)
    table = FixedExports({name: side.volume for name, side in volumes.items()})
    async with serving(table, path) as server, trio.open_nursery() as nursery:
        for seed, name in enumerate(volumes):
            for places in (range(1, 6), range(8, WRITTEN)):
                nursery.start_soon(write_and_read, path, name, places, seed, 150)
            nursery.start_soon(ask_much_and_listen_late, path, name)
        async with await Client.go(path, "a") as client:
            await client.send(wire.request(0, 1, 0, BLOCK_SIZE) * 1000)
            await client.read(BLOCK_SIZE)
    assert counting.lanes > 100
    assert all(one.errors == 0 for one in counted(server))
    for side in volumes.values():
        side._background.run()


@in_trio
async def test_dropped_clients_leave_the_others_in_peace(
    path: Path, volumes: dict[str, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever of them led."""
    counting = Counting(monkeypatch)
    table = FixedExports({name: side.volume for name, side in volumes.items()})
    async with serving(table, path) as server, trio.open_nursery() as nursery:

        async def busy(name: str) -> None:
            with suppress(Closed, trio.BrokenResourceError):
                async with await Client.go(path, name) as client:
                    while True:
                        await client.send(wire.request(0, 1, 0, BLOCK_SIZE) * 8)
                        await client.read(8 * (16 + BLOCK_SIZE))

        async def disconnect() -> None:
            for _ in range(20):
                before = counting.lanes
                while counting.lanes < before + 20:
                    await trio.lowlevel.checkpoint()
                await server.disconnect(table.key("b"))
                nursery.start_soon(busy, "b")

        for name in ("a", "b", "b", "c"):
            nursery.start_soon(busy, name)
        async with trio.open_nursery() as both:
            both.start_soon(disconnect)
            both.start_soon(write_and_read, path, "c", range(8, WRITTEN), 1, 100)
        await write_and_read(path, "a", range(8, WRITTEN), 1, 20)
        nursery.cancel_scope.cancel()


@in_trio
async def test_without_polling_there_are_no_turns_together(
    path: Path, volumes: dict[str, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    table = FixedExports({name: side.volume for name, side in volumes.items()})
    async with serving(table, path, ServerLimits(poll_tries=0)), trio.open_nursery() as nursery:
        for name in volumes:
            nursery.start_soon(write_and_read, path, name, range(8, WRITTEN), 1, 20)
    assert counting.lanes == 0


@in_trio
async def test_turns_have_no_more_threads_than_the_server_may(
    path: Path, volumes: dict[str, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    table = FixedExports({name: side.volume for name, side in volumes.items()})
    async with serving(table, path, ServerLimits(lane_threads=3)), trio.open_nursery() as nursery:
        for name in volumes:
            nursery.start_soon(write_and_read, path, name, range(8, WRITTEN), 1, 20)
    assert counting.threads == {3}


@in_trio
async def test_one_that_polls_no_more_takes_no_part(
    path: Path, volumes: dict[str, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns would poll for it."""
    counting = Counting(monkeypatch)
    monkeypatch.setattr(Polling, "tries", 0)
    table = FixedExports({name: side.volume for name, side in volumes.items()})
    async with serving(table, path), trio.open_nursery() as nursery:
        for name in volumes:
            nursery.start_soon(write_and_read, path, name, range(8, WRITTEN), 1, 20)
    assert counting.lanes == 0


@in_trio
async def test_the_loop_has_turned_before_a_turn_together(
    path: Path, volumes: dict[str, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that is noted, or it would turn once more behind it."""
    noted = list[bool]()

    def lane(self: Connection) -> LaneArguments | None:
        before = self._polling._turn_ns
        found = its_lane(self)
        noted.append(self._polling._turn_ns > before)
        return found

    Counting(monkeypatch)
    its_lane = Connection.lane
    monkeypatch.setattr(Connection, "lane", lane)
    table = FixedExports({name: side.volume for name, side in volumes.items()})
    async with serving(table, path), trio.open_nursery() as nursery:
        for name in volumes:
            nursery.start_soon(write_and_read, path, name, range(8, WRITTEN), 1, 20)
    assert noted
    assert all(noted)


@in_trio
async def test_one_that_is_about_to_flush_goes_on_by_itself(
    path: Path, volumes: dict[str, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the disk begins when its write is answered (`FlushHabit`)."""
    counting = Counting(monkeypatch)
    monkeypatch.setattr(FlushHabit, "expects_flush", lambda *_: True)
    table = FixedExports({name: side.volume for name, side in volumes.items()})
    async with serving(table, path), trio.open_nursery() as nursery:
        for name in volumes:
            nursery.start_soon(write_and_read, path, name, range(8, WRITTEN), 1, 20)
    assert counting.lanes == 0
