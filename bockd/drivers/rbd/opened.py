"""A volume or a snapshot that is open in this gateway, and which volumes must not be opened."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from bockd.drivers.rbd.claims import RbdClaim
from bockd.drivers.rbd.device import RbdDevice
from bockd.drivers.rbd.fronts import Front
from bockd.drivers.rbd.records import RbdVolumeRecord, dirty_elsewhere
from bockd.drivers.rbd.taking import Taken
from bockd.errors import volume_failed
from bockd.model import NodeKind
from bockd.pool.records import VolumeRecord, refuse_trashed


@dataclass(eq=False)
class OpenVolume:
    """A volume that this gateway has, and how many frontends use it."""

    taken: Taken[RbdClaim]
    device: RbdDevice
    front: Front
    """What users are given."""
    users: int = 0

    def grow(self, size_bytes: int) -> None:
        """Show that the volume is larger now."""
        self.device.grow(size_bytes)
        if self.front.cached is not None:
            self.front.cached.follow_size()


@dataclass(eq=False)
class OpenSnapshot:
    """A snapshot that is open here, and how many frontends use it."""

    snap: str
    device: RbdDevice
    front: Front
    connection: ExitStack
    """Ends the use of the connection that it is open on."""
    users: int = 0


def refuse_unusable(record: VolumeRecord) -> None:
    """Raise NotFoundError for a volume that is in the trash, VolumeFailedError for one that an
    operator has to reopen."""
    refuse_trashed(NodeKind.VOLUME, record)
    if record.failed is not None:
        raise volume_failed(record.id, record.name, record.failed)


def refuse_dirty(record: RbdVolumeRecord) -> None:
    """Raise DirtyElsewhereError for a volume whose image does not have all that was answered: asked
    in the transaction that uses the image."""
    if record.dirty_at is not None:
        raise dirty_elsewhere(record)
