"""The daemon: everything wired together in one nursery, until a signal ends it.

Order matters at the end: the doors close first, then the engine finishes what was begun, then
volumes are closed (flushed, their journals applied), and the pool last.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import sys
from contextlib import nullcontext

import trio
from fastapi import FastAPI

from api.app import create_app
from api.openstack.app import create_public_app
from api.serve import serve_api, serve_public
from bockd.blockstorage.accounts import CREDENTIALS_FILE, establish
from bockd.blockstorage.identity import LocalIdentity
from bockd.blockstorage.interrupted import resolve_interrupted
from bockd.blockstorage.running import Surroundings
from bockd.blockstorage.service import PoolBlockStorage
from bockd.config import Settings
from bockd.dataplane.attached import AttachedVolumes
from bockd.dataplane.control import PoolControl
from bockd.dataplane.exports import PoolExports
from bockd.engine.pool import Pool
from bockd.engine.reclaim import Reclaimer
from bockd.errors import BockdError, from_os_error
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.server.drive import Driver
from bockd.server.exports import ExportKey, NoExports
from bockd.server.listener import address_of, listen_tcp
from bockd.server.nbd_server import NbdServer, serve_nbd
from bockd.steps import Steps
from bockd.unixsocket import listening_unix

log = logging.getLogger(__name__)

IDLE_SECONDS = 10.0
"""A volume that nobody uses is closed after this: tools like qemu-img connect several times in a
row, and each opening costs two index commits."""

HASHING_THREADS = 2
"""For passwords, apart from the device's threads: guessing at the door must not delay a disk."""


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises BockdError when it cannot begin."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    _raise_descriptor_limit()
    trio.run(_Daemon(settings).main)


def _raise_descriptor_limit() -> None:
    """A volume needs a descriptor for each layer it reads, a client one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Daemon:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server = NbdServer()
        self._driver = self._server.driver
        self._background: trio.Nursery
        self._pool: Pool
        self._around: Surroundings
        self._reclaimer: Reclaimer

    async def main(self) -> None:
        data_dir = self._settings.data_dir
        try:
            os.makedirs(data_dir, mode=0o700, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, f"creating {data_dir}") from error
        self._pool = await trio.to_thread.run_sync(lambda: Pool.open(data_dir, self._spawn))
        self._around = Surroundings(self._pool, AttachedVolumes(self._server))
        try:
            async with trio.open_nursery() as self._background:
                await self._serve()
        finally:
            self._pool.release()

    def _spawn(self, steps: Steps[None]) -> None:
        """Background work of the engine; it is finished before the pool is given up."""
        self._background.start_soon(self._finish, steps)

    async def _finish(self, steps: Steps[None]) -> None:
        """One background operation's trouble is logged, and is nobody else's."""
        try:
            await self._driver.run(steps)
        except Exception:
            log.exception("background work failed")

    async def _serve(self) -> None:
        self._reclaimer = Reclaimer(self._pool)
        self._pool.on_garbage = self._reclaim
        try:
            await self._driver.run(self._pool.recover_volumes())
            await self._driver.run(resolve_interrupted(self._around))
            await trio.to_thread.run_sync(
                lambda: establish(self._pool.store.index, self._settings.data_dir)
            )
            self._reclaim()
            await self._open_doors()
        finally:
            self._reclaimer.stop()
            with trio.CancelScope(shield=True):
                await self._driver.run(self._pool.close_all())

    def _reclaim(self) -> None:
        self._spawn(self._reclaimer.run())

    async def _open_doors(self) -> None:
        settings = self._settings
        with (
            listening_unix(settings.nbd_socket) as unix,
            listen_tcp(settings.nbd_listen) if settings.nbd_listen else nullcontext() as tcp,
            listen_tcp(settings.api_listen) if settings.api_listen else nullcontext() as api,
        ):
            await self._serve_doors(unix, tcp, api)

    async def _serve_doors(
        self, unix: socket.socket, tcp: socket.socket | None, api: socket.socket | None
    ) -> None:
        settings = self._settings
        nbd_listen = str(address_of(tcp)) if tcp else None
        control = PoolControl(self._pool, self._server, settings, nbd_listen)
        async with trio.open_nursery() as doors:

            def on_idle(key: ExportKey) -> None:
                doors.start_soon(self._close_when_idle, key)

            exports = PoolExports(self._pool, self._driver, on_idle)
            doors.start_soon(serve_nbd, self._server, unix, exports, tcp, NoExports())
            await doors.start(serve_api, create_app(control), settings.api_socket)
            if api is not None:
                await doors.start(serve_public, self._public_app(), api)
            # What is alive now stays; the collector need not look at it again.
            gc.collect()
            gc.freeze()
            # Listening for signals first: who is told that it is ready may stop it.
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                self._announce(nbd_listen, str(address_of(api)) if api else None)
                await anext(aiter(signals))
            # Later ones are let through, to end a slow stop.
            log.info("stopping")
            doors.cancel_scope.cancel()

    def _public_app(self) -> FastAPI:
        pool = self._pool
        identity = LocalIdentity(pool.store.index, Driver(HASHING_THREADS), pool.clock)
        return create_public_app(PoolBlockStorage(self._around, self._driver), identity)

    async def _close_when_idle(self, key: ExportKey) -> None:
        await trio.sleep(IDLE_SECONDS)
        try:
            if key.kind is NodeKind.VOLUME:
                await self._driver.run(self._pool.close_idle_volume(VolumeId(key.id)))
            else:
                await self._driver.run(self._pool.close_idle_snapshot(SnapshotId(key.id)))
        except BockdError as error:
            # Nothing is lost: what the index did not take is still in the journal.
            log.error("closing %s %s: %s", key.kind, key.id, error)  # noqa: TRY400

    def _announce(self, nbd_listen: str | None, api_listen: str | None) -> None:
        settings = self._settings
        lines = [
            f"bockd is ready. Data: {settings.data_dir}",
            f"  NBD, Unix socket: {settings.nbd_socket}",
            f"  NBD, TCP:         {nbd_listen or 'off'}  (attached volumes only)",
            f"  control API:      {settings.api_socket}",
            f"  block storage API: {f'http://{api_listen}/' if api_listen else 'off'}"
            f"  (credentials: {settings.data_dir / CREDENTIALS_FILE})",
            "Next: bock volume create disk1 --size 10GiB",
        ]
        print("\n".join(lines), flush=True)
