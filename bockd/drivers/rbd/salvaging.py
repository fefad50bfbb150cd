"""Writing back what a damaged log has before its damage, for `bock volume discard-cache`: only the
rest is given up then (docs/write-back.md).

The volume is taken for that, and given back: it is not open to clients, and dirty all the while.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bockd.drivers.rbd.device import RbdDevice
from bockd.drivers.rbd.draining import drain_while_it_goes_on
from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.patience import Patience
from bockd.drivers.rbd.records import DirtyAt, same_log
from bockd.drivers.rbd.writebacks import WriteBacks, WriteBackSalvage
from bockd.errors import ConflictError, DamagedError, InUseError, UnreadableError
from bockd.model import VolumeId
from bockd.pool.caches import Salvaged
from bockd.pool.device import BlockDevice
from bockd.runtime.steps import blocking_apart, run_inline

if TYPE_CHECKING:
    from bockd.drivers.rbd.opennodes import OpenNodes

log = logging.getLogger(__name__)


async def salvage(nodes: OpenNodes, volume: VolumeId, patience: Patience) -> Salvaged | None:
    """Write back what can be of the log of a volume that is dirty here, and not open. Return what
    has become of the log; None: nothing of it can be used. The caller excludes others.

    Raises:
        InUseError: that goes on; doing this again goes on with it.
        BockdError: the log may be read yet, or the cluster does not take it.
    """
    record = nodes.record(volume)
    at, write_backs = record.dirty_at, nodes.fronts.write_backs
    if write_backs is None or at is None:
        return None
    if at.unnotable:
        log.warning("nothing of the log of volume %s is written back: more may be there", volume)
        return None
    try:
        # Before it is taken, as in `OpenNodes.open_volume`.
        await nodes.fronts.refuse_dirty(record)
    except (DamagedError, ConflictError):
        return None
    await nodes.fronts.log_closed(record.image)
    taker = nodes.session.taker
    with patience.waiting_for("opening its image"):
        taken = await blocking_apart(
            "taking", lambda: run_inline(taker.take(volume, Manner.POLITE))
        )
    try:
        patience.check()
        now = nodes.record(volume)  # it may have grown
        if now.epoch != taken.epoch or not same_log(now.dirty_at, at):
            raise InUseError(f"another gateway has just changed volume {volume}; try again")
        device = RbdDevice(taken.claim.image, f"volume {volume}", now.size_bytes, read_only=False)
        try:
            return await _write_back(nodes, volume, write_backs, device, taken.record.image, at)
        finally:
            device.lost.fire()
    finally:
        with patience.waiting_for("giving it back"):
            await blocking_apart("giving back", lambda: run_inline(taker.give_back(taken)))


async def _write_back(
    nodes: OpenNodes,
    volume: VolumeId,
    write_backs: WriteBacks,
    below: BlockDevice,
    image: str,
    at: DirtyAt,
) -> Salvaged | None:
    """Write back what can be, to a device of which nobody else has anything."""
    begun = await write_backs.salvage(below, image, at.reach)
    if begun is None:
        return None
    try:
        await _drain(nodes, volume, begun)
    finally:
        await begun.close()
    return begun.result()


async def _drain(nodes: OpenNodes, volume: VolumeId, begun: WriteBackSalvage) -> None:
    try:
        is_done = await drain_while_it_goes_on(begun.drain, begun.carried_out, nodes.spawn)
    except UnreadableError as error:
        log.warning("volume %s: %s", volume, error)
        return
    if not is_done:
        raise InUseError(
            f"what is whole of the log of volume {volume} is being written back, and "
            f"{begun.left_bytes()} bytes are left, so nothing was discarded: discard again, and "
            "that goes on"
        )
