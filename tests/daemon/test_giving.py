"""What the daemon does when volumes move: who opens a volume firmly, whose connections end when
another gateway asks for it, and what detaching recalls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from bockd.blockstorage.attachments import Attachments
from bockd.blockstorage.contract import Attachment, NewVolume, TenantId
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.volumes import Volumes
from bockd.daemon.attached import AttachedExports, AttachedVolumes
from bockd.daemon.exports import PoolExports
from bockd.drivers.memory.pool import MemoryPool
from bockd.identity.accounts import Accounts
from bockd.model import NodeKind, VolumeId
from bockd.nbd.server.exports import NoExports
from bockd.nbd.server.nbd_server import NbdServer, serve_nbd
from bockd.pool.device import BlockDevice
from bockd.runtime.asyncbridge import AsyncBridge
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Signal, Steps
from bockd.unixsocket import listen_unix
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client
from tests.nbd.server.serving import in_trio


class Pool(MemoryPool):
    """Notes how volumes are opened."""

    def __init__(self) -> None:
        super().__init__()
        self.firm: list[bool] = []

    def use(self, kind: NodeKind, node: int, *, firm: bool = False) -> Steps[BlockDevice]:
        self.firm.append(firm)
        return super().use(kind, node, firm=firm)


class Bench:
    """A daemon's part around a pool with one attached volume."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.pool = Pool()
        self.runner = StepRunner()
        self.server = NbdServer(runner=self.runner)
        self.attached = AttachedVolumes(
            self.pool, self.server, AsyncBridge(lambda: nursery), lambda _: None
        )
        self.pool.before_giving(self.attached.end_connections)
        self.context = StorageContext(self.pool, self.attached)
        self.tenant = TenantId(Accounts(self.pool.index).create_tenant("acme").id)
        self.attachment: Attachment

    async def attach(self) -> VolumeId:
        volume = await self.runner.run(Volumes(self.context).create(self.tenant, NewVolume(1)))
        self.attachment = await self.runner.run(
            Attachments(self.context).attach(self.tenant, "web1", volume.id, None)
        )
        return volume.id

    async def detach(self, *, force: bool) -> None:
        await self.runner.run(
            Attachments(self.context).detach(
                self.tenant, "web1", self.attachment.volume_id, force=force
            )
        )

    async def end_connections(self) -> None:
        """As the pool does before it gives the volume to another gateway."""
        assert self.pool.end_connections is not None
        await self.runner.run(self.pool.end_connections(self.attachment.volume_id))


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery)
        table = AttachedExports(bench.pool, bench.runner, lambda _: None)
        everything = PoolExports(bench.pool, bench.runner, lambda _: None, table)
        nursery.start_soon(
            serve_nbd, bench.server, listen_unix(path), everything, None, NoExports()
        )
        yield bench
        nursery.cancel_scope.cancel()


@in_trio
async def test_who_opens_it_firmly(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    async with serving(path) as bench:
        volume = await bench.attach()
        # Attaching only looks whether the volume can be had: it takes it from nobody's clients.
        assert bench.pool.firm == [False]
        async with await Client.go(path, bench.attachment.export_name):
            assert bench.pool.firm == [False, True]
        async with await Client.go(path, str(volume)):
            assert bench.pool.firm == [False, True, False]


@in_trio
async def test_all_connections_end_before_a_volume_is_given_away(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    async with serving(path) as bench:
        volume = await bench.attach()
        other = await bench.runner.run(Volumes(bench.context).create(bench.tenant, NewVolume(1)))
        device = bench.pool._devices[NodeKind.VOLUME, volume]
        gate = device.gate = Signal()
        device.immediate = False
        async with (
            await Client.go(path, bench.attachment.export_name) as server,
            await Client.go(path, str(volume)) as operator,
            await Client.go(path, str(other.id)) as unharmed,
        ):
            await server.send(wire.write(1, 0, b"x" * 4096))
            await trio.testing.wait_all_tasks_blocked(0.01)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.end_connections)
                await trio.testing.wait_all_tasks_blocked(0.01)
                gate.fire()
            assert await server.simple() == (1, 0)
            assert await server.closes() == b""
            assert await operator.closes() == b""
            assert await unharmed.write(0, b"x") == 0


@in_trio
async def test_who_hangs_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    async with serving(path) as bench:
        volume = await bench.attach()
        device = bench.pool._devices[NodeKind.VOLUME, volume]
        gate = device.gate = Signal()
        device.immediate = False
        async with await Client.go(path, bench.attachment.export_name) as server:
            await server.send(wire.write(1, 0, b"x" * 4096))
            await trio.testing.wait_all_tasks_blocked(0.01)
            with trio.fail_after(30):
                await bench.end_connections()
                assert await server.closes() == b""
            gate.fire()


@pytest.mark.parametrize("force", [False, True])
@in_trio
async def test_detaching_recalls_the_volume(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "nbd.sock"
    async with serving(path) as bench:
        volume = await bench.attach()
        async with await Client.go(path, bench.attachment.export_name) as server:
            assert await server.write(0, b"x") == 0
            await bench.detach(force=force)
            assert await server.closes() == b""
        assert bench.pool.recalled == [(volume, force)]
        assert "flush" in bench.pool._devices[NodeKind.VOLUME, volume].calls
