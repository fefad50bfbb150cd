"""Recalling a volume from whichever gateway has it: implements `Pool.recall`.

It is a taking (bockd.drivers.rbd.taking) that ends before the lock is taken: who has the volume is
asked firmly, and shut out if it does not answer in time, or at once by force. What a gateway that
was shut out had sent may lie in the queue of an OSD yet. Nobody sees it come: whoever takes the
volume next has the map in which that gateway is shut out, and so has each OSD that it asks for
anything.

A volume that is dirty at another gateway (`records`) is written back there first. If that cannot be
done, or lasts too long, it is not recalled, by force neither: what was answered would be lost, and
a gateway that hangs might answer more.

Nothing here keeps another gateway from taking the volume a moment later. The caller has changed a
record first, by which all of them refuse their clients; and who has taken a volume has seen all
that was committed before.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.opennodes import OpenNodes
from bockd.drivers.rbd.records import (
    RbdVolumeRecord,
    dirty_elsewhere,
    put_record,
    volume_record,
)
from bockd.drivers.rbd.session import CHANGING
from bockd.drivers.rbd.taking import C, ImageGoneError, Taker
from bockd.errors import NotFoundError, VolumeFailedError, VolumeTakenError
from bockd.model import VolumeId
from bockd.pool.index import Index, Transaction
from bockd.publictexts import discretion
from bockd.runtime.steps import Steps, blocking, blocking_apart, run_inline

log = logging.getLogger(__name__)


def recall(nodes: OpenNodes, volume: VolumeId, *, force: bool) -> Steps[str | None]:
    """See `Pool.recall`."""
    session = nodes.session
    ledger = session.taker.ledger

    async def steps() -> str | None:
        seen = await blocking_apart(CHANGING, ledger.look, volume)
        opened = nodes.volumes.get(volume)
        if opened is not None and opened.taken.epoch == seen.epoch:
            try:
                await opened.front.device.flush()
            except VolumeTakenError:
                seen = await blocking_apart(CHANGING, ledger.look, volume)
            except VolumeFailedError as error:
                told = discretion.text(error)
                if opened.front.log is None:
                    return told
                # As when it cannot be opened: that says so until the log is put back, or given up.
                nodes.refusals[volume] = str(error)
                return seen.failed
            else:
                return seen.failed
        elif opened is not None:
            opened.device.lost.fire()
        if await blocking_apart(
            "taking",
            lambda: run_inline(vacate(session.taker, session.index, seen, force=force)),
        ):
            log.warning("volume %s was recalled by force", volume)
        return seen.failed

    return nodes.exclusive_soon(volume, steps)


async def vacate(taker: Taker[C], index: Index, seen: RbdVolumeRecord, *, force: bool) -> bool:
    """Have no gateway have a volume that had it when its record was seen. Return whether one was
    shut out, or has died. In one thread call (`run_inline`). Raises DirtyElsewhereError,
    BockdError."""
    if seen.dirty_elsewhere(taker.who.gateway):
        seen = await taker.look_clean(seen.id, Manner.FIRM)
    try:
        claim = await blocking(taker.open_claim, seen.image)
    except ImageGoneError as error:
        log.warning("recalling volume %s: %s", seen.id, error)  # nobody can have it
    else:
        try:
            await taker.vacate(claim, seen, None if force else Manner.FIRM)
        finally:
            await blocking(claim.close)
    here = taker.who.gateway
    return await blocking(index.update, lambda txn: _forget_holder(txn, seen, here))


def _forget_holder(txn: Transaction, seen: RbdVolumeRecord, here: str) -> bool:
    """Write down that nobody has a volume, unless whoever had it has, or it is another one's. Its
    epoch goes on, so that who was shut out finds that it is not the last any more. Raises
    DirtyElsewhereError: a gateway has made it dirty until now, and is to write it back."""
    try:
        now = volume_record(txn, seen.id)
    except NotFoundError:
        return False
    if now.dirty_elsewhere(here):
        raise dirty_elsewhere(now)
    if now.epoch != seen.epoch or now.holder is None:
        return False
    put_record(txn, replace(now, holder=None, run=None, address=None, epoch=now.epoch + 1))
    return True
