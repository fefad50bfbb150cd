"""Serving exports to a test: inside its trio run, or in a thread for tools that block."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import trio
import trio.testing

from bockd.control import VolumeStatistics
from bockd.errors import NotFoundError
from bockd.model import NodeKind
from bockd.nbd.protocol.options import ExportInfo
from bockd.nbd.server.exports import ExportKey, ExportTable, NoExports
from bockd.nbd.server.limits import ServerLimits
from bockd.nbd.server.nbd_server import NbdServer, serve_nbd
from bockd.nbd.server.tls import NO_TLS, FrontendTls
from bockd.pool.device import BlockDevice
from bockd.unixsocket import listen_unix

P = ParamSpec("P")

TEST_SECONDS = 240
"""A test that takes longer hangs."""


def in_trio(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            with trio.fail_after(TEST_SECONDS):
                await test(*args, **kwargs)

        trio.run(bounded)

    return run


def in_jumping_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test whose clock jumps to the next timeout as soon as everybody waits."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bare() -> None:
            await test(*args, **kwargs)

        trio.run(bare, clock=trio.testing.MockClock(autojump_threshold=0.05))

    return run


class ExportHandle:
    """One connection's hold on a fixed export."""

    def __init__(self, exports: FixedExports, number: int, name: str) -> None:
        self._exports = exports
        self.device = exports.devices[name]
        self.info = exports.info(name)
        kind = NodeKind.SNAPSHOT if self.device.read_only else NodeKind.VOLUME
        self.key = ExportKey(kind, number)

    async def close(self) -> None:
        self._exports.open_holds -= 1


class FixedExports:
    """An export table over given devices; ids count from 1 in their order."""

    def __init__(self, devices: dict[str, BlockDevice]) -> None:
        self.devices = devices
        self.same: dict[str, str] = {}
        """Names that lead to the export of another name."""
        self.open_holds = 0

    def info(self, name: str) -> ExportInfo:
        device = self.devices[name]
        return ExportInfo(name, f"test export {name}", device.size_bytes, device.read_only)

    def key(self, name: str) -> ExportKey:
        return ExportHandle(self, self._number(name), name).key

    def _number(self, name: str) -> int:
        if name not in self.devices:
            raise NotFoundError(f"no export {name!r}")
        return 1 + list(self.devices).index(self.same.get(name, name))

    async def list_exports(self) -> Sequence[ExportInfo]:
        return [self.info(name) for name in self.devices]

    async def describe(self, name: str) -> ExportInfo:
        self._number(name)
        return self.info(name)

    async def open(self, name: str) -> ExportHandle:
        hold = ExportHandle(self, self._number(name), name)
        self.open_holds += 1
        return hold


@asynccontextmanager
async def serving(
    table: ExportTable, path: Path, limits: ServerLimits | None = None
) -> AsyncIterator[NbdServer]:
    """Serve `table` at a Unix socket within this trio run."""
    server = NbdServer(limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_nbd, server, listen_unix(path), table, None, NoExports())
        yield server
        nursery.cancel_scope.cancel()


@contextmanager
def served(
    table: ExportTable, path: Path, limits: ServerLimits | None = None, tls: FrontendTls = NO_TLS
) -> Iterator[str]:
    """Serve `table` in a thread; yields the socket's path for NBD URIs. The thread ends with the
    block, and what it raised is raised here."""
    listener = listen_unix(path)
    started = threading.Event()
    stop: list[Callable[[], None]] = []
    failures: list[BaseException] = []

    async def serve() -> None:
        server = NbdServer(limits)
        async with trio.open_nursery() as nursery:
            token = trio.lowlevel.current_trio_token()
            stop.append(lambda: token.run_sync_soon(nursery.cancel_scope.cancel))
            started.set()
            await server.serve(listener, table, tls)

    def run() -> None:
        try:
            trio.run(serve)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)
            started.set()

    thread = threading.Thread(target=run, name="nbd server")
    thread.start()
    started.wait()
    try:
        yield str(path)
    finally:
        if stop:
            stop[0]()
        thread.join()
        if failures:
            raise failures[0]


def counted(server: NbdServer) -> list[VolumeStatistics]:
    """The counters of each export that was used."""
    return [
        state.statistics.report(key, state.name, len(state.members))
        for key, state in server.exports()
    ]
