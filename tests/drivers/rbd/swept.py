"""Images in memory, with the index that names some of them and what sweeps the others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from bockd.drivers.rbd.gateways import Gateways
from bockd.drivers.rbd.index import SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.drivers.rbd.making import generation
from bockd.drivers.rbd.records import Identity, RbdSnapshotRecord, RbdVolumeRecord, put_record
from bockd.drivers.rbd.sweep import PATIENCE, Seen, Sweep
from bockd.index.keys import id_key
from bockd.model import MIB, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import SNAPSHOTS, VOLUMES

from .memory import MemoryObjects


@dataclass
class FakeImage:
    """An image. `parent` is a snap of another one."""

    made_at: float
    snaps: dict[str, float] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    can_be_opened: bool = True
    parent: tuple[str, str] | None = None


class FakeStore:
    """Implements ImageStore."""

    def __init__(self) -> None:
        self.images: dict[str, FakeImage] = {}
        self.looked: list[str] = []
        self.removed: list[str] = []
        self.flattened: list[str] = []
        self.before: Callable[[str], None] = lambda _what: None
        """Called before each step that changes something."""
        self.before_look: Callable[[str], None] = lambda _image: None

    def names(self) -> list[str]:
        return sorted(self.images)

    def look(self, image: str) -> Seen:
        self.looked.append(image)
        self.before_look(image)
        found = self.images.get(image)
        if found is None or not found.can_be_opened:
            return Seen(math.inf, {})
        return Seen(found.made_at, dict(found.snaps), is_needed=bool(found.hidden))

    def _has_clones(self, image: str, snap: str) -> bool:
        return any(one.parent == (image, snap) for one in self.images.values())

    def remove_snap(self, image: str, snap: str) -> None:
        self.before(snap)
        self.removed.append(snap)
        if (found := self.images.get(image)) is not None:
            found.snaps.pop(snap, None)
            if self._has_clones(image, snap):
                found.hidden.add(snap)

    def remove(self, image: str) -> bool:
        self.before(image)
        found = self.images.get(image)
        if found is None:
            return True
        if found.snaps or found.hidden:
            return False
        self.removed.append(image)
        del self.images[image]
        self._let_go(found)
        return True

    def _let_go(self, image: FakeImage) -> None:
        if image.parent is not None and not self._has_clones(*image.parent):
            self.images[image.parent[0]].hidden.discard(image.parent[1])

    def depth(self, image: str) -> int:
        found = self.images.get(image)
        return 0 if found is None or found.parent is None else 1 + self.depth(found.parent[0])

    def flatten(self, image: str, progress: Callable[[int], None]) -> None:
        self.before(image)
        progress(50)
        self.flattened.append(image)
        found, parent = self.images[image], self.images[image].parent
        assert parent is not None
        found.parent = None
        self._let_go(replace(found, parent=parent))


class World:
    """A pool's index, its images, and a time that the test sets."""

    def __init__(self, directory: Path) -> None:
        self.now = 1_000_000.0
        self.store = FakeStore()
        self.alive: set[str] = set()
        self._directory = directory
        self._objects = MemoryObjects()
        Log(self._objects).create("0" * 32)
        self.table, self.index, self.sweep = self.gateway("gw1", "1")

    def gateway(self, name: str, digit: str) -> tuple[Gateways, SharedIndex, Sweep]:
        run = digit * 16
        index = SharedIndex.open(
            Log(self._objects), self._directory / digit, run=run, clock=time.time
        )
        table = Gateways(index, Identity(name, run), self, time.time)
        table.enter()
        sweep = Sweep(
            index,
            self.store,
            max_depth=5,
            clock=lambda: self.now,
            awake=lambda: self.now / 2 * 2,
            is_ours=lambda name: not name.startswith("foreign"),
        )
        return table, index, sweep

    def is_alive(self, author: str) -> bool:
        return author in self.alive

    def image(self, name: str, **more: object) -> FakeImage:
        made = self.store.images[name] = FakeImage(self.now, **more)  # type: ignore[arg-type]
        return made

    def volume(self, number: int, image: str, depth: int = 0) -> None:
        record = RbdVolumeRecord(
            id=VolumeId(number),
            name=f"v{number}",
            size_bytes=MIB,
            created_at=0.0,
            from_snapshot=None,
            failed=None,
            image=image,
            depth=depth,
        )
        self.index.update(lambda txn: put_record(txn, record))

    def snapshot(self, number: int, image: str, snap: str, depth: int = 0) -> None:
        record = RbdSnapshotRecord(
            id=SnapshotId(number),
            name=f"s{number}",
            volume=VolumeId(1),
            size_bytes=MIB,
            created_at=0.0,
            image=image,
            snap=snap,
            depth=depth,
        )
        self.index.update(lambda txn: put_record(txn, record))

    def forget(self, number: int, *, snapshot: bool = False) -> None:
        table = SNAPSHOTS if snapshot else VOLUMES
        self.index.update(lambda txn: txn.delete(table, id_key(number)))

    def generation(self) -> int:
        return self.index.update(generation)

    def name(self, txn: Transaction) -> None:
        """Have a volume 1 of image "a"."""
        record = RbdVolumeRecord(
            id=VolumeId(1),
            name="v",
            size_bytes=MIB,
            created_at=0.0,
            from_snapshot=None,
            failed=None,
            image="a",
        )
        put_record(txn, record)

    def grow_old(self, seconds: float = PATIENCE.made_seconds, sweep: Sweep | None = None) -> None:
        """Let time pass, in which the sweep looks as often as it does."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + PATIENCE.generation_seconds)
            if self.now < end:
                (sweep or self.sweep).look()

    def look_twice(self, seconds: float = PATIENCE.made_seconds) -> None:
        """Two looks, some time after each other, and those in between."""
        self.sweep.look()
        self.grow_old(seconds)
        self.sweep.look()
