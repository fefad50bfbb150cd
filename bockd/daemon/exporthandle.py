"""What a connection or an open file has of a volume or snapshot (nbd.server.exports.OpenExport)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bockd.nbd.protocol.options import ExportInfo
from bockd.nbd.server.exports import ExportKey
from bockd.pool.device import BlockDevice


@dataclass(eq=False)
class ExportHandle:
    """`name` is the export name that a connection came under."""

    key: ExportKey
    device: BlockDevice
    name: str
    description: str
    release: Callable[[ExportKey], None]

    @property
    def info(self) -> ExportInfo:
        """With the size as it is now."""
        return ExportInfo(
            self.name, self.description, self.device.size_bytes, self.device.read_only
        )

    async def close(self) -> None:
        """Release the handle."""
        self.release(self.key)
