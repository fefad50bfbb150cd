"""An open snapshot: the volume contract, read-only."""

from __future__ import annotations

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.catalogue import LocalSnapshotRecord
from bockd.drivers.local.volume.loading import LeafLoader
from bockd.drivers.local.volume.reading import Reader
from bockd.errors import ReadOnlyError
from bockd.runtime.steps import Spawn, Steps

_MESSAGE = "a snapshot never changes; make a volume from it and write there"


class Snapshot(Reader):
    """Implements bockd.pool.device.BlockDevice for a snapshot."""

    read_only = True

    def __init__(
        self, store: StoreAccess, loader: LeafLoader, record: LocalSnapshotRecord, spawn: Spawn
    ) -> None:
        super().__init__(store, loader, record.size_bytes, spawn)
        self.record = record

    def try_write(self, offset: int, data: memoryview) -> bool:
        """Refuse with ReadOnlyError."""
        raise ReadOnlyError(_MESSAGE)

    def try_trim(self, offset: int, length: int) -> bool:
        """Refuse with ReadOnlyError."""
        raise ReadOnlyError(_MESSAGE)

    def commit(self) -> None:
        """Do nothing, because nothing was written."""

    def write(self, offset: int, data: memoryview) -> Steps[None]:
        """Refuse with ReadOnlyError."""
        raise ReadOnlyError(_MESSAGE)

    def zero(self, offset: int, length: int, *, allocate: bool) -> Steps[None]:
        """Refuse with ReadOnlyError."""
        raise ReadOnlyError(_MESSAGE)

    def trim(self, offset: int, length: int) -> Steps[None]:
        """Refuse with ReadOnlyError."""
        raise ReadOnlyError(_MESSAGE)

    async def flush(self) -> None:
        """Do nothing, because a snapshot is durable from its creation on."""
