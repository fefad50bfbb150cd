"""Keeps VMs as their attachments say. A VM that was started anew gets its volumes again, and one
that could not be told of a volume's new size is told later.

What a VM has is compared with its attachments when the daemon has started, when the VM has (its QMP
socket is a new file then, which `stat` shows without asking QEMU), and again after a while when
something could not be done. No connection to a VM is kept open for this: QEMU has one client at a
time, and an administrator's tool may need that place.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass

import trio

from bockd.blockstorage.contract import Status
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.servers import unreachable
from bockd.errors import BockdError
from bockd.model import ServerKind
from bockd.pool.index import Index
from bockd.pool.nodes import Nodes
from bockd.vm.machines import Machines, Reconciled, Wanted
from bockd.vm.monitor import NotRunningError
from bockd.vm.plugger import MachinePlugger

log = logging.getLogger(__name__)

WATCH_SECONDS = 2.0
"""Between two looks at the sockets: soon enough for who waits for a VM to start."""

RETRY_SECONDS = 30.0
"""The longest pause after trouble with a VM. The first is short (a VM that starts has its socket
before it listens), each further one twice as long."""

_Identity = tuple[int, int, int]


@dataclass(slots=True)
class _Seen:
    """What is known of the QEMU behind one socket."""

    identity: _Identity
    due_at: float
    """Infinity: nothing is left to do."""
    pause_seconds: float = WATCH_SECONDS
    told: frozenset[str] = frozenset()
    """Troubles that are in the log already."""


class Watch:
    """All registered VMs."""

    def __init__(self, machines: Machines, plugger: MachinePlugger, index: Index) -> None:
        self._machines = machines
        self._plugger = plugger
        self._index = index
        self._seen: dict[str, _Seen] = {}
        self._busy: set[str] = set()

    async def run(self) -> None:
        """Watch the VMs until cancelled; work that has begun on a VM is finished."""
        async with trio.open_nursery() as nursery:
            while True:
                for socket in self._due():
                    self._busy.add(socket)
                    nursery.start_soon(self._settle, socket, self._seen[socket])
                await trio.sleep(WATCH_SECONDS)

    def _due(self) -> list[str]:
        """The sockets of the VMs that are to be compared with their attachments now."""
        now = trio.current_time()
        due = []
        for socket in self._sockets():
            identity = _identity(socket)
            if identity is None:
                self._seen.pop(socket, None)
                continue
            seen = self._seen.get(socket)
            if seen is None or seen.identity != identity:
                seen = self._seen[socket] = _Seen(identity, now)
            if socket in self._machines.unsettled:
                self._machines.unsettled.discard(socket)
                seen.due_at = min(seen.due_at, now + RETRY_SECONDS)
            if seen.due_at <= now and socket not in self._busy:
                due.append(socket)
        return due

    def _sockets(self) -> set[str]:
        """Of all VMs that are registered."""
        try:
            with self._index.reading() as txn:
                servers = [one for one in Ledger(txn).servers() if not unreachable(txn, one)]
        except BockdError:
            # A damaged record: whoever uses it is told.
            return set()
        return {server.qmp_socket for server in servers if server.qmp_socket is not None}

    async def _settle(self, socket: str, seen: _Seen) -> None:
        try:
            done = await self._reconcile(socket)
        finally:
            self._busy.discard(socket)
        if done is not None and not done.troubles:
            seen.due_at = math.inf
            seen.pause_seconds = WATCH_SECONDS
        else:
            seen.due_at = trio.current_time() + seen.pause_seconds
            seen.pause_seconds = min(2 * seen.pause_seconds, RETRY_SECONDS)
        self._tell(socket, seen, done or Reconciled())

    async def _reconcile(self, socket: str) -> Reconciled | None:
        """What was done; None when the VM does not run."""
        try:
            return await self._machines.reconcile(
                socket, self._plugger.prefix, lambda: self._wanted(socket)
            )
        except NotRunningError:
            return None
        except BockdError as error:
            return Reconciled(troubles=(str(error),))
        except Exception as error:
            # Trouble with a VM must not end the daemon, which others' disks depend on.
            log.exception("the VM at %s", socket)
            return Reconciled(troubles=(f"internal error: {error}",))

    def _tell(self, socket: str, seen: _Seen, done: Reconciled) -> None:
        for name in done.plugged:
            log.info("plugged %s into the VM at %s again", name, socket)
        for name in done.removed:
            log.info("took %s, left over, out of the VM at %s", name, socket)
        for trouble in done.troubles:
            if trouble not in seen.told:
                log.warning("the VM at %s: %s", socket, trouble)
        seen.told = frozenset(done.troubles)

    def _wanted(self, socket: str) -> Wanted:
        """What the VM shall have, by what is recorded now."""
        disks, busy = [], []
        with self._index.reading() as txn:
            ledger, nodes = Ledger(txn), Nodes(txn)
            servers = [one for one in ledger.servers() if not unreachable(txn, one)]
            here = {server.name for server in servers if server.qmp_socket == socket}
            for owned in ledger.all_volumes():
                attachment = owned.volume.attachment
                if attachment is None or attachment.server_id not in here:
                    continue
                if attachment.server_kind is not ServerKind.VM:
                    continue
                if owned.volume.status is Status.IN_USE:
                    size = nodes.volume(owned.volume.id).size_bytes
                    disks.append(self._plugger.disk(attachment, size))
                else:
                    busy.append(self._plugger.name(attachment))
        return Wanted(tuple(disks), frozenset(busy))


def _identity(socket: str) -> _Identity | None:
    """What changes when a VM is started anew: QEMU makes its socket's file again. None: there is
    no file."""
    try:
        found = os.stat(socket)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns
