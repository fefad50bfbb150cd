"""Block storage over a real pool in a directory, which a test may stop, kill and start again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import trio

from bockd.blockstorage.contract import (
    NewSnapshot,
    NewVolume,
    Quota,
    Snapshot,
    Status,
    TenantId,
    Volume,
)
from bockd.blockstorage.interrupted import resolve_interrupted
from bockd.blockstorage.plugging import Devices, NoDevices
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.recount import find_problems
from bockd.blockstorage.running import ExportPublisher, NoPublisher, StorageContext
from bockd.blockstorage.service import PoolBlockStorage
from bockd.blockstorage.trashcontract import NO_TRASH, TrashRules
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.pool import LocalPool
from bockd.identity.accounts import Accounts
from bockd.model import BLOCK_SIZE, VolumeId
from bockd.pool.index import Transaction
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.process import die

T = TypeVar("T")

AMPLE = Quota(volumes=1000, gigabytes=20_000, snapshots=1000)


class Store:
    """Everything a daemon would have, but for its frontends."""

    def __init__(
        self,
        root: Path,
        exports: ExportPublisher | None = None,
        quota: Quota = AMPLE,
        devices: Devices | None = None,
        trash: TrashRules = NO_TRASH,
    ) -> None:
        self.root = root
        self.exports = exports or NoPublisher()
        self.devices = devices or NoDevices()
        self.quota = quota
        self.trash = trash
        self.start()

    def start(self) -> None:
        self.background = Background()
        self.pool = LocalPool.open(self.root, self.background.spawn)
        self.context = StorageContext(
            self.pool,
            self.exports,
            self.quota,
            devices=self.devices,
            daemon="test",
            trash=self.trash,
        )
        run_inline(self.pool.registry.recover_volumes())
        run_inline(resolve_interrupted(self.context))
        self.service = PoolBlockStorage(self.context, StepRunner())
        self.accounts = Accounts(self.pool.index)

    def die(self) -> None:
        die(self.pool)

    def restart(self) -> None:
        """SIGKILL, and a new start."""
        self.die()
        self.start()

    def tenant(self, name: str, quota: Quota | None = None) -> TenantId:
        return self.accounts.create_tenant(name, quota).id

    def run(self, call: Callable[[PoolBlockStorage], Awaitable[T]]) -> T:
        """One call of the service."""

        async def main() -> T:
            return await call(self.service)

        return trio.run(main)

    def volume(self, tenant: TenantId, size_gib: int = 1, name: str | None = None) -> Volume:
        return self.run(lambda s: s.create_volume(tenant, NewVolume(size_gib, name)))

    def snapshot(self, tenant: TenantId, volume: Volume, *, force: bool = False) -> Snapshot:
        return self.run(lambda s: s.create_snapshot(tenant, NewSnapshot(volume.id, force=force)))

    def look(self, tenant: TenantId, volume: Volume) -> Volume:
        return self.run(lambda s: s.show_volume(tenant, volume.id))

    def force_snapshot_status(self, tenant: TenantId, snapshot: Snapshot, status: Status) -> None:
        """As if something were under way."""

        def change(txn: Transaction) -> None:
            ledger = Ledger(txn)
            ledger.put_snapshot(
                tenant, replace(ledger.snapshot(tenant, snapshot.id), status=status)
            )

        self.pool.index.update(change)

    def assert_sound(self) -> None:
        """The pool's invariants and ours."""
        with self.pool.index.reading() as txn:
            assert find_problems(txn) == ()
        report = check_open_pool(
            self.pool.registry.store, live=frozenset(self.pool.registry.volumes), repair=False
        )
        assert report.clean, report.problems


def force_status(store: Store, tenant: TenantId, volume: Volume, status: Status) -> None:
    """As if something were under way."""

    def change(txn: Transaction) -> None:
        ledger = Ledger(txn)
        ledger.put_volume(tenant, replace(ledger.volume(tenant, volume.id), status=status))

    store.pool.index.update(change)


def write_first_byte(store: Store, volume: VolumeId, value: int) -> None:
    """Fill a volume's first block, durably, and close the volume."""
    opened = run_inline(store.pool.registry.use_volume(volume))
    run_inline(opened.volume.write(0, memoryview(bytes([value]) * BLOCK_SIZE)))
    run_inline(opened.volume.flush())
    store.pool.registry.leave_volume(volume)
    run_inline(store.pool.registry.close_idle_volume(volume))


def first_byte(store: Store, volume: VolumeId) -> int:
    """What a volume begins with."""
    opened = run_inline(store.pool.registry.use_volume(volume))
    data = bytearray(BLOCK_SIZE)
    run_inline(opened.volume.read(0, memoryview(data)))
    store.pool.registry.leave_volume(volume)
    run_inline(store.pool.registry.close_idle_volume(volume))
    return data[0]


@contextmanager
def running(
    root: Path,
    exports: ExportPublisher | None = None,
    quota: Quota = AMPLE,
    devices: Devices | None = None,
) -> Iterator[Store]:
    """A store that leaves nothing open and nothing unsound."""
    store = Store(root, exports, quota, devices)
    try:
        yield store
        store.assert_sound()
    finally:
        store.die()
