"""Volumes of a pool in Ceph behind a cache on the local disk, with several gateways."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.drivers.cache.device import CachedDevice
from bockd.drivers.cache.directory import CacheDirectory
from bockd.errors import VolumeTakenError
from bockd.model import BLOCK_SIZE, MIB, NodeKind, VolumeId
from bockd.pool.device import SharedDevice
from tests.drivers.cache.opened import is_hit
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.pooldriver import RbdDriver

need_modules()

from bockd.drivers.rbd.bus import Bus  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.device import RbdDevice  # noqa: E402
from bockd.drivers.rbd.lease import LEASE_SECONDS  # noqa: E402


class CachedDriver(RbdDriver):
    """A gateway with a cache."""

    def __init__(self, settings: RbdSettings, directory: Path) -> None:
        super().__init__(settings, directory)
        self.cache = directory / "cache"
        self._open_cache()

    def _open_cache(self) -> None:
        fronts = self.rbd.open_nodes.fronts
        fronts.cache = CacheDirectory.open(self.cache, 64 * MIB, self._background.spawn)

    def use(self, volume: VolumeId) -> CachedDevice:
        self.rbd.index.refresh()
        device = self.run(self.pool.use(NodeKind.VOLUME, volume))
        assert isinstance(device, CachedDevice)
        return device

    def leave(self, volume: VolumeId) -> None:
        """Leave a volume, and close it."""
        self.pool.leave(NodeKind.VOLUME, volume)
        self.run(self.pool.close_idle(NodeKind.VOLUME, volume))

    def read(self, device: CachedDevice, block: int = 0) -> bytes:
        into = bytearray(BLOCK_SIZE)
        self.run(device.read(block * BLOCK_SIZE, memoryview(into)))
        return bytes(into)

    def put(self, device: CachedDevice, data: bytes, block: int = 0) -> None:
        self.run(device.write(block * BLOCK_SIZE, memoryview(data * (BLOCK_SIZE // len(data)))))

    def close(self) -> None:
        cache = self.rbd.open_nodes.fronts.cache
        super().close()
        assert cache is not None
        cache.release()


@pytest.fixture
def here(rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[CachedDriver]:
    one = CachedDriver(replace(rbd_namespace, gateway="here"), tmp_path / "here")
    yield one
    one.close()


@pytest.fixture
def there(rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[CachedDriver]:
    one = CachedDriver(replace(rbd_namespace, gateway="there"), tmp_path / "there")
    yield one
    one.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offsets of all that is read in the cluster."""
    found: list[int] = []
    read = RbdDevice.read

    async def noted(self: RbdDevice, offset: int, into: memoryview) -> None:
        found.append(offset)
        await read(self, offset, into)

    monkeypatch.setattr(RbdDevice, "read", noted)
    return found


