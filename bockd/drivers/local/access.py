"""What an open volume and its journal need of their pool."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from bockd.drivers.local.format.catalogue import LayerRecord
from bockd.drivers.local.format.frozenlayer import FrozenLayer, OpenFiles
from bockd.drivers.local.format.journal import JournalSegment
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layout import JournalName, Layout
from bockd.drivers.local.format.spares import SpareSegments
from bockd.drivers.local.format.writepieces import WritePieces
from bockd.drivers.local.volume.checkpoints import CheckpointCounts
from bockd.errors import NoInodesError, NoSpaceError, from_os_error
from bockd.index.ballast import Ballast
from bockd.index.index import LmdbIndex
from bockd.model import VolumeId

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """What an open volume needs of its pool."""

    layout: Layout
    index: LmdbIndex
    ballast: Ballast
    spares: SpareSegments
    files: OpenFiles
    boot: str
    write_pieces: WritePieces
    unswept: set[VolumeId] = field(default_factory=set)
    """Volumes that were recovered since the pool was opened, and not opened since then."""
    checkpoints: CheckpointCounts = field(default_factory=CheckpointCounts)

    def frozen_layer(self, record: LayerRecord) -> FrozenLayer:
        """Return a layer to read from that is not open yet."""
        return FrozenLayer(
            self.layout, record.id, record.file_bytes, self.files, packed=record.packed
        )

    def frozen_head(self, head: Layer) -> FrozenLayer:
        """Return a layer to read a former head from, that is not open yet."""
        return FrozenLayer(
            self.layout, head.id, head.length_bytes(), self.files, packed=head.packed
        )

    @property
    def reserve_wanted(self) -> bool:
        """True when some of what is kept in reserve for a full disk was used up."""
        return self.ballast.given or self.spares.wanted

    def restore_reserve(self) -> None:
        """Make the reserve whole again, if some of it was used up and there is ample room by now.
        Blocks."""
        self.spares.restore()
        self.ballast.restore()

    def ensure_reserve(self) -> bool:
        """Make the reserve whole. Return False when there is no room. Blocks."""
        spares = self.spares.ensure()
        return self.ballast.ensure() and spares


def create_segment(
    store: StoreAccess, name: JournalName, *, reserve: bool, packed: bool
) -> JournalSegment:
    """Create a journal segment of a packed head, or of a raw one. If the disk is full, its space
    comes from the reserve: a spare segment or the ballast. Raises NoSpaceError when the reserve is
    used up, or when `reserve` is false (unless only inodes are missing, which writes do not need),
    and other BockdErrors."""
    doing = f"creating journal segment {store.layout.journal_segment(name)}"
    try:
        return JournalSegment.create(store.layout, name, store.boot, packed=packed)
    except OSError as error:
        translated = from_os_error(error, doing)
        wanting = NoSpaceError if reserve else NoInodesError
        if not isinstance(translated, wanting):
            raise translated from error
        spare = store.spares.take(store.layout.unfinished_segment(name))
        if not (spare or store.ballast.release()):
            raise translated from error
    try:
        return JournalSegment.create(store.layout, name, store.boot, reuse=spare, packed=packed)
    except OSError as error:
        raise from_os_error(error, doing) from error


def discard_segments(store: StoreAccess, segments: list[JournalSegment]) -> None:
    """Close segments whose records are in the index, and keep their files as spares or remove them.
    A file that cannot be removed is removed at the next opening, because its generation is past."""
    for segment in segments:
        segment.close()
        discard_segment(store, segment.name)


def discard_segment(store: StoreAccess, name: JournalName) -> None:
    """Keep or remove the file of a segment that nothing needs any more."""
    try:
        store.spares.keep_or_unlink(store.layout.journal_segment(name), name)
    except OSError as error:
        log.warning("journal segment %s was not removed: %s", name, error)
