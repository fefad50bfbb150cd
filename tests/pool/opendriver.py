"""A pool of some kind, for tests, and what drives its operations."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from bockd.model import BLOCK_SIZE, MIB, NodeKind, SnapshotId, VolumeId
from bockd.pool.pool import Pool
from bockd.pool.records import VolumeRecord
from bockd.runtime.steps import Steps, run_inline

T = TypeVar("T")


class OpenDriver:
    """A pool of some kind, and what drives its operations: each runs to its end on the spot."""

    def __init__(self, directory: Path) -> None:
        self.pool: Pool
        self._directory = directory

    def run(self, steps: Steps[T]) -> T:
        """Run an operation to its end, and what it gave the background to do."""
        return run_inline(steps)

    def die_and_open(self) -> None:
        """Lose the process as SIGKILL does, and open the pool anew. For durable drivers only."""
        raise NotImplementedError

    def close(self) -> None:
        """End the pool in order."""
        self.run(self.pool.close_all())
        self.pool.release()

    @property
    def unit_blocks(self) -> int:
        """How many blocks one is that space and holes are told in."""
        return self.pool.features.hole_bytes // BLOCK_SIZE

    # -- shorthands --------------------------------------------------------------------------

    def volume(self, name: str, size_bytes: int = MIB) -> VolumeRecord:
        """Create a blank volume."""
        return self.run(self.pool.create_volume(name, size_bytes))

    def write(self, volume: VolumeId, block: int, data: bytes, *, flush: bool = False) -> None:
        """Write one block of a volume as a client does that connects, writes and leaves."""
        device = self.run(self.pool.use(NodeKind.VOLUME, volume))
        try:
            self.run(device.write(block * BLOCK_SIZE, memoryview(data.ljust(BLOCK_SIZE, b"."))))
            if flush:
                self.run(device.flush())
        finally:
            self.pool.leave(NodeKind.VOLUME, volume)

    def block(self, kind: NodeKind, node: int, block: int) -> bytes:
        """Read one block, without the dots or zeros behind what was written."""
        device = self.run(self.pool.use(kind, node))
        try:
            found = bytearray(BLOCK_SIZE)
            self.run(device.read(block * BLOCK_SIZE, memoryview(found)))
        finally:
            self.pool.leave(kind, node)
        return bytes(found).rstrip(b".\0")

    def of_volume(self, volume: VolumeId, block: int = 0) -> bytes:
        """Read one block of a volume; see `block`."""
        return self.block(NodeKind.VOLUME, volume, block)

    def of_snapshot(self, snapshot: SnapshotId, block: int = 0) -> bytes:
        """Read one block of a snapshot; see `block`."""
        return self.block(NodeKind.SNAPSHOT, snapshot, block)

    def listing(self) -> list[object]:
        """Return all records, for comparing before and after."""
        with self.pool.nodes() as nodes:
            volumes = [
                (v.id, v.name, v.size_bytes, v.from_snapshot, v.failed) for v in nodes.volumes()
            ]
            snapshots = [(s.id, s.name, s.volume, s.size_bytes) for s in nodes.snapshots()]
        return [*volumes, *snapshots]
