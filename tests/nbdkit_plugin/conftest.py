"""A pool to serve; each test has volumes of its own, and no daemon unless it starts one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.local.pool import LocalPool
from bockd.model import SnapshotId, VolumeId
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.named import snapshot_named, volume_named

from ..daemon.process import Bockd
from .nbdkit import Nbdkit

MIB = 1 << 20


@dataclass(frozen=True)
class PoolDirectory:
    """A pool on disk, open only for the length of a call."""

    path: Path
    daemon: Bockd
    """Not started. Its tools are pointed at the pool."""

    def create(self, name: str, size_bytes: int = 8 * MIB) -> str:
        """A blank volume; the parameter that serves it."""
        pool, background = self._open()
        try:
            run_inline(pool.create_volume(name, size_bytes))
            background.run()
        finally:
            pool.release()
        return f"volume={name}"

    def snapshot(self, volume: str, name: str) -> str:
        """A snapshot of a volume that nobody has open; the parameter that serves it."""
        pool, background = self._open()
        try:
            run_inline(pool.create_snapshot(volume_named(pool, volume), name))
            background.run()
        finally:
            pool.release()
        return f"snapshot={name}"

    def volume_id(self, name: str) -> VolumeId:
        pool, _ = self._open()
        try:
            return volume_named(pool, name)
        finally:
            pool.release()

    def snapshot_id(self, name: str) -> SnapshotId:
        pool, _ = self._open()
        try:
            return snapshot_named(pool, name)
        finally:
            pool.release()

    def _open(self) -> tuple[LocalPool, Background]:
        background = Background()
        return LocalPool.open(self.path, background.spawn), background

    @property
    def parameter(self) -> str:
        return f"pool={self.path}"


@contextmanager
def serving(pool: PoolDirectory, *parameters: str, filters: tuple[str, ...] = ()) -> Iterator[Any]:
    """One client of an nbdkit that serves something of the pool meanwhile."""
    with (
        Nbdkit(pool.path.parent, pool.parameter, *parameters, filters=filters) as nbdkit,
        nbdkit.connected() as client,
    ):
        yield client


@pytest.fixture
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolDirectory]:
    """An empty pool. It is in order at the end."""
    work = tmp_path_factory.mktemp("nbdkit")
    path = work / "pool"
    made = PoolDirectory(path, Bockd(path, work / "bockd.log"))
    LocalPool.open(path, Background().spawn).release()
    yield made
    made.daemon.end()
    made.daemon.check()
