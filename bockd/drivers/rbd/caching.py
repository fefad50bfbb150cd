"""How a volume is cached at the gateway that has it: shown, chosen, and what is dirty given up.

Implements `bockd.pool.pool.VolumeCaches`.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from bockd.drivers.rbd.draining import drain_while_it_goes_on
from bockd.drivers.rbd.gateways import gateway
from bockd.drivers.rbd.inquiry import Inquiry
from bockd.drivers.rbd.messages import DRAIN_SECONDS, Manner
from bockd.drivers.rbd.opened import refuse_dirty
from bockd.drivers.rbd.opennodes import OpenNodes
from bockd.drivers.rbd.patience import Patience
from bockd.drivers.rbd.records import (
    RbdVolumeRecord,
    put_record,
    same_log,
    unchanged,
    volume_record,
)
from bockd.drivers.rbd.salvaging import salvage
from bockd.drivers.rbd.session import CHANGING
from bockd.drivers.rbd.vacating import vacate
from bockd.drivers.rbd.writebacks import WriteBackDevice
from bockd.errors import (
    BockdError,
    ConflictError,
    DamagedError,
    InUseError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    UnreadableError,
)
from bockd.model import CacheMode, NodeKind, VolumeId
from bockd.pool.caches import CacheState, Salvaged
from bockd.pool.gateways import Gateway
from bockd.pool.index import Transaction
from bockd.pool.pool import WithVolume, nothing_more
from bockd.pool.records import VolumeRecord
from bockd.publictexts import concealed, discretion
from bockd.runtime.steps import Steps, blocking_apart, try_spawn

log = logging.getLogger(__name__)

_UNREADABLE = (DamagedError, UnreadableError, ConflictError)
"""What opening or draining a volume raises if its log is damaged, cannot be read, or is in a
directory that is not there (`Fronts.refuse_dirty`). After all other errors the log may be
intact."""


class CacheOperations:
    """For the owner thread."""

    def __init__(self, nodes: OpenNodes) -> None:
        self._nodes = nodes
        self._session = nodes.session

    def state(self, record: VolumeRecord) -> CacheState:
        """See `VolumeCaches.state`."""
        try:
            with self._session.index.reading() as txn:
                found = volume_record(txn, record.id)
        except NotFoundError:  # deleted since
            return CacheState(CacheMode.WRITE_THROUGH)
        state = CacheState(
            found.cache,
            discarded_at=None if found.discarded is None else found.discarded.at,
            salvaged=found.salvaged,
        )
        if found.dirty_at is not None:
            at = found.dirty_at
            state = replace(state, dirty_at=at.gateway, dirty_since=at.since)
        opened = self._nodes.volumes.get(record.id)
        if opened is None:
            return state
        if opened.front.log is None:
            if found.cache is CacheMode.WRITE_BACK:
                state = replace(state, trouble="this gateway serves it write-through; see its log")
            return state
        if found.dirty_at is None:
            return replace(state, trouble=opened.front.log.trouble)
        dirty, since = opened.front.log.dirty()
        return replace(
            state,
            dirty_bytes=dirty,
            dirty_since=state.dirty_since if since is None else since,
            trouble=opened.front.log.trouble,
        )

    def failure(self, record: VolumeRecord) -> str | None:
        """Return why a volume that is dirty here could not be opened when that was last tried, for
        everybody: without names of files."""
        if record.id not in self._nodes.refusals:
            return None
        state = self.state(record)
        if state.dirty_at != self._session.who.gateway:
            return None
        return (
            f"volume {record.id} ({record.name}) is refused: gateway {state.dirty_at} has answered "
            "writes to it that are not in the cluster, and cannot read them: the service's "
            "operator finds the reason in its log, and can put the write-back log back. Only if "
            "that is lost for good, those writes are to be given up (bock volume discard-cache)"
        )

    # -- choosing ----------------------------------------------------------------------------

    def set_mode(
        self, volume: VolumeId, mode: CacheMode, in_transaction: WithVolume = nothing_more
    ) -> Steps[None]:
        """See `VolumeCaches.set_mode`."""

        def choose() -> None:
            seen = vacate(self._session, volume)

            def change(txn: Transaction) -> None:
                now = unchanged(txn, seen)
                refuse_dirty(now)
                record = replace(now, cache=mode)
                put_record(txn, record)
                in_transaction(txn, record)

            self._session.index.update(change)

        async def steps() -> None:
            if mode is CacheMode.WRITE_BACK and self._nodes.fronts.write_backs is None:
                raise InvalidRequestError(
                    f"gateway {self._session.who.gateway} has no place for what is written back "
                    "later: name a directory in its configuration (write_back.directory), or ask a "
                    "gateway that has one"
                )
            self._nodes.refuse_used(NodeKind.VOLUME, volume)
            await self._nodes.close_volume(volume)
            await blocking_apart(CHANGING, choose)

        return self._nodes.exclusive_soon(volume, steps)

    # -- giving up ---------------------------------------------------------------------------

    def discard(self, volume: VolumeId, in_transaction: WithVolume = nothing_more) -> Steps[None]:
        """See `VolumeCaches.discard`."""
        patience = Patience(f"nothing of volume {volume} was discarded")

        async def steps() -> None:
            self._nodes.refuse_used(NodeKind.VOLUME, volume)
            seen, asked = await blocking_apart(CHANGING, self._look_dirty, volume)
            try:
                is_written_back = await self._is_written_back(volume, patience)
            except BockdError:
                self._leave_to_background(volume)
                raise
            if is_written_back:
                log.info("volume %s: all was written back, so nothing was discarded", volume)
                return
            with patience.waiting_for("giving it back"):
                await self._nodes.close_volume(volume, keep_dirty=True)
            patience.check()
            salvaged: Salvaged | None = None
            if asked is None:  # this gateway may have had it open since
                salvaged = await self._salvage(volume, patience)
                patience.check()
                seen = await blocking_apart(CHANGING, self._look_again, seen)
                if self._may_be_at_another_run(seen):
                    here = self._session.who.gateway
                    asked = await blocking_apart(CHANGING, self._refuse_alive, seen, here)
            record = await blocking_apart(
                CHANGING, self._discard, seen, asked, in_transaction, patience, salvaged
            )
            self._nodes.refusals.pop(volume, None)
            self._nodes.left_dirty.pop(volume, None)
            await self._nodes.fronts.discard_log(record.image, keep=True)

        # What hangs keeps its turn: nobody else may open the volume meanwhile.
        return patience.answer(lambda: self._nodes.exclusive_soon(volume, steps), self._nodes.spawn)

    def _may_be_at_another_run(self, seen: RbdVolumeRecord) -> bool:
        """Return whether a run of this gateway's name that is not this one had a volume last, which
        this one could not open since: it may live on another machine, with the log."""
        who = self._session.who
        return seen.holder == who.gateway and seen.run not in (None, who.run)

    async def _is_written_back(self, volume: VolumeId, patience: Patience) -> bool:
        """Try to write back what is dirty here, which is better than to give it up. Return False:
        it is not dirty here, or its log cannot be read, nor when it was opened anew. Raises
        InUseError: it goes on; UnavailableError: it may be written back yet."""
        if not self._nodes.is_dirty_here(volume):
            return False
        for anew in (False, True):
            error = await self._write_back(volume, patience, anew=anew)
            if not self._nodes.is_dirty_here(volume):
                return True
            if not isinstance(error, _UNREADABLE):
                raise _not_given_up(volume, error)
            log.warning("volume %s cannot be written back: %s", volume, error)
            patience.check()
        return False

    async def _salvage(self, volume: VolumeId, patience: Patience) -> Salvaged | None:
        """Write back what the log of a volume has before its damage. Raises BockdError: nothing is
        to be given up yet."""
        try:
            return await salvage(self._nodes, volume, patience)
        except InUseError:
            raise
        except BockdError as error:
            raise _not_given_up(volume, error) from error

    def _leave_to_background(self, volume: VolumeId) -> None:
        """Have a volume that is not given up written back in the background: it is tried again,
        though it could not be read at first (`write_back_left`), or closed, if it is open: else it
        would keep its lock, and the place of one that is open."""
        self._nodes.refusals.pop(volume, None)
        if volume not in self._nodes.volumes:
            return
        if not try_spawn(self._nodes.spawn, self._close_idle(volume)):
            log.warning("volume %s is not closed before bockd ends", volume)

    async def _close_idle(self, volume: VolumeId) -> None:
        try:
            await self._nodes.close_idle(NodeKind.VOLUME, volume)
        except BockdError as error:
            log.warning("closing volume %s: %s", volume, error)

    async def _write_back(
        self, volume: VolumeId, patience: Patience, *, anew: bool
    ) -> BockdError | None:
        """Write back what is dirty here, and close the volume; `anew`: open it again for that. One
        that has failed is refused, whatever its disk has come to. Return what was in the way.
        Raises InUseError: a client or gateway uses it, or it goes on."""
        try:
            if anew:
                with patience.waiting_for("giving it back"):
                    await self._nodes.close_volume(volume, keep_dirty=True)
            opened = self._nodes.volumes.get(volume)
            if opened is None:
                opened = await self._nodes.open_volume(volume, Manner.POLITE, patience.waiting_for)
            patience.check()
            if opened.front.log is not None:
                await self._drain(volume, opened.front.log)
            with patience.waiting_for("giving it back"):
                await self._nodes.close_volume(volume)
        except InUseError:
            raise
        except BockdError as error:
            log.debug("writing volume %s back: %s", volume, error)
            return error
        return None

    async def _drain(self, volume: VolumeId, dirty: WriteBackDevice) -> None:
        """Write back what is dirty, before the volume is closed: while it is not, writes go into
        the log as ever. Raises InUseError: it goes on; BockdError."""
        if not await drain_while_it_goes_on(dirty.drain, dirty.carried_out, self._nodes.spawn):
            raise InUseError(
                f"volume {volume} is being written back, and {dirty.dirty()[0]} bytes are left, so "
                "nothing was discarded: look again in a while"
            )

    def _look_dirty(self, volume: VolumeId) -> tuple[RbdVolumeRecord, Inquiry | None]:
        """Return the record of a volume whose dirty data may be given up here: it is dirty, and at
        no gateway that lives but this one; and the runs that were asked. None: it is dirty here.
        Blocks."""
        seen = self._session.tenures.look(volume)
        if seen.dirty_elsewhere(self._session.who.gateway):
            keeper = self._session.bus.ask(seen.image, Manner.POLITE, DRAIN_SECONDS)
            seen = self._session.tenures.look(volume)
            if keeper is not None:
                raise InUseError(
                    f"clients of gateway {keeper} use volume {volume} ({seen.name}): disconnect "
                    "them, and it is written back"
                )
        if seen.dirty_at is None:
            raise ConflictError(
                f"all that was answered of volume {volume} ({seen.name}) is in the cluster: there "
                "is nothing to discard"
            )
        if seen.dirty_elsewhere(self._session.who.gateway):
            return seen, self._refuse_alive(seen, seen.dirty_at.gateway)
        return seen, None

    def _refuse_alive(self, seen: RbdVolumeRecord, name: str) -> Inquiry:
        """Raise InUseError if a gateway lives: a run that the table has of it meanwhile, or the one
        that had the volume last. Return what was asked. Raises UnavailableError: that is not
        known."""
        asked = Inquiry()
        self._ask(seen, name, asked)
        return asked

    def _ask(self, seen: RbdVolumeRecord, name: str, asked: Inquiry) -> None:
        """Ask the runs of a gateway until it is certain, or, after what may last, once more. Raises
        as `_refuse_alive` does."""

        def runs() -> list[str]:
            # A change of nothing, which begins with what the others have committed.
            found = self._session.index.update(lambda txn: self._other_run(txn, name))
            asked.see(found)
            known = set(asked.runs)
            if seen.holder == name and seen.run is not None:
                known.add(f"{name}/{seen.run}")
            if found is not None:
                known.add(f"{name}/{found.run}")
            return sorted(known)

        if self._session.bus.find_alive(runs, asked) is not None:
            raise _is_running(seen, name)

    def _other_run(self, txn: Transaction, name: str) -> Gateway | None:
        """Return what the table has of a gateway, unless it is this very run."""
        found = gateway(txn, name)
        who = self._session.who
        return None if found is None or (name, found.run) == (who.gateway, who.run) else found

    def _look_again(self, seen: RbdVolumeRecord) -> RbdVolumeRecord:
        """Return the record of a volume as it is now, with the image, and dirty in the log, that
        were seen. Raises InUseError: another gateway has changed that; BockdError. Blocks."""
        now = self._session.tenures.look(seen.id)
        if now.image != seen.image or not same_log(now.dirty_at, seen.dirty_at):
            raise _was_changed(seen)
        return now

    def _discard(
        self,
        seen: RbdVolumeRecord,
        asked: Inquiry | None,
        in_transaction: WithVolume,
        patience: Patience,
        salvaged: Salvaged | None,
    ) -> RbdVolumeRecord:
        """Shut whoever has the volume out, and then write down that nothing is dirty. Raises
        InUseError: a run of the gateway where it is dirty was not asked, or is back;
        UnavailableError: or was asked too long ago. Blocks."""
        at = seen.dirty_at
        assert at is not None

        def refuse_unasked(txn: Transaction) -> None:
            if asked is None:
                return
            found = self._other_run(txn, at.gateway)
            if found is not None and found != asked.entry:
                raise InUseError(
                    f"gateway {found.name}, which has answered writes to volume {seen.id} "
                    f"({seen.name}) that are not in the cluster, has just been started, or is "
                    "back, so nothing was discarded: it writes them back, if it can; look again in "
                    "a while"
                )
            asked.refuse_late()

        def change(txn: Transaction, record: VolumeRecord) -> None:
            in_transaction(txn, record)
            refuse_unasked(txn)  # as late as may be

        # Opening has no limit, nor has breaking the lock, or closing.
        with patience.waiting_for("opening its image"):
            claim = self._session.taker.open_claim(seen.image)
        try:
            patience.check()
            if asked is not None:
                self._ask(seen, at.gateway, asked)
            self._session.index.update(refuse_unasked)
            with patience.waiting_for("breaking the lock of its image"):
                if (owner := claim.owner()) is not None:
                    claim.break_lock(owner)
        finally:
            with patience.waiting_for("closing its image"):
                claim.close()
        patience.check()
        # What this gateway had given back since it was seen is no other one's change.
        now = self._look_again(seen)
        if now.epoch != seen.epoch:
            raise _was_changed(seen)
        record = self._session.tenures.discard(now, self._session.clock(), change, salvaged)
        log.warning(
            "volume %s (%s): what gateway %s had answered and not written back was discarded%s",
            seen.id,
            seen.name,
            at.gateway,
            "" if salvaged is None else f"; {_told(salvaged)}",
        )
        return record


def _told(salvaged: Salvaged) -> str:
    return (
        f"the last attempt wrote back {salvaged.written_bytes} bytes of its log, and "
        f"{salvaged.given_up_bytes} were given up"
    )


def _was_changed(seen: RbdVolumeRecord) -> InUseError:
    return InUseError(
        f"another gateway has just opened or written back volume {seen.id} ({seen.name}); try again"
    )


def _is_running(seen: RbdVolumeRecord, name: str) -> InUseError:
    return InUseError(
        f"gateway {name}, which has answered writes to volume {seen.id} ({seen.name}) that are not "
        "in the cluster, is running: it writes them back, or is to be asked itself to discard them"
    )


def _not_given_up(volume: VolumeId, error: BockdError | None) -> UnavailableError:
    """Build the error that says why what is dirty was neither written back nor given up."""

    def text(reason: str) -> str:
        return (
            f"volume {volume} is not written back yet, and its log may be intact, so nothing was "
            f"discarded: {reason}. Remedy that, and it is written back by itself. Only if it is "
            "never to be, have the service's operator stop bockd, move the volume's log out of "
            "write_back.directory, and start bockd; then discard again"
        )

    if error is None:
        return UnavailableError(text("the index has it as dirty still"))
    return concealed(UnavailableError(text(str(error))), text(discretion.text(error)))
