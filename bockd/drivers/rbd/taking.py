"""Taking a volume: asking whoever has it, shutting out who does not answer, and locking its image.

What keeps two gateways from writing is Ceph's: an image's exclusive lock has one owner, and who
breaks it puts the owner's connection on the blocklist first. Each open volume has a connection of
its own, so nothing else is stopped with it. What remains to be done here is the order:

* The lock is broken only of an owner that was asked and is still the owner when the limit is over,
  or that cannot answer: an earlier run of this very gateway, or one that Ceph does not see watch
  the image any more. Of the earlier run the record must name the very connection; by the gateway's
  name alone, another one that has taken the volume a moment ago would be shut out unasked.
* **Nothing stale lands.** What an owner that was shut out had sent may still lie in the queue of an
  OSD that has not heard of the blocklist. It hears of it by what we send, if our connection has the
  map. So we ask for the monitors' latest map before we take the lock, as that writes to the image's
  own records; and again when it is ours, since until then owners may come and be shut out. Also if
  nobody was found to have the lock: whoever shut its last owner out may have died then.
* The record is changed only if it is as it was before the lock was taken. Otherwise one who was
  shut out meanwhile might write itself down over its successor. Who finds it changed begins again.
* Nothing is written to the volume before the record says who has it.
* A volume that is dirty at another gateway (`records`) is neither taken nor is that one shut out:
  it is asked to write back what it has, and has more time for that. It may make the volume dirty
  at any moment until it is shut out. So the record is looked at before that, and again when the
  lock is ours: the lock is given back then. That gateway finds that it was shut out, and takes the
  volume anew to write back what it has.

A gateway may die anywhere: what it leaves is a lock, and the next one breaks it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from bockd.drivers.rbd.messages import DRAIN_SECONDS, Manner
from bockd.drivers.rbd.records import Identity, RbdVolumeRecord, dirty_elsewhere
from bockd.errors import DamagedError, InUseError
from bockd.failpoints import Failpoint, hit
from bockd.model import VolumeId
from bockd.runtime.steps import blocking

TRIES = 3
"""Of one taking, when other gateways take the volume at the same time. Each asks once at most."""


class ImageGoneError(DamagedError):
    """The image itself is not in the namespace, which was looked at: nobody can have it open."""


class Claim(Protocol):
    """An image, open on a connection of its own. Everything blocks, and raises BockdError."""

    def owner(self) -> str | None:
        """Return the address of the connection that has the lock. None: nobody has."""
        ...

    def is_watching(self, owner: str) -> bool:
        """Return whether an owner has the image open, as far as Ceph knows. One that has died it
        takes for alive some time more."""
        ...

    def break_lock(self, owner: str) -> None:
        """Shut an owner out, and remove its lock. Do nothing if it is not the owner any more."""
        ...

    def catch_up(self) -> None:
        """Return when this connection has the monitors' latest map."""
        ...

    def lock(self) -> bool:
        """Take the lock. Return False: somebody has it."""
        ...

    def close(self) -> None:
        """Wait for what is under way, release the lock, and end the connection."""
        ...


C = TypeVar("C", bound=Claim)
C_co = TypeVar("C_co", bound=Claim, covariant=True)


class Asking(Protocol):
    """The other gateways."""

    def ask(self, image: str, manner: Manner, limit_seconds: float | None = None) -> str | None:
        """Ask whoever has an image to give it back. Blocks, until all have answered or the limit is
        over, which is the manner's unless it is given. Return the name of the gateway that keeps
        it, if one says so."""
        ...


class Ledger(Protocol):
    """Who has which volume, as the index says: `records.Tenures`."""

    def look(self, volume: VolumeId, /) -> RbdVolumeRecord: ...

    def begin(self, seen: RbdVolumeRecord, who: Identity, address: str, /) -> int | None: ...

    def end(self, volume: VolumeId, epoch: int, /) -> None: ...


@dataclass(frozen=True)
class Taken(Generic[C_co]):
    """A volume that this gateway has, to be given back."""

    claim: C_co
    record: RbdVolumeRecord
    """As it was found."""
    epoch: int


