"""The interface to virtual machines: what makes a device of an export inside a server, and removes
it.

When a volume is attached to a server, its export is opened first, then the plugger of the server's
kind is called. When it is detached, the plugger comes first, then the export is closed. Hosts and
plain servers have no plugger: they connect by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from bockd.blockstorage.contract import Attachment
from bockd.model import Server
from bockd.runtime.steps import Steps


class DevicePlugger(Protocol):
    """Makes devices in servers of one kind. Its methods run in the daemon's event loop (trio) and
    must not block it.

    What it may rely on:

    * `attachment.export_name` is reachable, on the Unix socket and over TCP, from before `plug` is
      called until after `unplug` has returned; in a forced detach it is dead before. It is unique
      for ever, so it, or a hash of it, is a good base for names inside the server. The volume's id
      is not: the volume may be attached to the same server again.
    * There is one call at a time for an attachment; those for different attachments, of one server
      too, run concurrently.
    * A call is not cancelled while its server answers in time: a client that hangs up, or SIGTERM,
      lets it end.

    What it must keep:

    * It ends by itself, within a named timeout of its own, whatever the server does: the API's
      client waits for it, and so does the end of the daemon.
    * It raises BockdError subclasses only, with a reason that a tenant may read.
    * It is idempotent: `plug` of what is plugged in, and `unplug` of what is not (or not wholly, or
      never was), succeed.

    After a crash: what was caught in `attaching` or `detaching` becomes `detaching` at the next
    start, its export stays closed, and in the background `unplug(force=True)` is called with the
    server as it is registered. Whatever comes of it, the volume is `available` then; a failure is
    kept in its `last_error`. So a crash between `plug` and the record of it leaves a device
    that is unplugged at the next start, if the server can be reached; if it cannot, a device whose
    export never answers again. Volumes in use are left alone: the server connects again by itself.
    """

    async def plug(
        self, server: Server, attachment: Attachment, size_bytes: int
    ) -> Mapping[str, str]:
        """Make the device, of a volume of that size; return what is to be shown of it, as
        {"serial": "..."}.

        When this raises, nothing may be left of the device, as far as the server can be reached:
        the volume goes back to `available`, with the reason in its `last_error`.
        """
        ...

    async def resize(self, server: Server, attachment: Attachment, size_bytes: int) -> None:
        """Make the device as large as its volume, which has grown to `size_bytes`.

        Nothing is done where there is no such device. When this raises, the device works on in the
        size that it has, and the plugger tries again by itself.
        """
        ...

    async def unplug(self, server: Server, attachment: Attachment, *, force: bool) -> None:
        """Remove the device, and return when the server has given it up.

        When this raises, the device must still be usable: the volume goes back to `in-use`, with
        the reason in its `last_error`. With `force` nobody waits for the server's consent, the
        export is dead already, and what is raised is only noted.
        """
        ...


class Devices(Protocol):
    """The pluggers as steps, for the operations on attachments: one interface for all kinds of
    server."""

    def plug(
        self, server: Server, attachment: Attachment, size_bytes: int
    ) -> Steps[Mapping[str, str]]:
        """See `DevicePlugger.plug`; nothing for a kind that has no plugger."""
        ...

    def resize(self, server: Server, attachment: Attachment, size_bytes: int) -> Steps[None]:
        """See `DevicePlugger.resize`; nothing for a kind that has no plugger."""
        ...

    def unplug(self, server: Server, attachment: Attachment, *, force: bool) -> Steps[None]:
        """See `DevicePlugger.unplug`."""
        ...


class NoDevices:
    """For servers that connect by themselves, and for tests."""

    async def plug(
        self, server: Server, attachment: Attachment, size_bytes: int
    ) -> Mapping[str, str]:
        del server, attachment, size_bytes
        return {}

    async def resize(self, server: Server, attachment: Attachment, size_bytes: int) -> None:
        del server, attachment, size_bytes

    async def unplug(self, server: Server, attachment: Attachment, *, force: bool) -> None:
        del server, attachment, force
