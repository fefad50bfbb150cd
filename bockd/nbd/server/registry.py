"""Which connections an export has, and what has to be known of all of them: fences and drains.

A *fence* makes a reconnect safe, since NBD has no client identity: before a new connection is told
that it may go on, whatever older connections of its export had sent by then is received and its
writes are finished, and those that hung up are dropped. A stale write then never lands on newer
data. What is still on its way through a network is fenced only by detaching.

A device that another gateway takes is *lost* (`SharedDevice`). Then no request may be answered any
more, and an error would make the client's file system read-only: all connections that use the
device end at once, whatever they are doing. Clients connect again, and send again what was not
answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Protocol

import trio

from bockd.failurelog import FailureLog
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.heat import Heat
from bockd.nbd.server.statistics import ExportStatistics
from bockd.pool.device import BlockDevice, SharedDevice
from bockd.runtime.steps import Signal


class Member(Protocol):
    """A connection in transmission, as the registry needs it."""

    export_name: str
    """The name under which it reached the export."""

    closed: trio.Event
    """Set when its last engine operation is finished and its socket is closed."""

    def stop_receiving(self) -> None:
        """End the connection when all that it has received is carried out and answered."""
        ...

    def drop(self) -> None:
        """End the connection without answering more. Engine operations that have begun are
        finished."""
        ...

    def abandon(self) -> None:
        """End the connection as `drop` does, but without waiting: the client finds it ended now."""
        ...

    async def received_all(self) -> None:
        """Return when all that its socket holds now was received and handed to the engine, or when
        it has closed."""
        ...

    async def writes_finished(self) -> None:
        """Return when the engine operations that have begun by now are finished."""
        ...

    def hung_up(self) -> bool: ...

    def in_flight(self) -> int:
        """Return how many requests wait in the background."""
        ...

    def idle(self) -> bool:
        """Return whether a fence has nothing to do here. Most connections are idle, and with
        hundreds of them a task for each at every new connection would cost more than all else."""
        ...


class ExportState:
    """One export's connections and counters."""

    def __init__(self, name: str, statistics: ExportStatistics) -> None:
        self.name = name
        self.members: dict[Member, BlockDevice] = {}
        """What each uses; in the order they came."""
        self.statistics = statistics
        self._followed: Signal | None = None

    def admit(self, member: Member, device: BlockDevice) -> None:
        """Enter a connection, which ends at once when its device is lost."""
        self.members[member] = device
        if not isinstance(device, SharedDevice):
            return
        # Once for all its connections: a signal remembers who has subscribed.
        if device.lost is not self._followed or device.lost.fired:
            self._followed = device.lost
            device.lost.subscribe(lambda: self.abandon(device))

    def abandon(self, device: BlockDevice) -> None:
        """End the connections that use a device, at once."""
        for member, used in list(self.members.items()):
            if used is device:
                member.abandon()


class Registry:
    """All exports that have, or had, connections."""

    def __init__(self, fence_seconds: float, failures: FailureLog) -> None:
        self._fence_seconds = fence_seconds
        self._failures = failures
        self._exports: dict[ExportKey, ExportState] = {}
        self.forgotten = ExportStatistics()
        """What the exports had counted that were forgotten, together."""

    def __iter__(self) -> Iterator[tuple[ExportKey, ExportState]]:
        return iter(sorted(self._exports.items()))

    def state(self, key: ExportKey, name: str) -> ExportState:
        """Return the state of an export. It is made when it is first asked for."""
        state = self._exports.get(key)
        if state is None:
            # Not by the name: that of an attachment is a secret.
            note = partial(self._failures.note, f"{key.kind} {key.id}")
            state = self._exports[key] = ExportState(name, ExportStatistics(note))
        state.name = name
        return state

    def watch(self, key: ExportKey, heat: Heat | None) -> None:
        """Have the requests of an export looked at, or no more; nothing happens if nobody has it
        open."""
        if (state := self._exports.get(key)) is not None:
            state.statistics.heat = heat

    def written_bytes(self, key: ExportKey) -> int:
        """Return the bytes written to an export; 0 if nobody has used it."""
        state = self._exports.get(key)
        return state.statistics.written_bytes if state else 0

    def forget(self, key: ExportKey) -> None:
        """Drop the counters of an export that has no connections, and that nobody records."""
        state = self._exports.get(key)
        if state is not None and not state.members and state.statistics.trace is None:
            self.forgotten.merge(self._exports.pop(key).statistics)

    def connections(self, key: ExportKey, name: str | None = None) -> int:
        """Count the clients that are connected to an export; with `name`, only those that used
        it."""
        return len(self._members(key, name))

    def _members(self, key: ExportKey, name: str | None = None) -> list[Member]:
        state = self._exports.get(key)
        members = state.members if state else ()
        return [member for member in members if name in (None, member.export_name)]

    async def fence(self, newcomer: Member, key: ExportKey) -> None:
        """Wait until everything that older connections have sent is received and carried out. Those
        that hung up, or whose data was not received in time, are dropped."""
        async with trio.open_nursery() as nursery:
            for member in self._members(key):
                if member is newcomer:
                    break  # members are in the order they came
                if not member.idle():
                    nursery.start_soon(self._fence_one, member)

    async def _fence_one(self, member: Member) -> None:
        with trio.move_on_after(self._fence_seconds) as scope:
            await member.received_all()
        if scope.cancelled_caught or member.hung_up():
            member.drop()
            await member.closed.wait()
        else:
            await member.writes_finished()

    async def drain(self, key: ExportKey) -> None:
        """Wait until the engine operations that an export's connections have begun are finished."""
        for member in self._members(key):
            await member.writes_finished()

    async def wind_up(self, key: ExportKey, seconds: float) -> None:
        """End all connections of an export, once what they have sent by now is carried out and
        answered; after `seconds` at once."""
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for member in self._members(key):
                    nursery.start_soon(_wind_up_one, member)
        for member in self._members(key):
            member.abandon()

    async def drain_and_close(self, key: ExportKey, name: str, seconds: float) -> None:
        """End the connections that came to an export under a name, once what they have sent by now
        is carried out and answered; after `seconds` as `disconnect` does."""
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for member in self._members(key, name):
                    nursery.start_soon(_wind_up_one, member)
        await self.disconnect(key, name)

    async def disconnect(self, key: ExportKey, name: str | None = None) -> None:
        """End all connections of an export, or those that came to it under a name; what they have
        begun is finished first."""
        members = self._members(key, name)
        for member in members:
            member.drop()
        for member in members:
            await member.closed.wait()


async def _wind_up_one(member: Member) -> None:
    # Only what is there now: a client that gets its answers may go on sending for ever.
    await member.received_all()
    member.stop_receiving()
    await member.closed.wait()