@dataclass(frozen=True)
class Taker(Generic[C]):
    """Takes volumes for one gateway, and gives them back.

    One thread call is to run each of these to its end (`run_inline`); they are steps for the sake
    of those who try all orders of them. One volume is taken or given back once at a time.
    """

    who: Identity
    open_claim: Callable[[str], C]
    """Opens an image by its name, on a new connection. Blocks. Raises ImageGoneError, DamagedError
    if it lacks what it needs, BockdError."""
    gateways: Asking
    ledger: Ledger

    async def take(self, volume: VolumeId, manner: Manner) -> Taken[C]:
        """Take a volume. Raises InUseError: another gateway keeps it, or others were faster each
        time; DirtyElsewhereError: and has not written it back; ImageGoneError; BockdError."""
        for _ in range(TRIES):
            seen = await self.look_clean(volume, manner)
            try:
                claim = await blocking(self.open_claim, seen.image)
            except ImageGoneError:
                # Unless the volume is gone, too, or has another image now.
                if (await blocking(self.ledger.look, volume)).image == seen.image:
                    raise
                continue
            try:
                hit(Failpoint.TAKE_OPENED)
                epoch = await self._win(claim, seen, manner)
            except BaseException:
                await blocking(claim.close)
                raise
            if epoch is not None:
                return Taken(claim, seen, epoch)
            await blocking(claim.close)
        raise InUseError(
            f"other gateways took volume {volume} {TRIES} times before this one could; try again"
        )

    async def give_back(self, taken: Taken[C]) -> None:
        """Give a volume back that nobody uses here any more. Raises BockdError: the record may name
        this gateway still, or the connection be open, but all that was answered is there."""
        await blocking(taken.claim.close)
        hit(Failpoint.GIVE_BACK_CLOSED)
        await blocking(self.ledger.end, taken.record.id, taken.epoch)

    async def look_clean(self, volume: VolumeId, manner: Manner) -> RbdVolumeRecord:
        """Return the record of a volume that is not dirty at another gateway: where it is, that one
        is asked to write it back and to give it up. Raises InUseError: it keeps it;
        DirtyElsewhereError: it is not done, or does not answer; BockdError."""
        seen = await blocking(self.ledger.look, volume)
        if not seen.dirty_elsewhere(self.who.gateway):
            return seen
        keeper = await blocking(self.gateways.ask, seen.image, manner, DRAIN_SECONDS)
        if keeper is not None:
            raise _kept(seen, keeper)
        return await self._refuse_dirty(volume)

    async def _refuse_dirty(self, volume: VolumeId) -> RbdVolumeRecord:
        """Return a record as it is now."""
        now = await blocking(self.ledger.look, volume)
        if now.dirty_elsewhere(self.who.gateway):
            raise dirty_elsewhere(now)
        return now

    async def vacate(self, claim: C, seen: RbdVolumeRecord, manner: Manner | None) -> None:
        """See to it that who has the lock of an image now will not have it: ask, or shut out.
        None: without asking. Raises InUseError: another gateway keeps it; DirtyElsewhereError: or
        would be shut out, and has not written it back; BockdError."""
        owner = await blocking(claim.owner)
        if owner is None:
            return
        ours = (seen.holder, seen.address) == (self.who.gateway, owner)
        if manner is not None and not ours and await blocking(claim.is_watching, owner):
            keeper = await blocking(self.gateways.ask, seen.image, manner)
            hit(Failpoint.TAKE_ASKED)
            if keeper is not None:
                raise _kept(seen, keeper)
            if await blocking(claim.owner) != owner:
                return
        await self._refuse_dirty(seen.id)
        await blocking(claim.break_lock, owner)
        hit(Failpoint.TAKE_BROKEN)

    async def _win(self, claim: C, seen: RbdVolumeRecord, manner: Manner) -> int | None:
        """Return the epoch in which the volume is ours. None: another gateway was faster."""
        await self.vacate(claim, seen, manner)
        await blocking(claim.catch_up)
        if not await blocking(claim.lock):
            return None
        hit(Failpoint.TAKE_LOCKED)
        await blocking(claim.catch_up)
        return await self._record(claim, seen)

    async def _record(self, claim: C, seen: RbdVolumeRecord) -> int | None:
        address = await blocking(claim.owner)
        if address is None:
            return None
        epoch = await blocking(self.ledger.begin, seen, self.who, address)
        hit(Failpoint.TAKE_RECORDED)
        return epoch


def _kept(seen: RbdVolumeRecord, keeper: str) -> InUseError:
    return InUseError(
        f"gateway {keeper} has volume {seen.id} ({seen.name}) open, and clients use it there"
    )
