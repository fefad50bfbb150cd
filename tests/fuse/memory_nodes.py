"""The file view over devices in memory, mounted for real, served by a thread of the test.

The test must not start programs while it has files of the view open, nor touch memory that is
mapped from them: that holds the interpreter's lock while the kernel waits for this process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from bockd.drivers.memory.device import MemoryDevice
from bockd.errors import NotFoundError
from bockd.fuse.nodes import Node
from bockd.fuse.serving import serve_view
from bockd.fuse.view import View
from bockd.model import NodeKind, VolumeId
from bockd.nbd.server.exports import OpenExport
from bockd.nbd.server.statistics import ExportStatistics
from bockd.runtime.steprunner import StepRunner
from bockd.throttle.gates import Gate, Gates
from tests.nbd.server.serving import FixedExports

from .watchdog import watched


class MemoryNodes:
    """Implements NodeTable over given devices by name; ids count from 1 in their order."""

    def __init__(self, devices: dict[str, MemoryDevice]) -> None:
        self.devices = devices
        self.exports = FixedExports(dict(devices))
        self.counters = ExportStatistics()
        self.gates = Gates()
        self.call: Callable[[Callable[[], None]], None]
        """Runs something on the server's thread."""
        self.listings = 0
        """How often all of a kind were looked up."""

    def _nodes(self) -> list[Node]:
        return [
            Node(
                NodeKind.SNAPSHOT if device.read_only else NodeKind.VOLUME,
                1 + number,
                name,
                device.size_bytes,
                created_at=1.0,
                modified_at=1.0,
                allocated_bytes=4096,
            )
            for number, (name, device) in enumerate(self.devices.items())
        ]

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Returns when something that the server's thread looks at holds."""
        held = threading.Event()

        def look() -> None:
            held.set() if holds() else self.call(look)

        self.call(look)
        assert held.wait(60)

    async def list_nodes(self, kind: NodeKind) -> list[Node]:
        self.listings += 1
        return await self._of(kind)

    async def _of(self, kind: NodeKind) -> list[Node]:
        return [node for node in self._nodes() if node.kind is kind]

    async def find(self, kind: NodeKind, ref: str) -> Node:
        for node in await self._of(kind):
            if ref in (node.name, str(node.id)):
                return node
        raise NotFoundError(ref)

    async def show(self, kind: NodeKind, node: int) -> Node:
        return await self.find(kind, str(node))

    async def open(self, kind: NodeKind, node: int) -> OpenExport:
        return await self.exports.open((await self.show(kind, node)).name)

    def gate(self, export: OpenExport) -> Gate:
        return self.gates.gate(VolumeId(export.key.id))

    def statistics(self, export: OpenExport) -> ExportStatistics:
        return self.counters

    async def space(self) -> os.statvfs_result:
        return os.statvfs("/")


@contextmanager
def mounted(nodes: MemoryNodes, mount: Path) -> Iterator[None]:
    """The view of `nodes` at `mount`, for the duration."""
    with watched(mount), _mounted(nodes, mount):
        yield


@contextmanager
def _mounted(nodes: MemoryNodes, mount: Path) -> Iterator[None]:
    ready = threading.Event()
    stop: list[Callable[[], None]] = []
    failures: list[BaseException] = []

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            runner = StepRunner()
            view = View(nodes, runner)
            token = trio.lowlevel.current_trio_token()
            nodes.call = token.run_sync_soon
            await nursery.start(serve_view, view, mount, mount.with_name("no pool"))
            stop.append(lambda: token.run_sync_soon(nursery.cancel_scope.cancel))
            ready.set()

    def run() -> None:
        try:
            trio.run(serve)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="file view")
    thread.start()
    try:
        assert ready.wait(60)
        assert not failures, failures
        yield
    finally:
        for end in stop:
            end()
        thread.join(60)
    assert not thread.is_alive()
    assert not failures, failures
