"""What a gateway does in the background about volumes that are dirty at it
(bockd.drivers.rbd.writebacks): it finds those that an earlier run has left, writes back what nobody
opens, and writes down how far the logs have come.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.opennodes import OpenNodes
from bockd.drivers.rbd.records import RbdVolumeRecord, decode_volume
from bockd.errors import BockdError, DamagedError, NotFoundError
from bockd.index.keys import FIRST_KEY, LAST_KEY, key_id
from bockd.model import NodeKind, VolumeId
from bockd.pool.caches import LogReach
from bockd.pool.nodes import VOLUMES
from bockd.runtime.steps import Signal, blocking_apart, try_spawn

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What the index says of volumes and their logs."""

    dirty: dict[str, RbdVolumeRecord]
    """What is dirty, here or at another gateway, by its image."""
    clean: frozenset[str]
    """The images of all others."""
    damaged: tuple[VolumeId, ...]
    """Volumes of which nothing is known: their records are malformed."""

    def is_void(self, image: str) -> bool:
        """Return whether nobody needs a log of an image. While there are damaged records, any of
        them may name an image that no other one does."""
        return image in self.clean or (image not in self.dirty and not self.damaged)


def find_dirty(nodes: OpenNodes) -> Found:
    """Fill `left_dirty` from the index: nothing is open. A malformed record, which is logged, stops
    only what is about its own volume."""
    dirty: dict[str, RbdVolumeRecord] = {}
    clean, damaged = set[str](), list[VolumeId]()
    with nodes.session.index.reading() as txn:
        for key, payload in txn.scan(VOLUMES, FIRST_KEY, LAST_KEY):
            volume = VolumeId(key_id(key))
            try:
                record = decode_volume(payload)
            except DamagedError as error:
                log.error("volume %s: whether it is dirty here is not known: %s", volume, error)  # noqa: TRY400
                damaged.append(volume)
                continue
            if record.dirty_at is None:
                clean.add(record.image)
                continue
            dirty[record.image] = record
            if not record.dirty_elsewhere(nodes.session.who.gateway):
                nodes.left_dirty[volume] = record.image
    return Found(dirty, frozenset(clean), tuple(damaged))


async def write_back_left(nodes: OpenNodes, volume: VolumeId) -> None:
    """Write back what was left dirty here of a volume that is not open; then close it, unless it is
    used. If it was discarded at another gateway, remove its log. Raises DamagedError: the log
    cannot be read, as far as is known, and the volume is not taken for that again; BockdError."""

    async def opening() -> bool:
        image = nodes.left_dirty.get(volume)
        if image is None:
            return False  # it was opened
        if not _is_dirty(nodes, volume, image):
            await nodes.fronts.discard_log(image, keep=_is_there(nodes, volume))
            nodes.refusals.pop(volume, None)
            del nodes.left_dirty[volume]
        elif nodes.is_dirty_here(volume):
            if (why := nodes.refusals.get(volume)) is not None:
                raise DamagedError(why)
            await nodes.open_volume(volume, Manner.POLITE)
            return True
        return False

    if await nodes.exclusive(volume, opening):
        await nodes.close_idle(NodeKind.VOLUME, volume)


def _is_dirty(nodes: OpenNodes, volume: VolumeId, image: str) -> bool:
    """Return whether the index says that an image of a volume is dirty, at any gateway."""
    try:
        record = nodes.record(volume)
    except NotFoundError:
        return False
    return record.image == image and record.dirty_at is not None


def _is_there(nodes: OpenNodes, volume: VolumeId) -> bool:
    """Return whether there is a volume still: of one that was deleted, nothing is kept."""
    try:
        nodes.record(volume)
    except NotFoundError:
        return False
    return True


def left_since(nodes: OpenNodes) -> list[float]:
    """Return since when volumes are dirty here that are not open: they wait for their turn after a
    start, or cannot be opened."""
    found = []
    for volume in (nodes.left_dirty.keys() | nodes.refusals.keys()) - nodes.volumes.keys():
        try:
            record = nodes.record(volume)
        except BockdError:
            continue  # deleted, or malformed: nothing is known of it
        if record.dirty_at is not None and nodes.is_dirty_here(volume):
            found.append(record.dirty_at.since)
    return found


async def drain_all(nodes: OpenNodes) -> None:
    """Write back what is dirty of all volumes that are open, all together: one that hangs keeps no
    other from it."""
    waiting = set(nodes.volumes)
    ended = Signal()

    async def drain(volume: VolumeId) -> None:
        try:
            await nodes.drain(volume)
        finally:
            waiting.discard(volume)
            if not waiting:
                ended.fire()

    for volume in list(waiting):
        if not try_spawn(nodes.spawn, drain(volume)):
            await drain(volume)
    if waiting:
        await ended


def hold_logs(nodes: OpenNodes, *, held: bool) -> None:
    """Have writes wait for the cluster, or not any more, of all volumes that are open, and of those
    that will be."""
    nodes.fronts.held = held
    for opened in nodes.volumes.values():
        if opened.front.log is not None:
            opened.front.log.hold(held=held)


async def note_reach(nodes: OpenNodes) -> None:
    """Write down how far the logs have come of what is open and dirty here, as far as that has
    changed; then in the logs that this was done. Raises BockdError."""
    found, asked = [], []
    for volume, opened in nodes.volumes.items():
        dirty = opened.front.log
        reach = None if dirty is None else dirty.reach()
        if dirty is not None and reach is not None and _is_further(nodes, volume, reach):
            found.append((volume, opened.taken.epoch, reach))
            asked.append((volume, dirty, reach))
    if found:
        await blocking_apart("dirty marks", nodes.session.tenures.mark_reach, found)
    for volume, dirty, reach in asked:
        if not _is_further(nodes, volume, reach):
            await dirty.note_known(reach)


def _is_further(nodes: OpenNodes, volume: VolumeId, reach: LogReach) -> bool:
    """Return whether a log has come further than the record of its volume says. One that is gone,
    or malformed, has nothing written down."""
    try:
        at = nodes.record(volume).dirty_at
    except (NotFoundError, DamagedError):
        return False
    return at is None or at.reach != reach
