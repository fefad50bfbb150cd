"""What a gateway does in the background about volumes that are dirty at it
(bockd.drivers.rbd.writebacks): it finds those that an earlier run has left, writes back what nobody
opens, and writes down how far the logs have come.
"""

from __future__ import annotations

from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.opennodes import OpenNodes
from bockd.drivers.rbd.records import RbdVolumeRecord, volume_records
from bockd.errors import NotFoundError
from bockd.model import NodeKind, VolumeId
from bockd.pool.caches import LogReach
from bockd.runtime.steps import blocking_apart


def find_dirty(nodes: OpenNodes) -> dict[str, RbdVolumeRecord]:
    """Fill `left_dirty` from the index: nothing is open. Return what is dirty, here or at another
    gateway, by its image. Raises DamagedError."""
    here = nodes.session.who.gateway
    with nodes.session.index.reading() as txn:
        dirty = [one for one in volume_records(txn) if one.dirty_at is not None]
    nodes.left_dirty.update((one.id, one.image) for one in dirty if not one.dirty_elsewhere(here))
    return {one.image: one for one in dirty}


async def write_back_left(nodes: OpenNodes, volume: VolumeId) -> None:
    """Write back what was left dirty here of a volume that is not open; then close it, unless it is
    used. If it was discarded at another gateway, remove its log. Raises BockdError."""

    async def opening() -> None:
        image = nodes.left_dirty.get(volume)
        if image is None:
            return  # it was opened
        if not _is_dirty(nodes, volume, image):
            await nodes.fronts.discard_log(image)
            del nodes.left_dirty[volume]
        elif nodes.is_dirty_here(volume):
            await nodes.open_volume(volume, Manner.POLITE)

    await nodes.exclusive(volume, opening)
    await nodes.close_idle(NodeKind.VOLUME, volume)


def _is_dirty(nodes: OpenNodes, volume: VolumeId, image: str) -> bool:
    """Return whether the index says that an image of a volume is dirty, at any gateway."""
    try:
        record = nodes.record(volume)
    except NotFoundError:
        return False
    return record.image == image and record.dirty_at is not None


async def drain_all(nodes: OpenNodes) -> None:
    """Write back what is dirty of all volumes that are open, one after the other."""
    for volume in list(nodes.volumes):
        await nodes.drain(volume)


async def note_reach(nodes: OpenNodes) -> None:
    """Write down how far the logs have come of what is open and dirty here, as far as that has
    changed. Raises BockdError."""
    found = []
    for volume, opened in nodes.volumes.items():
        reach = None if opened.front.log is None else opened.front.log.reach()
        if reach is not None and reach != _noted(nodes, volume):
            found.append((volume, opened.taken.epoch, reach))
    if found:
        await blocking_apart("dirty marks", nodes.session.tenures.mark_reach, found)


def _noted(nodes: OpenNodes, volume: VolumeId) -> LogReach | None:
    try:
        at = nodes.record(volume).dirty_at
    except NotFoundError:
        return None
    return None if at is None else at.reach
