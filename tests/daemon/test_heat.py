"""A volume's requests are looked at while somebody asks for its heat map, and no longer."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from bockd.daemon.heat import MAX_WATCHED, WATCH_SECONDS, HeatWatch
from bockd.drivers.memory.pool import MemoryPool
from bockd.errors import NotFoundError
from bockd.model import MIB, NodeKind, VolumeId
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.nbd_server import NbdServer
from bockd.runtime.steps import run_inline


class Watching:
    """A pool, a server that has its volumes open, and who watches."""

    def __init__(self, volumes: int) -> None:
        self.pool, self.server = MemoryPool(), NbdServer()
        self.volumes = [
            run_inline(self.pool.create_volume(f"v{number}", MIB)).id for number in range(volumes)
        ]
        self.watch = HeatWatch(self.pool, self.server, trio.current_time)

    def opened(self, volume: VolumeId) -> None:
        """It has counters from now on."""
        self.server.statistics_of(ExportKey(NodeKind.VOLUME, volume), "v")

    def looked_at(self, volume: VolumeId) -> bool:
        """Whether its requests are."""
        key = ExportKey(NodeKind.VOLUME, volume)
        return self.server.statistics_of(key, "v").heat is not None


def test_it_ends_when_nobody_asks() -> None:
    async def run() -> None:
        watching = Watching(2)
        one, other = watching.volumes
        # One that nobody has open gets no counters by being watched.
        assert (await watching.watch.heat(one)).reads == (0,)
        assert watching.server.exports() == []
        watching.opened(one)
        watching.opened(other)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watching.watch.run)
            for _ in range(5):
                await watching.watch.heat(one)
                await trio.sleep(WATCH_SECONDS - 1)
            assert (watching.looked_at(one), watching.looked_at(other)) == (True, False)
            await trio.sleep(2 * WATCH_SECONDS)
            assert not watching.looked_at(one)
            # And again.
            await watching.watch.heat(one)
            assert watching.looked_at(one)
            await trio.sleep(2 * WATCH_SECONDS)
            assert not watching.looked_at(one)
            nursery.cancel_scope.cancel()

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_not_too_many_are_watched() -> None:
    async def run() -> None:
        watching = Watching(MAX_WATCHED + 1)
        for volume in watching.volumes:
            watching.opened(volume)
            await watching.watch.heat(volume)
        looked_at = [watching.looked_at(volume) for volume in watching.volumes]
        assert looked_at == [False] + [True] * MAX_WATCHED
        with pytest.raises(NotFoundError):
            await watching.watch.heat(VolumeId(10_000))

    trio.run(run)


def test_a_volume_that_has_grown() -> None:
    async def run() -> None:
        watching = Watching(1)
        (volume,) = watching.volumes
        assert (await watching.watch.heat(volume)).size_bytes == MIB
        run_inline(watching.pool.extend_volume(volume, 3 * MIB))
        assert len((await watching.watch.heat(volume)).reads) == 3

    trio.run(run)
