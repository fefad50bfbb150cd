"""Attachments at virtual machines (bockd.blockstorage.plugging.DevicePlugger): what is plugged in
for one, and how it is called."""

from __future__ import annotations

from collections.abc import Mapping

from bockd.blockstorage.contract import Attachment
from bockd.errors import InvalidRequestError
from bockd.model import Server
from bockd.vm.disks import Disk
from bockd.vm.machines import Machines
from bockd.vm.names import disk_name, prefix, serial


class MachinePlugger:
    """Plugs volumes into VMs. `nbd_socket` is the daemon's, as QEMU finds it; for
    `reconnect_seconds` see bockd.vm.disks.Disk."""

    def __init__(self, machines: Machines, nbd_socket: str, reconnect_seconds: int) -> None:
        self._machines = machines
        self._nbd_socket = nbd_socket
        self._reconnect_seconds = reconnect_seconds
        self.prefix = prefix(nbd_socket)
        """How the names of all our disks begin."""

    async def plug(
        self, server: Server, attachment: Attachment, size_bytes: int
    ) -> Mapping[str, str]:
        """See DevicePlugger.plug."""
        disk = self.disk(attachment, size_bytes)
        await self._machines.plug(qmp_socket(server), disk)
        return {"serial": disk.serial}

    async def unplug(self, server: Server, attachment: Attachment, *, force: bool) -> None:
        """See DevicePlugger.unplug."""
        await self._machines.unplug(qmp_socket(server), self.name(attachment), force=force)

    async def resize(self, server: Server, attachment: Attachment, size_bytes: int) -> None:
        """See DevicePlugger.resize."""
        await self._machines.resize(qmp_socket(server), self.disk(attachment, size_bytes))

    def name(self, attachment: Attachment) -> str:
        """Return the name of the attachment's disk in the VM."""
        return disk_name(self._nbd_socket, attachment.volume_id, attachment.export_name)

    def disk(self, attachment: Attachment, size_bytes: int) -> Disk:
        """Return the disk that a VM should have for an attachment, whose volume has that size in
        bytes."""
        return Disk(
            name=self.name(attachment),
            serial=serial(attachment.volume_id),
            export=attachment.export_name,
            size_bytes=size_bytes,
            nbd_socket=self._nbd_socket,
            reconnect_seconds=self._reconnect_seconds,
        )


def qmp_socket(server: Server) -> str:
    """Return the path of the VM's QMP socket. Raise InvalidRequestError for a server that is no
    longer a VM."""
    if server.qmp_socket is None:
        raise InvalidRequestError(
            f"server {server.name} has no QMP socket any more; register it again as a vm"
        )
    return server.qmp_socket
