"""What of a pool is open in this gateway, who uses it, and who excludes whom.

A volume is taken when it is first used (bockd.drivers.rbd.taking) and given back when it is closed:
by whoever closes idle ones, by an operation that needs it closed, or because another gateway asks
(bockd.drivers.rbd.releasing). One that another gateway has taken is *dropped*: it is not open here
any more from the moment in which that is known, and is closed in the background. Its users have not
left yet then, and may leave after others have begun to use the volume anew; so they are counted
apart, and whoever leaves first counts as one of them.

A volume that is dirty here (bockd.drivers.rbd.writebacks) is written back before it is given back.
That may last, and nobody who would use it here should wait for all of it; so it is begun before the
volume is excluded from use. What cannot be written back stays for the next opening: at the end of
the process, or if the volume was taken. No other gateway may have the volume until then.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import ParamSpec, TypeVar

from bockd.drivers.rbd.claims import RbdClaim
from bockd.drivers.rbd.device import RbdDevice
from bockd.drivers.rbd.fronts import Front, Fronts
from bockd.drivers.rbd.images import open_image
from bockd.drivers.rbd.lost import damaged_if_missing
from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.opened import OpenSnapshot, OpenVolume, refuse_unusable
from bockd.drivers.rbd.patience import WaitingFor, wait_for_turn
from bockd.drivers.rbd.records import (
    RbdSnapshotRecord,
    RbdVolumeRecord,
    snapshot_record,
    volume_record,
)
from bockd.drivers.rbd.session import Session
from bockd.drivers.rbd.taking import Taken
from bockd.drivers.rbd.writebacks import DirtyMarks
from bockd.errors import (
    BockdError,
    DamagedError,
    InUseError,
    NotFoundError,
    VolumeFailedError,
    VolumeTakenError,
)
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.pool.device import BlockDevice
from bockd.pool.records import refuse_trashed
from bockd.runtime.steps import Spawn, Steps, blocking_apart, run_inline, try_spawn
from bockd.runtime.waiting import Mutex

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class OpenNodes:
    """The volumes and snapshots that are open here. For the owner thread."""

    def __init__(self, session: Session, spawn: Spawn) -> None:
        self.session = session
        self.volumes: dict[VolumeId, OpenVolume] = {}
        self.snapshots: dict[SnapshotId, OpenSnapshot] = {}
        self.refusals: dict[VolumeId, str] = {}
        """Why volumes could not be opened when that was last tried."""
        self._said: dict[VolumeId, str] = {}
        """The same, of all errors, as the log has it."""
        self.left_dirty: dict[VolumeId, str] = {}
        """Those that may be dirty here and are not open, each with the image that would be."""
        self.spawn = spawn
        self.fronts = Fronts(spawn)
        self._busy: dict[int, Mutex] = {}
        self._dropped: Counter[tuple[NodeKind, int]] = Counter()
        """Users of what was dropped. Sums of `Counter` have no zeros."""
        self._opening = 0
        self._giving_back = 0
        """Of what was dropped."""

    async def exclusive(
        self, node: int, operation: Callable[P, Steps[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run an operation while no other one of this gateway runs on the same volume or snapshot.
        For those who wait without a limit: clients, and the background."""
        return await self._in_turn(node, False, operation, *args, **kwargs)

    async def exclusive_soon(
        self, node: int, operation: Callable[P, Steps[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do the same for somebody who waits for an answer. Raises ClusterUnavailableError, with
        nothing done: an earlier operation is not done in time, as when the image hangs."""
        return await self._in_turn(node, True, operation, *args, **kwargs)

    async def _in_turn(
        self,
        node: int,
        soon: bool,
        operation: Callable[P, Steps[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        mutex = self._busy.setdefault(node, Mutex())
        turn = mutex.join()
        try:
            if soon:
                await wait_for_turn(mutex, turn, f"volume or snapshot {node}")
            elif not turn.fired:
                await turn
            return await operation(*args, **kwargs)
        finally:
            mutex.withdraw(turn)
            if not mutex.held:
                self._busy.pop(node, None)

    def unfinished(self) -> int:
        """Return of how many volumes and snapshots something is open or under way. For any
        thread."""
        return len(self.volumes) + len(self.snapshots) + len(self._busy) + self._giving_back

    def dirty_bytes(self) -> int:
        """Return how much of what is open is to be written back. For any thread."""
        logs = [one.front.log for one in list(self.volumes.values())]
        return sum(one.dirty()[0] for one in logs if one is not None)

    def carried_out(self) -> int:
        """Return a number that changes whenever something of that has got below: also within an
        epoch, before it gets less. For any thread."""
        logs = [one.front.log for one in list(self.volumes.values())]
        return sum(one.carried_out() for one in logs if one is not None)

    # -- users -------------------------------------------------------------------------------

    def users(self, kind: NodeKind, node: int) -> int:
        """Return how many use a volume or snapshot here."""
        opened = self._opened(kind, node)
        return 0 if opened is None else opened.users

    def is_open(self, kind: NodeKind, node: int) -> bool:
        """Return whether a volume or snapshot is open here."""
        return self._opened(kind, node) is not None

    def _opened(self, kind: NodeKind, node: int) -> OpenVolume | OpenSnapshot | None:
        if kind is NodeKind.VOLUME:
            return self.volumes.get(VolumeId(node))
        return self.snapshots.get(SnapshotId(node))

    def leave(self, kind: NodeKind, node: int) -> None:
        """Count one user less."""
        if self._dropped[kind, node]:
            self._dropped -= Counter({(kind, node): 1})
            return
        opened = self._opened(kind, node)
        assert opened is not None
        opened.users -= 1

    # -- volumes -----------------------------------------------------------------------------

    def use_volume(self, volume: VolumeId, manner: Manner) -> Steps[BlockDevice]:
        """Take a volume, or join those who use it."""

        async def steps() -> BlockDevice:
            opened = self._still_ours(volume)
            if opened is None:
                opened = await self.open_volume(volume, manner)
            opened.users += 1
            return opened.front.device

        return self.exclusive(volume, steps)

    def _still_ours(self, volume: VolumeId) -> OpenVolume | None:
        """Return an open volume, as large as its record says: another gateway may have extended
        it. One that another gateway has taken or removed meanwhile is dropped. Raises BockdError
        (NotFoundError)."""
        opened = self.volumes.get(volume)
        if opened is None:
            return None
        try:
            record = self.record(volume)
        except NotFoundError:
            opened.device.lost.fire()
            raise
        if record.epoch != opened.taken.epoch:
            opened.device.lost.fire()
            return None
        if record.size_bytes > opened.device.size_bytes:
            opened.grow(record.size_bytes)
        return opened

    def drop_taken(self) -> None:
        """Drop the volumes that other gateways have taken, as the index has it by now: then users
        that ask for nothing find out, too."""
        for volume in list(self.volumes):
            try:
                self._still_ours(volume)
            except BockdError as error:
                log.debug("looking who has volume %s: %s", volume, error)

    def record(self, volume: VolumeId) -> RbdVolumeRecord:
        """Return the record of a volume, as this gateway knows it. Raises NotFoundError."""
        with self.session.index.reading() as txn:
            return volume_record(txn, volume)

    async def open_volume(
        self, volume: VolumeId, manner: Manner, waiting_for: WaitingFor = nullcontext
    ) -> OpenVolume:
        """Take a volume that is not open, with no users yet. What hangs while the cluster does not
        answer is done `waiting_for` it. Raises BockdError. The caller excludes others."""
        record = self.record(volume)
        refuse_unusable(record)
        if self.is_dirty_here(volume):
            try:
                # Before it is taken: another run of this name may have it, with the log.
                await self.fronts.refuse_dirty(record)
            except DamagedError as error:
                self._note_refusal(volume, error)
                raise
        limit = self.session.settings.max_open_volumes
        if len(self.volumes) + self._opening >= limit:
            raise InUseError(
                f"{limit} volumes are open in this gateway, as many as may be "
                "(rbd.max_open_volumes); use another gateway, or disconnect from some"
            )
        self._opening += 1
        try:
            with waiting_for("opening its image"):
                taken = await blocking_apart(
                    "taking", lambda: run_inline(self.session.taker.take(volume, manner))
                )
        except BockdError as error:
            self._note_refusal(volume, error)
            raise
        finally:
            self._opening -= 1
        try:
            opened = await self._fronted(volume, taken)
        except BaseException as error:
            if isinstance(error, BockdError):
                self._note_refusal(volume, error)
            # Nobody uses it; what is not given back would keep its lock until bockd ends.
            try:
                with waiting_for("giving it back"):
                    await blocking_apart(
                        "giving back", lambda: run_inline(self.session.taker.give_back(taken))
                    )
            except BockdError as error:
                log.warning("giving volume %s back: %s", volume, error)
            raise
        self.refusals.pop(volume, None)
        self._said.pop(volume, None)
        if self.left_dirty.get(volume) == taken.record.image:
            del self.left_dirty[volume]
        self.volumes[volume] = opened
        opened.device.lost.subscribe(lambda: self._on_lost(volume, opened))
        return opened

    async def _fronted(self, volume: VolumeId, taken: Taken[RbdClaim]) -> OpenVolume:
        # Not that of `taken`: it may have grown since that was read.
        record = self.record(volume)
        device = RbdDevice(
            taken.claim.image, f"volume {volume}", record.size_bytes, read_only=False
        )
        front = Front(device)
        if record.epoch == taken.epoch:  # else another gateway has it already
            marks = self._marks(volume, taken.epoch)
            front = await self.fronts.of_volume(device, record, taken.claim.owner, marks)
        return OpenVolume(taken, device, front)

    def _note_refusal(self, volume: VolumeId, error: BockdError) -> None:
        # What is dirty is tried every few seconds, and fails as it did before, mostly.
        level = logging.DEBUG if self._said.get(volume) == str(error) else logging.ERROR
        self._said[volume] = str(error)
        log.log(level, "volume %s cannot be opened: %s", volume, error)
        if isinstance(error, DamagedError | VolumeFailedError):
            self.refusals[volume] = str(error)

    def _on_lost(self, volume: VolumeId, opened: OpenVolume) -> None:
        """Another gateway has taken a volume: drop it."""
        if self.volumes.get(volume) is not opened:
            return
        log.warning("another gateway has taken volume %s", volume)
        self._drop(volume)
        self._giving_back += 1
        if not try_spawn(self.spawn, self._close_dropped(volume, opened)):
            self._giving_back -= 1
            log.warning("volume %s is not closed before bockd ends", volume)

    def _drop(self, volume: VolumeId) -> None:
        opened = self.volumes.pop(volume)
        self._dropped += Counter({(NodeKind.VOLUME, volume): opened.users})
        if opened.front.log is not None:
            # Also with nothing to write back: the record may call it dirty still, or again.
            self.left_dirty[volume] = opened.taken.record.image

    async def _close_dropped(self, volume: VolumeId, opened: OpenVolume) -> None:
        try:
            await self._give_back(opened)
        except BockdError as error:
            log.warning("closing volume %s: %s", volume, error)
        finally:
            self._giving_back -= 1

    def refuse_used(self, kind: NodeKind, node: int) -> None:
        """Raise InUseError while a volume or snapshot has users here."""
        if users := self.users(kind, node):
            if kind is NodeKind.SNAPSHOT:
                raise InUseError(f"snapshot {node} is being read; disconnect first")
            raise InUseError(f"volume {node} has {users} connection(s); disconnect first")

    async def close_volume(self, volume: VolumeId, *, keep_dirty: bool = False) -> None:
        """Give a volume back, if it is open, with nothing dirty here; or, with `keep_dirty`, leave
        that for the next opening. Its users count as those of a dropped one, and their requests
        fail from now on. Raises BockdError: it could not be written back, and is open still; or it
        is closed, but the record may name this gateway. The caller excludes others."""
        if keep_dirty:
            await self._close_volume(volume)
            return
        try:
            async with self.written_through(volume):
                await self._close_volume(volume)
        except VolumeTakenError as error:
            # It is not open here any more, and what is dirty stays.
            log.warning("writing volume %s back: %s", volume, error)

    async def _close_volume(self, volume: VolumeId) -> None:
        opened = self.volumes.get(volume)
        if opened is None:
            return
        self._drop(volume)
        # Before anything that waits for the cluster: users' requests end now.
        self.fronts.hide(opened.front)
        opened.device.lost.fire()
        await self._give_back(opened)

    async def _give_back(self, opened: OpenVolume) -> None:
        try:
            await self.fronts.retire(opened.front)
        except BockdError as error:
            log.warning("closing the log of volume %s: %s", opened.taken.record.id, error)
        try:
            await blocking_apart(
                "giving back", lambda: run_inline(self.session.taker.give_back(opened.taken))
            )
        finally:
            await self.fronts.close(opened.front)

    # -- writing back ------------------------------------------------------------------------

    @asynccontextmanager
    async def written_through(self, volume: VolumeId) -> AsyncIterator[None]:
        """Have all that this gateway has answered of a volume be in the cluster, and what comes
        meanwhile be answered when it is there. It is opened for that if it is dirty here. Raises
        BockdError. The caller excludes others."""
        opened = self.volumes.get(volume)
        if opened is None and self.is_dirty_here(volume):
            opened = await self.open_volume(volume, Manner.POLITE)
        if opened is None or opened.front.log is None:
            yield
            return
        async with self.fronts.written_through(opened.front):
            if self.is_dirty_here(volume):
                # A mark that was made after all, though the cluster had not answered.
                await self._marks(volume, opened.taken.epoch).clean()
            yield

    async def drain(self, volume: VolumeId) -> None:
        """Write back what is dirty of a volume, if it is open, while it is used. Errors are logged:
        the drain before it is closed meets them."""
        opened = self.volumes.get(volume)
        if opened is not None and opened.front.log is not None:
            try:
                await opened.front.log.drain()
            except VolumeTakenError as error:
                # Whoever took it, or closes it in order meanwhile, has said so.
                log.debug("writing volume %s back: %s", volume, error)
            except BockdError as error:
                log.warning("writing volume %s back: %s", volume, error)

    def is_dirty_here(self, volume: VolumeId) -> bool:
        """Return whether a volume is dirty at this gateway."""
        try:
            record = self.record(volume)
        except NotFoundError:
            return False
        here = self.session.who.gateway
        return record.dirty_at is not None and not record.dirty_elsewhere(here)

    def _marks(self, volume: VolumeId, epoch: int) -> DirtyMarks:
        session = self.session
        return DirtyMarks(session.tenures, session.who, session.clock, volume, epoch)

    # -- snapshots ---------------------------------------------------------------------------

    def use_snapshot(self, snapshot: SnapshotId) -> Steps[BlockDevice]:
        """Open a snapshot, or join those who read it."""

        async def steps() -> BlockDevice:
            opened = self.snapshots.get(snapshot)
            if opened is None:
                device, record, connection = await blocking_apart(
                    "opening snapshots", self._open_snapshot, snapshot
                )
                front = await self.fronts.of_snapshot(device, record)
                opened = OpenSnapshot(record.snap, device, front, connection)
                self.snapshots[snapshot] = opened
            opened.users += 1
            return opened.front.device

        return self.exclusive(snapshot, steps)

    def _open_snapshot(
        self, snapshot: SnapshotId
    ) -> tuple[RbdDevice, RbdSnapshotRecord, ExitStack]:
        with self.session.index.reading() as txn:
            record = snapshot_record(txn, snapshot)
        refuse_trashed(NodeKind.SNAPSHOT, record)
        with damaged_if_missing(self.session.index, record), ExitStack() as stack:
            _, ioctx = stack.enter_context(self.session.snapshots.use())
            image = open_image(ioctx, record.image, record.snap)
            connection = stack.pop_all()
        device = RbdDevice(image, f"snapshot {snapshot}", record.size_bytes, read_only=True)
        return device, record, connection

    async def close_snapshot(self, snapshot: SnapshotId) -> None:
        """Close a snapshot, if it is open. Its users count as those of a dropped one, and their
        requests fail from now on. The caller excludes others."""
        opened = self.snapshots.pop(snapshot, None)
        if opened is not None:
            self._dropped += Counter({(NodeKind.SNAPSHOT, snapshot): opened.users})
            self.fronts.hide(opened.front)
            opened.device.lost.fire()
            try:
                await opened.device.close()
            finally:
                await blocking_apart("closing images", opened.connection.close)
                await self.fronts.close(opened.front)

    # -- closing -----------------------------------------------------------------------------

    async def close_idle(self, kind: NodeKind, node: int) -> None:
        """Close what nobody uses. Do nothing when it is used."""

        async def steps() -> None:
            if self.users(kind, node) == 0:
                await self.close(kind, node)

        if kind is NodeKind.VOLUME and self.users(kind, node) == 0:
            await self.drain(VolumeId(node))
        await self.exclusive(node, steps)

    def close(self, kind: NodeKind, node: int) -> Steps[None]:
        """Close a volume or snapshot, if it is open. The caller excludes others."""
        if kind is NodeKind.VOLUME:
            return self.close_volume(VolumeId(node))
        return self.close_snapshot(SnapshotId(node))

    async def close_all(self) -> None:
        """Close everything; what is dirty stays for the next opening. Raises the first error, after
        trying all."""
        first_error: BockdError | None = None
        nodes = [(NodeKind.VOLUME, int(volume)) for volume in self.volumes]
        nodes += [(NodeKind.SNAPSHOT, int(snapshot)) for snapshot in self.snapshots]
        for kind, node in nodes:
            try:
                if kind is NodeKind.VOLUME:
                    closing = partial(self.close_volume, VolumeId(node), keep_dirty=True)
                else:
                    closing = partial(self.close_snapshot, SnapshotId(node))
                await self.exclusive(node, closing)
            except BockdError as error:
                log.error("closing %s %s: %s", kind, node, error)  # noqa: TRY400
                first_error = first_error or error
        await self.fronts.end()
        if first_error is not None:
            raise first_error

    # -- other gateways ----------------------------------------------------------------------

    def find(self, name: str) -> tuple[NodeKind, int] | None:
        """Return the volume of an image, or the snapshot of a snap, that is open here, or that an
        operation of this gateway is under way on."""
        for volume, opened in self.volumes.items():
            if opened.taken.record.image == name:
                return NodeKind.VOLUME, volume
        for snapshot, shown in self.snapshots.items():
            if shown.snap == name:
                return NodeKind.SNAPSHOT, snapshot
        with self.session.index.reading() as txn:
            for node in self._busy:
                with suppress(BockdError):
                    if volume_record(txn, VolumeId(node)).image == name:
                        return NodeKind.VOLUME, node
                with suppress(BockdError):
                    if snapshot_record(txn, SnapshotId(node)).snap == name:
                        return NodeKind.SNAPSHOT, node
        return None
