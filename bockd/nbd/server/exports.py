"""What the NBD server asks of the rest of the daemon: a table of exports for each listener.

A table decides what a client of its listener may see. The one of the Unix socket names volumes by
id or name, and snapshots as `snapshot/<id or name>`; the one of the TCP listener has only what is
attached, under unguessable names, and lists nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from bockd.errors import NotFoundError
from bockd.model import NodeKind
from bockd.nbd.protocol.options import ExportInfo
from bockd.pool.device import BlockDevice


class ExportKey(NamedTuple):
    """The identity of an export, whatever name it was reached by."""

    kind: NodeKind
    id: int


class OpenExport(Protocol):
    """An open volume or snapshot, as one connection uses it."""

    @property
    def key(self) -> ExportKey: ...

    @property
    def info(self) -> ExportInfo:
        """As it is now; the client is told this size, and requests are judged by the device's."""
        ...

    @property
    def device(self) -> BlockDevice:
        """Shared by all connections of the export: each has a hold of its own on it."""
        ...

    async def close(self) -> None:
        """Release the export. Called once, shielded from cancellation, after the last request."""
        ...


class ExportTable(Protocol):
    """Finds exports by name. Every method raises BockdError only: NotFoundError for a name that
    leads nowhere, another one when the export exists and cannot be served."""

    async def list_exports(self) -> Sequence[ExportInfo]:
        """List the exports that NBD_OPT_LIST names."""
        ...

    async def describe(self, name: str) -> ExportInfo:
        """Describe an export for NBD_OPT_INFO. Opens nothing."""
        ...

    async def open(self, name: str) -> OpenExport:
        """Open an export for a connection that enters transmission.

        `info.name` of the result distinguishes the clients that used one name from those that used
        another. Nothing is awaited between the return of this and the connection's entry in the
        registry.
        """
        ...


class NoExports:
    """The table without exports, for a listener that is not used."""

    async def list_exports(self) -> Sequence[ExportInfo]:
        return ()

    async def describe(self, name: str) -> ExportInfo:
        raise NotFoundError(f"no export {name!r} here")

    async def open(self, name: str) -> OpenExport:
        raise NotFoundError(f"no export {name!r} here")
