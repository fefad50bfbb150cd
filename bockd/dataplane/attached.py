"""What the data plane does about attachments and deletions (bockd.blockstorage.running.Exports).

An attachment is a record so far: the TCP listener serves none of them yet, and a client on the Unix
socket is the operator's, who is not fenced. What will serve them over TCP finds the volume by
`bockd.blockstorage.records.Ledger.exported`, opens it in `publish` and fences it in `withdraw`.
"""

from __future__ import annotations

from bockd.blockstorage.running import NoExports
from bockd.model import NodeKind
from bockd.server.exports import ExportKey
from bockd.server.nbd_server import NbdServer


class AttachedVolumes(NoExports):
    """Publishes nothing yet; keeps the server's statistics free of what is gone."""

    def __init__(self, server: NbdServer) -> None:
        self._server = server

    def forget(self, kind: NodeKind, node: int) -> None:
        """Drop the counters of a volume or snapshot that was deleted."""
        self._server.forget(ExportKey(kind, node))

    def connections(self, kind: NodeKind, node: int) -> int:
        """The clients of an export that are open now, on whichever listener."""
        return self._server.connections(ExportKey(kind, node))
