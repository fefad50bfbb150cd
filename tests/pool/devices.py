"""The kinds of devices that the volume contract's suite runs over, each a line of `DEVICES`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.model import BLOCK_SIZE, MIB, NodeKind
from bockd.pool.device import BlockDevice
from bockd.runtime.steps import run_inline
from tests.drivers.cache.opened import CountingDevice, Opened
from tests.pool.drivers import DRIVERS


@dataclass
class OpenDevice:
    """A blank volume, open for writing."""

    device: BlockDevice
    hole_bytes: int
    """What its extents are rounded to."""
    grow: Callable[[int], None]
    """Make it larger, to that many bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Read a range."""
        into = bytearray(b"?" * length)
        run_inline(self.device.read(offset, memoryview(into)))
        return bytes(into)

    def write(self, offset: int, data: bytes) -> None:
        """Write a range."""
        run_inline(self.device.write(offset, memoryview(data)))


def _of_pool(
    name: str,
) -> Callable[[pytest.FixtureRequest, int], AbstractContextManager[OpenDevice]]:
    @contextmanager
    def opened(request: pytest.FixtureRequest, size_bytes: int) -> Iterator[OpenDevice]:
        tmp_path: Path = request.getfixturevalue("tmp_path")
        driver = DRIVERS[name](request, tmp_path / "pool")
        volume = driver.volume("one", size_bytes).id
        device = driver.run(driver.pool.use(NodeKind.VOLUME, volume))

        def grow(size: int) -> None:
            driver.run(driver.pool.extend_volume(volume, size))

        yield OpenDevice(device, driver.pool.features.hole_bytes, grow)
        driver.pool.leave(NodeKind.VOLUME, volume)
        driver.close()

    return opened


def _in_ceph(
    by_events: bool,
) -> Callable[[pytest.FixtureRequest, int], AbstractContextManager[OpenDevice]]:
    @contextmanager
    def opened(request: pytest.FixtureRequest, size_bytes: int) -> Iterator[OpenDevice]:
        settings: RbdSettings = request.getfixturevalue("rbd_namespace")
        # Only where Ceph's modules are: without them the fixture has skipped this.
        from bockd.drivers.rbd.extents import OBJECT_BYTES
        from tests.drivers.rbd.gateway import Gateway

        with Gateway(settings) as gateway:
            gateway.by_events = by_events
            name = gateway.create(size_bytes)
            device = gateway.open(name, size_bytes)
            yield OpenDevice(device, OBJECT_BYTES, lambda size: gateway.grow(name, device, size))

    return opened


@contextmanager
def _cached(request: pytest.FixtureRequest, size_bytes: int) -> Iterator[OpenDevice]:
    """Behind a cache that holds next to nothing, so that leaves come and go."""
    below = CountingDevice(size_bytes)
    opened = Opened(request.getfixturevalue("tmp_path") / "cache", 3 * MIB)
    device = opened.volume(below, 1)

    def grow(size: int) -> None:
        below.grow(size)
        device.follow_size()
        opened.background.run()

    class Filled(OpenDevice):
        """One whose cache is filled between any two requests."""

        def read(self, offset: int, length: int) -> bytes:
            return opened.read(device, offset, length)

        def write(self, offset: int, data: bytes) -> None:
            opened.write(device, offset, data)

    yield Filled(device, BLOCK_SIZE, grow)
    opened.background.run()
    opened.release(device)


DEVICES: dict[str, Callable[[pytest.FixtureRequest, int], AbstractContextManager[OpenDevice]]] = {
    "cached": _cached,
    "local": _of_pool("local"),
    "memory": _of_pool("memory"),
    "rbd": _in_ceph(by_events=False),
    "rbd by events": _in_ceph(by_events=True),
}
