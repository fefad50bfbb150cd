"""What goes wrong when one rule of taking a volume is left out, for the schedules to notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.records import (
    DirtyAt,
    Identity,
    RbdVolumeRecord,
    Tenures,
    put_record,
    volume_record,
)
from bockd.drivers.rbd.taking import Taken, Taker
from bockd.errors import InUseError
from bockd.model import VolumeId
from bockd.pool.index import Transaction
from bockd.runtime.steps import blocking

from .takers import Connection, World


class NeverCatchesUp(Taker[Connection]):
    """Nobody asks for the latest map."""

    async def _win(self, claim: Connection, seen: RbdVolumeRecord, manner: Manner) -> int | None:
        await self.vacate(claim, seen, manner)
        if not await blocking(claim.lock):
            return None
        return await self._record(claim, seen)


class CatchesUpAfterBreaking(Taker[Connection]):
    """The latest map is asked for only by who has shut somebody out itself."""

    async def _win(self, claim: Connection, seen: RbdVolumeRecord, manner: Manner) -> int | None:
        owner = await blocking(claim.owner)
        await self.vacate(claim, seen, manner)
        if not await blocking(claim.lock):
            return None
        if owner is not None:
            await blocking(claim.catch_up)
        return await self._record(claim, seen)


class TakesTheNameForIt(Taker[Connection]):
    """Whoever has the lock is taken for an earlier run if the record names one."""

    async def vacate(self, claim: Connection, seen: RbdVolumeRecord, manner: Manner | None) -> None:
        await super().vacate(claim, replace(seen, address=await blocking(claim.owner)), manner)


class AsksNobody(Taker[Connection]):
    """The lock is broken at once."""

    async def vacate(self, claim: Connection, seen: RbdVolumeRecord, manner: Manner | None) -> None:
        if (owner := await blocking(claim.owner)) is not None:
            await blocking(claim.break_lock, owner)


class AsksItself(Taker[Connection]):
    """An earlier run of this gateway is asked as any other."""

    async def vacate(self, claim: Connection, seen: RbdVolumeRecord, manner: Manner | None) -> None:
        await super().vacate(claim, replace(seen, holder=None), manner)


class DoesNotListen(Taker[Connection]):
    """Who keeps the volume is shut out."""

    async def vacate(self, claim: Connection, seen: RbdVolumeRecord, manner: Manner | None) -> None:
        try:
            await super().vacate(claim, seen, manner)
        except InUseError:
            if (owner := await blocking(claim.owner)) is not None:
                await blocking(claim.break_lock, owner)


class NeverGivesUp(Taker[Connection]):
    """It is tried until it succeeds."""

    async def take(self, volume: VolumeId, manner: Manner) -> Taken[Connection]:
        while True:
            try:
                return await super().take(volume, manner)
            except InUseError as error:
                if "times before" not in str(error):
                    raise


class LeavesOpen(Taker[Connection]):
    """A claim that came to nothing is not closed."""

    async def take(self, volume: VolumeId, manner: Manner) -> Taken[Connection]:
        seen = await blocking(self.ledger.look, volume)
        claim = await blocking(self.open_claim, seen.image)
        epoch = await self._win(claim, seen, manner)
        if epoch is None:
            raise InUseError("another gateway was faster")
        return Taken(claim, seen, epoch)


class RecordedAnyway(Tenures):
    """The record is changed whatever others have done to it."""

    def begin(self, seen: RbdVolumeRecord, who: Identity, address: str) -> int | None:
        return super().begin(self.look(seen.id), who, address)


class EndedAnyway(Tenures):
    """Who gives a volume back says that nobody has it, though somebody has taken it since."""

    def end(self, volume: VolumeId, epoch: int) -> None:
        def change(txn: Transaction) -> None:
            put_record(
                txn, replace(volume_record(txn, volume), holder=None, run=None, address=None)
            )

        self._index.update(change)


class TakenThoughDirty(Tenures):
    """The record is looked at before the lock is taken, and not again."""

    def begin(self, seen: RbdVolumeRecord, who: Identity, address: str) -> int | None:
        now = self.look(seen.id)
        self._index.update(lambda txn: put_record(txn, replace(now, dirty_at=None)))
        epoch = super().begin(seen, who, address)

        def put_back(txn: Transaction) -> None:
            put_record(txn, replace(volume_record(txn, seen.id), dirty_at=now.dirty_at))

        self._index.update(put_back)
        return epoch


class DirtyAnyway(Tenures):
    """A gateway makes a volume dirty that another one has taken."""

    def mark_dirty(self, volume: VolumeId, epoch: int, dirty: DirtyAt, directory: str) -> None:
        super().mark_dirty(volume, self.look(volume).epoch, dirty, directory)


TAKERS: tuple[type[Taker[Connection]], ...] = (
    NeverCatchesUp,
    AsksNobody,
    DoesNotListen,
    NeverGivesUp,
    LeavesOpen,
)

TENURES: tuple[type[Tenures], ...] = (RecordedAnyway, EndedAnyway, TakenThoughDirty, DirtyAnyway)


def _with_taker(kind: type[Taker[Connection]]) -> Callable[[Callable[[int], int]], World]:
    return lambda choose: World(choose, taker=kind)


def _with_tenures(kind: type[Tenures]) -> Callable[[Callable[[int], int]], World]:
    return lambda choose: World(choose, tenures=kind)


MUTATIONS: dict[str, Callable[[Callable[[int], int]], World]] = {
    "nobody is shut out": lambda choose: World(choose, breaking_shuts_out=False),
    "TakesTheNameForIt": lambda choose: World(choose, taker=TakesTheNameForIt, gateways=2),
    "AsksItself": lambda choose: World(choose, taker=AsksItself, gateways=1),
    **{kind.__name__: _with_taker(kind) for kind in TAKERS},
    **{kind.__name__: _with_tenures(kind) for kind in TENURES},
}
