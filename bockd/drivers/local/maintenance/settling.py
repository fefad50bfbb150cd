"""Settling: what lies scattered in a frozen packed layer moves to where it can be read in order, to
a raw layer of the same home.

A layer is *due* if its blocks, in their order, lie in too many runs of cells, and if it was frozen
at two looks, ten minutes apart. So nothing needs to be stored: a process that has just begun waits
once more, and no clock, copy or punch can make a layer look older than it is. What was found not to
be due is not counted again. A head that is due, and has come to rest (maintenance.resting), is
frozen first: its volume gets another one. What was begun is ended, due or not (format.queue),
because the index still has the cells of blocks that have moved.

It is a merge (maintenance.merging) that goes on for long, and so in windows, between which the
maintenance lock is free. A window's blocks are copied and synced; then one transaction leads the
home and all its descendants to the copies. So between two windows everybody is shown each block in
the same layer, and what happens then to maps and layers is no concern of ours: the next window asks
the index. Devices go on reading from the source, where nothing changes. When the home shows nothing
of it any more, a walk over the leaves of all, in pieces, finds that nobody does; then the move ends
as a merge does.

Why that is enough, and the walk need not be of one instant: see maintenance.leading.

Why the place is free: see maintenance.merging. A block that the home ceases to show while it is
copied leaves a copy that nobody refers to; it is queued to be punched.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from bockd.drivers.local.format import cells, queue
from bockd.drivers.local.format.catalogue import LAYERS, Catalogue, LayerRecord
from bockd.drivers.local.format.cells import RunCount
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.integrity.damage import frozen_layers
from bockd.drivers.local.maintenance.copying import Window
from bockd.drivers.local.maintenance.leading import Merge, redirect_window, showing, walk
from bockd.drivers.local.maintenance.merging import LayerMerger, is_folded
from bockd.drivers.local.maintenance.resting import RestingHeads, is_large
from bockd.drivers.local.registry import Registry
from bockd.drivers.local.rotating import Rotations
from bockd.errors import BockdError, DamagedError, NoSpaceError, from_os_error, named
from bockd.failpoints import Failpoint, hit
from bockd.index.keys import id_key
from bockd.model import BLOCK_SIZE, GIB, KIB, MIB, LayerId, MapId, VolumeId
from bockd.runtime.steps import blocking

log = logging.getLogger(__name__)

RUNS_PER_MIB = 8
"""More than that, in a MiB that a layer has or has begun, and it is due. Runs of 128 KiB were read
in order from the disk at 0.88 of the speed of a raw layer, runs of 64 KiB at 0.81, single blocks at
0.25 (docs/packed-heads.md)."""

MIN_BYTES = 4 * MIB
"""What holds less is left alone: it is read in a tenth of a second, and moving it costs syncs and
transactions that many snapshots in a row, each with a little, would multiply."""

WINDOW_COST_BYTES = 4 * MIB
"""A window counts as so much work besides its bytes: its file is synced, and the index."""

SPARE_BYTES = 1 * GIB
"""Of the file system, left to others: until its end a move takes space for a second time."""

COUNT_ROWS = 256
"""Rows of CELLS counted at once: a few milliseconds of the interpreter."""

WINDOW_LOOKS = 4096
"""Leaves of the home, and of its descendants, looked up for one window (but one number at least):
its transaction keeps all others waiting that change the index."""

WINDOW_CHANGES = 1024
"""Leaves that show the source. A window ends behind the number with which they are so many."""

WALK_LEAVES = 4096
"""Looked at in one piece of the last walk."""

PATIENCE = 60
"""So often a window waits until reclaim has punched what is queued, before the layer is put off
until the next look."""

MAX_BACKOFF_LOOKS = 144
"""A layer that could not be moved is tried again after one look, two, four and so on, up to that
many: about a day. One that lacked space is tried again after each: that costs little."""

_MAX_LEAVES = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class SettleBatch:
    """What one step did."""

    more: bool
    """There may be more to do at once."""
    work_bytes: int = 0
    """Read, about, and what costs as much as reading that."""
    busy: bool = False
    """Nothing could be done: reclaim is to punch first."""


@dataclass(frozen=True, slots=True)
class _Frozen:
    """What is known of a frozen packed layer."""

    begun: bool
    """Some of its blocks have moved."""
    cells: int


@dataclass(slots=True)
class _Job:
    """A layer that is counted, and then moved if it is due."""

    layer: LayerId
    volume: VolumeId | None = None
    """Whose head it is."""
    count: RunCount = field(default_factory=RunCount)
    next_row: int | None = 0
    """Of CELLS, to be counted; None: all are."""
    merge: Merge | None = None
    """Begun."""
    next_leaf: int = 0
    """Of the home, to be moved."""
    walked: tuple[MapId, int] = (MapId(0), 0)
    """Map and leaf number that the last walk has come to."""
    waits: int = 0


@dataclass(slots=True)
class _Failure:
    """Why a layer was not moved, and when it is tried again."""

    reason: str
    wait_looks: int
    next_look: int


class _LaterError(Exception):
    """The layer cannot be moved now, for no fault of its own."""


class Settler:
    """Settles the layers of one pool, one at a time. `look` now and then; `step` until that says
    that there is no more to do."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._store = registry.store
        self._merger = LayerMerger(registry)
        self._rotations = Rotations(registry, registry.layer_maker)
        self.heads = RestingHeads(registry)
        self._changed = True
        """Something may have been frozen since the last look."""
        self._frozen: set[LayerId] = set()
        """Packed layers that were frozen at the last look, and are not judged."""
        self._judged: set[LayerId] = set()
        """Frozen ones that are not due, or cannot be read."""
        self._looks = 0
        self._counts: dict[LayerId, RunCount] = {}
        """Of frozen layers that are due, and not moved yet."""
        self._failures: dict[LayerId, _Failure] = {}
        self._told_little = False
        self._queue: deque[_Job] = deque()
        self._job: _Job | None = None

    @property
    def must_wait(self) -> bool:
        """True while there is something to do, and somebody else is at work on frozen layers, which
        may take long."""
        has_work = self._job is not None or bool(self._queue)
        return has_work and self._registry.maintenance_lock.held

    @property
    def put_off(self) -> str | None:
        """Why layers that are due were not moved when that was last tried; None if all were."""
        reasons = [self._failures[layer].reason for layer in sorted(self._failures)]
        if len(reasons) > 1:
            return f"{reasons[0]} (and {len(reasons) - 1} more)"
        return reasons[0] if reasons else None

    def note_frozen(self) -> None:
        """Note that something was frozen: the next look may find it."""
        self._changed = True

    # -- what is due -------------------------------------------------------------------------

    async def look(self) -> None:
        """Find the layers that were frozen at the last look, too, and the heads that have come to
        rest since then: the next steps count them. Ask nothing of the index if nothing can have
        become due. Raises BockdError."""
        volumes = self.heads.volumes()
        self._looks += 1
        self._queue.clear()
        self._job = None
        if not (self._changed or self._frozen or volumes):
            self._failures.clear()
            return
        self._changed = False
        try:
            frozen, heads = await blocking(self._packed_layers, volumes)
        except BaseException:
            self._changed = True
            raise
        self._judged &= frozen.keys()
        unjudged = frozen.keys() - self._judged
        for known in (self._counts, self._failures):
            for layer in known.keys() - unjudged - heads.keys():
                del known[layer]
        # What has begun takes space for a second time until its end; and much waits for little.
        for new, _, layer in sorted((not frozen[x].begun, frozen[x].cells, x) for x in unjudged):
            if (layer in self._frozen or not new) and self._may_try(layer):
                self._queue.append(self._job_of(layer, begun=not new))
        self._frozen = unjudged
        for head, volume in self.heads.look(heads, volumes):
            if self._may_try(head):
                self._queue.append(_Job(head, volume))

    def _may_try(self, layer: LayerId) -> bool:
        failure = self._failures.get(layer)
        return failure is None or failure.next_look <= self._looks

    def _job_of(self, layer: LayerId, *, begun: bool) -> _Job:
        """A frozen one's. It is counted if it has not begun and its count is not known."""
        count = self._counts.get(layer)
        if begun or count is not None:
            return _Job(layer, count=count or RunCount(), next_row=None)
        return _Job(layer)

    def _packed_layers(
        self, volumes: dict[LayerId, VolumeId]
    ) -> tuple[dict[LayerId, _Frozen], dict[LayerId, int]]:
        """In a thread: the frozen ones; and how many cells the heads of volumes have."""
        with self._store.index.reading() as txn:
            catalogue = Catalogue(txn)
            heads = {
                head: catalogue.layer(head).cells
                for head in volumes
                if txn.get(LAYERS, id_key(head)) is not None
            }
            begun = queue.begun_settling(txn)
            frozen = {
                layer.id: _Frozen(layer.id in begun, layer.cells)
                for layer in frozen_layers(txn)
                if layer.packed and layer.cells
            }
        return frozen, heads

    # -- steps -------------------------------------------------------------------------------

    async def step(self) -> SettleBatch:
        """Do the next piece of work: count rows, or move a window. A layer that cannot be moved is
        left for later, see `put_off`, and the others have their turn."""
        if self._job is None:
            if not self._queue:
                return SettleBatch(more=False)
            self._job = self._queue.popleft()
        job, self._job = self._job, None
        try:
            if job.next_row is not None:
                return await self._count_on(job)
            async with self._registry.maintenance_lock:
                return await self._move_on(job)
        except _LaterError:
            return SettleBatch(more=True)
        except DamagedError as error:
            self._judged.add(job.layer)
            log.error("layer %s is not settled: %s", job.layer, error)  # noqa: TRY400
            return SettleBatch(more=True)
        except BockdError as error:
            self._note_failed(job, error)
            return SettleBatch(more=True)

    def _note_failed(self, job: _Job, error: BockdError) -> None:
        before = self._failures.get(job.layer)
        if before is None or isinstance(error, NoSpaceError):
            looks = 1
        else:
            looks = min(2 * before.wait_looks, MAX_BACKOFF_LOOKS)
        self._failures[job.layer] = _Failure(str(error), looks, self._looks + looks)

    async def _count_on(self, job: _Job) -> SettleBatch:
        rows = await blocking(self._count_rows, job)
        if job.next_row is not None:
            self._job = job
        elif not _is_due(job.count):
            self._note_judged(job)
        elif job.volume is None:
            self._counts[job.layer] = job.count
            self._job = job
        elif is_large(job.count.blocks):
            await self._rotations.freeze_head(job.volume, job.layer)
            self.heads.note_frozen(job.volume, job.layer)
            self._failures.pop(job.layer, None)
        else:
            self._note_judged(job)
        return SettleBatch(more=True, work_bytes=rows * KIB)

    def _count_rows(self, job: _Job) -> int:
        first = job.next_row
        assert first is not None
        with self._store.index.reading() as txn:
            found = cells.ROWS.rows_between(txn, job.layer, first, _MAX_LEAVES)
            rows = list(islice(found, COUNT_ROWS))
        for _, row in rows:
            job.count.add(row)
        job.next_row = rows[-1][0] + 1 if len(rows) == COUNT_ROWS else None
        return len(rows)

    def _note_judged(self, job: _Job) -> None:
        if job.volume is None:
            self._judged.add(job.layer)
            self._frozen.discard(job.layer)
        else:
            self.heads.note_judged(job.layer)

    async def _move_on(self, job: _Job) -> SettleBatch:
        merge = await self._merge(job)
        if await blocking(self._waits_for_punches, merge):
            self._registry.on_garbage()
            job.waits += 1
            if job.waits > PATIENCE:
                raise _LaterError
            self._job = job
            return SettleBatch(more=True, busy=True)
        if merge != job.merge:
            for opened in list(self._registry.volumes.values()):
                # As before any merge.
                await opened.volume.heads.finish_punching()
            job.merge, job.next_leaf, job.walked = merge, 0, (MapId(0), 0)
        if job.next_leaf <= _MAX_LEAVES:
            work_bytes = await blocking(self._move_window, job, merge)
            job.waits = 0
            self._job = job
            return SettleBatch(more=True, work_bytes=work_bytes)
        looked = await blocking(self._walk_on, job, merge)
        if looked == WALK_LEAVES:
            self._job = job
        else:
            await self._end(merge)
        return SettleBatch(more=True, work_bytes=looked * KIB)

    async def _merge(self, job: _Job) -> Merge:
        """Return the move as it is to go on. Make the layer to move into if there is none."""
        if job.merge is None:
            await blocking(self._require_room, job.layer, job.count.blocks)
        merge = await blocking(self._plan, job)
        if isinstance(merge, LayerRecord):
            await self._merger.make_layer(merge.home, merge.size_bytes)
            merge = await blocking(self._plan, job)
        if isinstance(merge, LayerRecord):
            raise _LaterError
        return merge

    async def _end(self, merge: Merge) -> None:
        try:
            await self._merger.end(merge)
            self._frozen.discard(merge.source.id)
            self._failures.pop(merge.source.id, None)
        finally:
            # Reclaim removes the source, or goes on with what has begun.
            self._registry.on_garbage()

    # -- planning, in a thread ---------------------------------------------------------------

    def _plan(self, job: _Job) -> Merge | LayerRecord:
        """The move as it is to go on; the source alone if its home lacks a layer to move into.
        Raises _LaterError if the source is gone, or reclaim's for now."""
        with self._store.index.reading() as txn:
            catalogue = Catalogue(txn)
            if txn.get(LAYERS, id_key(job.layer)) is None:
                raise _LaterError
            source = catalogue.layer(job.layer)
            if is_folded(catalogue, source.home) or queue.begun_merges(txn):
                raise _LaterError
            homed = catalogue.layers_of(source.home)
            begun = queue.begun_settling(txn).get(job.layer)
            if begun in homed:
                return Merge(source.home, source, catalogue.layer(begun))
            heads = {volume.head for volume in catalogue.volumes()}
            for layer in sorted(homed):
                target = catalogue.layer(layer)
                if layer in heads or target.packed or target.size_bytes < source.size_bytes:
                    continue
                return Merge(source.home, source, target)
        return source

    def _waits_for_punches(self, merge: Merge) -> bool:
        """What is queued may lie where something is moved to."""
        with self._store.index.reading() as txn:
            return queue.is_punched(txn, merge.target.id)

    def _require_room(self, layer: LayerId, blocks: int) -> None:
        """Raises NoSpaceError, or _LaterError where there is so little that settling would be in
        the way of what the disk is for."""
        root = self._store.layout.root
        with named(f"asking for the space of {root}"):
            found = os.statvfs(root)
        free = found.f_bavail * found.f_frsize
        wanted = blocks * BLOCK_SIZE + SPARE_BYTES
        if free >= wanted:
            return
        if free < SPARE_BYTES:
            if not self._told_little:
                self._told_little = True
                log.info("no layers are settled while less than %d MiB are free", _mib(SPARE_BYTES))
            raise _LaterError
        raise NoSpaceError(
            f"to settle {self._name(layer)} {_mib(wanted)} MiB must be free "
            f"({_mib(SPARE_BYTES)} of them for others), and {free // MIB} are; delete snapshots or "
            "volumes, or enlarge the file system; until then reading it in order is slow"
        )

    def _name(self, layer: LayerId) -> str:
        """The layer, with a volume that reads it, if there is one."""
        with self._store.index.reading() as txn:
            catalogue = Catalogue(txn)
            home = catalogue.layer(layer).home
            for volume in catalogue.volumes():
                if home in catalogue.chain(volume.map):
                    return f"layer {layer} of volume {volume.name!r}"
        return f"layer {layer}"

    # -- a window, in a thread ---------------------------------------------------------------

    def _move_window(self, job: _Job, merge: Merge) -> int:
        """Move the next blocks, and note where the next window begins. Return how much work that
        was, in bytes."""
        window, changes = Window(merge.source.id), 0
        with self._store.index.reading() as txn:
            members = list(Catalogue(txn).subtree(merge.home))
            looks = max(1, WINDOW_LOOKS // len(members))
            found = cells.leaves_with_cells(txn, merge.source.id, job.next_leaf)
            numbers = list(islice(found, looks))
            following = numbers[-1] + 1 if len(numbers) == looks else _MAX_LEAVES + 1
            for number in numbers:
                leaf = showing(txn, merge.home, number, merge.source.id)
                full = changes >= WINDOW_CHANGES
                if full or (leaf is not None and not window.take(txn, number, leaf)):
                    following = number
                    break
                if leaf is not None:
                    shown = (showing(txn, x, number, merge.source.id) for x in members)
                    changes += sum(1 for x in shown if x is not None)
        if window.blocks:
            self._require_room(job.layer, len(window.blocks))
            self._copy_window(merge, window)
            self._store.index.update(partial(redirect_window, merge=merge, window=window))
            hit(Failpoint.SETTLE_MOVED)
        job.next_leaf = following
        copied = len(window.blocks) * BLOCK_SIZE
        return len(numbers) * KIB + (copied + WINDOW_COST_BYTES if copied else 0)

    def _walk_on(self, job: _Job, merge: Merge) -> int:
        """Look at the next leaves of all that may show the source, and note how far that came.
        Return how many they are; fewer than WALK_LEAVES are the last. Raises DamagedError if one
        shows it."""
        with self._store.index.reading() as txn:
            looked, job.walked = walk(txn, merge, job.walked, WALK_LEAVES)
        return looked

    def _copy_window(self, merge: Merge, window: Window) -> None:
        layout = self._store.layout
        with (
            closing(Layer.of(layout, merge.source, writable=False)) as source,
            closing(Layer.of(layout, merge.target, writable=True)) as target,
        ):
            try:
                window.copy(source, target)
                hit(Failpoint.SETTLE_COPIED)
                target.sync()
                hit(Failpoint.SETTLE_SYNCED)
            except (OSError, BockdError) as error:
                _give_back(target, window)
                if isinstance(error, BockdError):
                    raise
                doing = f"moving layer {source.id} to {target.id}"
                raise from_os_error(error, doing) from error


def _mib(count: int) -> int:
    """Bytes as MiB, rounded up."""
    return -(-count // MIB)


def _is_due(count: RunCount) -> bool:
    if count.blocks * BLOCK_SIZE < MIN_BYTES:
        return False
    return count.runs > RUNS_PER_MIB * -(-count.blocks * BLOCK_SIZE // MIB)


def _give_back(target: Layer, window: Window) -> None:
    """Punch copies that nobody was led to; the disk may be full."""
    for first, end in window.runs():
        with suppress(OSError):
            target.punch(first * BLOCK_SIZE, (end - first) * BLOCK_SIZE)
