"""The VMs, under trio: one operation on a VM at a time, each a conversation in a thread.

A conversation is asyncio's (`bockd.vm.monitor`). Its thread has a loop of its own, so neither loop
knows of the other, and nothing outlives the operation. These threads are not the device's: a VM
that hangs keeps nobody from a disk. Every wait of a conversation has a limit, and so has an
operation.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import trio

from bockd.errors import BockdError, UnavailableError
from bockd.vm import disks
from bockd.vm.disks import Disk
from bockd.vm.monitor import Monitor, NotRunningError, conversation

T = TypeVar("T")

VM_THREADS = 16
"""Conversations at once. They wait more than they work; a VM that hangs takes one for long."""


TURN_SECONDS = 90.0
"""For the operations on the same VM that came first. In a VM that hangs they may take this long."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a VM should have."""

    disks: Sequence[Disk]
    """These are plugged in."""
    busy: Collection[str] = ()
    """Names that others are at work on: left as they are."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What `Machines.reconcile` did."""

    plugged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()
    """What could not be done, for the log."""


class Machines:
    """VMs by the paths of their QMP sockets."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(VM_THREADS)
        self._turns: dict[str, trio.Lock] = defaultdict(trio.Lock)
        self.unsettled: set[str] = set()
        """Where something failed, so that something may be left over; for the watch."""

    async def plug(self, socket: str, disk: Disk) -> None:
        """Make the VM's guest see the disk. See `bockd.vm.disks.plug`; NotRunningError when the VM
        does not run."""
        await self._converse(socket, lambda monitor: disks.plug(monitor, disk))

    async def unplug(self, socket: str, name: str, *, force: bool = False) -> None:
        """Take the disk out of the VM; a VM that is not running has none. See
        `bockd.vm.disks.unplug`."""
        # One that ended meanwhile, too.
        with suppress(NotRunningError):
            await self._converse(socket, lambda monitor: disks.unplug(monitor, name, force=force))

    async def resize(self, socket: str, disk: Disk) -> None:
        """Make a disk of the VM as large as its volume; a VM that is not running has none, and gets
        the right size when it starts. See `bockd.vm.disks.resize`."""
        with suppress(NotRunningError):
            await self._converse(socket, lambda monitor: disks.resize(monitor, disk))

    async def reconcile(self, socket: str, prefix: str, wanted: Callable[[], Wanted]) -> Reconciled:
        """Plug in what the VM should have, in its size, and take out what is left over of ours: the
        disks whose names begin with `prefix`. `wanted` is called when it is this operation's turn.
        Trouble with one disk does not stop the others. An error is raised when there is no
        conversation."""
        async with self._turn(socket):
            now = wanted()
            return await self._in_thread(socket, lambda monitor: _reconcile(monitor, prefix, now))

    async def _converse(self, socket: str, talk: Callable[[Monitor], Awaitable[T]]) -> T:
        try:
            async with self._turn(socket):
                return await self._in_thread(socket, talk)
        except BockdError:
            self.unsettled.add(socket)
            raise

    @asynccontextmanager
    async def _turn(self, socket: str) -> AsyncIterator[None]:
        turn = self._turns[socket]
        with trio.move_on_after(TURN_SECONDS) as waiting:
            await turn.acquire()
        if waiting.cancelled_caught:
            raise UnavailableError(
                f"other operations on the VM have taken more than {TURN_SECONDS:g} s; "
                "look whether it hangs"
            )
        try:
            yield
        finally:
            turn.release()

    async def _in_thread(self, socket: str, talk: Callable[[Monitor], Awaitable[T]]) -> T:
        async def conversed() -> T:
            async with conversation(socket) as monitor:
                return await talk(monitor)

        return await trio.to_thread.run_sync(
            lambda: asyncio.run(conversed()), limiter=self._threads
        )


async def _reconcile(monitor: Monitor, prefix: str, wanted: Wanted) -> Reconciled:
    there = await disks.present(monitor, prefix)
    left_over = there - {disk.name for disk in wanted.disks} - set(wanted.busy)
    plugged, removed, troubles = [], [], []
    for disk in wanted.disks:
        try:
            if await disks.plug(monitor, disk):
                plugged.append(disk.name)
        except NotRunningError:
            raise
        except BockdError as error:
            troubles.append(f"{disk.serial}: {error}")
    for name in sorted(left_over):
        try:
            await disks.unplug(monitor, name, force=True)
            removed.append(name)
        except NotRunningError:
            raise
        except BockdError as error:
            troubles.append(f"{name}: {error}")
    return Reconciled(tuple(plugged), tuple(removed), tuple(troubles))
