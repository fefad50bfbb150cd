"""An import whose client has died is given up, by a clock that tests may turn."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from bockd.blockstorage.images import Images
from bockd.blockstorage.running import NoPublisher, StorageContext
from bockd.config import Settings
from bockd.daemon.images import ABANDONED_SECONDS, LOOK_SECONDS, PoolImages
from bockd.drivers.local.pool import LocalPool
from bockd.errors import DeviceError, NotFoundError
from bockd.model import MIB, VolumeId
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.nbd_server import NbdServer
from bockd.runtime.steps import Background, run_inline


class Server(NbdServer):
    """A server whose connections are what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.connected: set[int] = set()

    def connections(self, key: ExportKey, name: str | None = None) -> int:
        return int(key.id in self.connected)


def test_an_import_that_nobody_is_connected_to_is_given_up(tmp_path: Path) -> None:
    pool = LocalPool.open(tmp_path, Background().spawn)
    context = StorageContext(pool, NoPublisher())
    server = Server()
    images = PoolImages(context, server, Settings(data_dir=tmp_path))
    clock = trio.testing.MockClock()

    async def pass_by(seconds: float) -> None:
        for _ in range(int(seconds / LOOK_SECONDS)):
            clock.jump(LOOK_SECONDS)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await trio.to_thread.run_sync(lambda: None)  # whatever runs in a thread has begun
            await trio.testing.wait_all_tasks_blocked(0.01)

    async def begin(name: str, checksum: str) -> VolumeId:
        return (await images.begin_import(name, "raw", MIB, 7, checksum * 64)).id

    def under_way() -> set[VolumeId]:
        return {filling.volume for filling in Images(context).being_imported()}

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(images.give_up_abandoned)
            dead, alive = await begin("dead", "0"), await begin("alive", "1")
            server.connected.add(alive)
            await pass_by(ABANDONED_SECONDS - LOOK_SECONDS)
            assert under_way() == {dead, alive}  # a moment too early
            await pass_by(3 * LOOK_SECONDS)
            while under_way() != {alive}:
                await trio.testing.wait_all_tasks_blocked(0.01)
            server.connected.clear()
            await pass_by(LOOK_SECONDS)
            server.connected.add(alive)  # it came back: the time begins anew
            await pass_by(LOOK_SECONDS)
            server.connected.clear()
            await pass_by(ABANDONED_SECONDS - LOOK_SECONDS)
            assert under_way() == {alive}
            assert (await images.finish_import(alive)).name == "alive"
            with pytest.raises(NotFoundError, match="given up"):
                await images.finish_import(dead)
            nursery.cancel_scope.cancel()

    try:
        trio.run(scenario, clock=clock)
        run_inline(pool.close_all())
    finally:
        pool.release()


def test_an_index_that_cannot_be_read_is_logged_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = LocalPool.open(tmp_path, Background().spawn)
    images = PoolImages(StorageContext(pool, NoPublisher()), Server(), Settings(data_dir=tmp_path))
    looks: list[int] = []

    def fail(_: Images) -> None:
        looks.append(1)
        raise DeviceError("the copy of the index could not be written")

    monkeypatch.setattr(Images, "begun_here", fail)

    async def scenario() -> None:
        with trio.move_on_after(3.5 * LOOK_SECONDS):
            await images.give_up_abandoned()

    try:
        trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
        assert len(looks) == 3
        assert [one.levelname for one in caplog.records] == ["WARNING"]
    finally:
        pool.release()