def test_what_was_read_or_written_is_a_hit(here: CachedDriver, reads: list[int]) -> None:
    volume = here.volume("one").id
    device = here.use(volume)
    here.put(device, b"data")
    assert here.read(device, 3) == bytes(BLOCK_SIZE)
    assert reads == [3 * BLOCK_SIZE]
    for _ in range(2):
        assert here.read(device) == b"data" * (BLOCK_SIZE // 4)
        assert here.read(device, 3) == bytes(BLOCK_SIZE)
    assert reads == [3 * BLOCK_SIZE]
    assert is_hit(device, 0)
    here.leave(volume)


def test_a_volume_that_comes_back_is_still_cached(here: CachedDriver, reads: list[int]) -> None:
    volume = here.volume("one").id
    here.put(here.use(volume), b"data")
    here.leave(volume)
    assert len(list(here.cache.glob("*.map"))) == 1
    device = here.use(volume)
    here.read(device, 7)  # who has it is not known yet
    reads.clear()
    assert here.read(device) == b"data" * (BLOCK_SIZE // 4)
    assert reads == []
    here.leave(volume)


def test_a_volume_that_another_gateway_had_is_not(
    here: CachedDriver, there: CachedDriver, reads: list[int]
) -> None:
    volume = here.volume("one").id
    here.put(here.use(volume), b"here")
    here.leave(volume)
    there.put(there.use(volume), b"else")
    there.leave(volume)
    device = here.use(volume)
    here.read(device, 7)
    reads.clear()
    assert here.read(device) == b"else" * (BLOCK_SIZE // 4)
    assert reads == [0]
    here.leave(volume)


def test_a_volume_that_moves_in_order_is_kept_and_serves_nothing(
    here: CachedDriver, there: CachedDriver
) -> None:
    """Its clients have not gone yet."""
    volume = here.volume("one").id
    device = here.use(volume)
    here.put(device, b"here")
    assert here.read(device) == b"here" * (BLOCK_SIZE // 4)
    there.rbd.index.refresh()
    there.run(there.pool.use(NodeKind.VOLUME, volume, firm=True))
    assert isinstance(device, SharedDevice)
    assert device.lost.fired, "the server is to end its connections"
    assert not is_hit(device)
    with pytest.raises(VolumeTakenError):
        here.read(device)
    there.leave(volume)
    here.pool.leave(NodeKind.VOLUME, volume)


def test_a_gateway_that_is_shut_out_unasked_serves_nothing_stale(
    here: CachedDriver, there: CachedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hears of nothing, and sends nothing to the cluster."""
    volume = here.volume("one").id
    device = here.use(volume)
    here.put(device, b"here")
    here.read(device)
    assert is_hit(device)
    monkeypatch.setattr(Bus, "ask", lambda *_arguments: None)
    began = time.monotonic()
    there.put(there.use(volume), b"else")
    while is_hit(device) and time.monotonic() - began < 20:
        here.run(_nothing())  # the lease is renewed, or not
        time.sleep(0.01)
    assert not is_hit(device)
    # From the last question on that was answered before the volume was taken.
    assert time.monotonic() - began < LEASE_SECONDS + 10
    with pytest.raises(VolumeTakenError):
        here.read(device)
    there.leave(volume)
    here.pool.leave(NodeKind.VOLUME, volume)


async def _nothing() -> None:
    """Let the background run."""


def test_a_snapshot_is_kept_whoever_has_its_volume(
    here: CachedDriver, there: CachedDriver, reads: list[int]
) -> None:
    volume = here.volume("one").id
    here.put(here.use(volume), b"then")
    here.leave(volume)
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    assert here.of_snapshot(snapshot) == b"then" * (BLOCK_SIZE // 4)
    here.run(here.pool.close_idle(NodeKind.SNAPSHOT, snapshot))
    there.put(there.use(volume), b"else")
    there.leave(volume)
    reads.clear()
    assert here.of_snapshot(snapshot) == b"then" * (BLOCK_SIZE // 4)
    assert reads == []
    here.run(here.pool.close_idle(NodeKind.SNAPSHOT, snapshot))


def test_a_reverted_volume_shows_the_snapshot(here: CachedDriver) -> None:
    volume = here.volume("one").id
    here.put(here.use(volume), b"then")
    here.leave(volume)
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    device = here.use(volume)
    here.put(device, b"next")
    here.leave(volume)
    here.run(here.pool.revert_volume(volume, snapshot))
    device = here.use(volume)
    for _ in range(3):
        assert here.read(device) == b"then" * (BLOCK_SIZE // 4)
    here.leave(volume)


def test_what_is_deleted_leaves_nothing_in_the_cache(here: CachedDriver) -> None:
    volume = here.volume("one").id
    device = here.use(volume)
    here.put(device, b"1")
    here.read(device)
    here.leave(volume)
    snapshot = here.run(here.pool.create_snapshot(volume, "s")).id
    here.of_snapshot(snapshot)
    assert len(list(here.cache.glob("*.blocks"))) == 2
    here.run(here.pool.revert_volume(volume, snapshot))
    assert [one.name[0] for one in here.cache.glob("*.blocks")] == ["s"]
    here.run(here.pool.delete_snapshot(snapshot))
    assert list(here.cache.glob("*.blocks")) == []
    here.use(volume)
    here.leave(volume)
    assert len(list(here.cache.glob("*.blocks"))) == 1
    here.run(here.pool.delete_volume(volume))
    assert list(here.cache.glob("*.blocks")) == []


def test_a_volume_that_is_extended_in_use_is_cached_to_its_end(
    here: CachedDriver, reads: list[int]
) -> None:
    volume = here.volume("one").id
    device = here.use(volume)
    size = device.size_bytes
    here.run(here.pool.extend_volume(volume, 2 * size))
    last = 2 * size // BLOCK_SIZE - 1
    here.put(device, b"1", last)
    here.read(device, last)
    assert is_hit(device, last)
    assert device.blocks.file.window(2 * size - 1) is not None
    here.pool.leave(NodeKind.VOLUME, volume)
