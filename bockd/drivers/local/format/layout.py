"""Where each thing of a pool lives in its directory, and how a file becomes durable.

    POOL/
      index/            LMDB: the only authority on what exists
      layers/<id>.<n>   segment n of a layer (format.layer)
      journal/<v>.<g>.<n>   segment n of generation g of volume v's journal (format.journal)
      journal/<v>.<g>.<n>.spare   a segment kept in reserve for a full disk (format.spares)
      journal/discarded/    records that recovery could not use, kept for inspection
      locks/            files to flock, one for each thing that may be open (format.locks)
      index.new/        in a backup that is not complete: its index
      ballast           space given up when the disk is full (bockd.index.ballast)

Rule for every file: create, size and sync it and its directory before the transaction that names
it; unlink it after the transaction that forgets it. Ids are never used twice.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from bockd.model import LayerId, SnapshotId, VolumeId

log = logging.getLogger(__name__)

_JOURNAL_NAME = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_UNFINISHED_SUFFIX = ".new"
_SPARE_SUFFIX = ".spare"
_LAYER_NAME = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class JournalName:
    """The parts of a journal segment's file name."""

    volume: VolumeId
    generation: int
    number: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below one pool directory."""

    root: Path

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def index_data(self) -> Path:
        """What is there as soon as there is a pool."""
        return self.index / "data.mdb"

    @property
    def layers(self) -> Path:
        return self.root / "layers"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def discarded(self) -> Path:
        return self.journal / "discarded"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def ballast(self) -> Path:
        return self.root / "ballast"

    @property
    def pool_lock(self) -> Path:
        return self.locks / "pool"

    @property
    def co_openers_lock(self) -> Path:
        return self.locks / "guests"

    @property
    def backup_lock(self) -> Path:
        return self.locks / "backup"

    @property
    def unfinished_index(self) -> Path:
        """The index of a backup (backup) until that is complete."""
        return self.root / "index.new"

    def volume_lock(self, volume: VolumeId) -> Path:
        return self.locks / f"volume-{volume}"

    def snapshot_lock(self, snapshot: SnapshotId) -> Path:
        return self.locks / f"snapshot-{snapshot}"

    def layer_segment(self, layer: LayerId, number: int) -> Path:
        return self.layers / f"{layer}.{number}"

    def journal_segment(self, name: JournalName) -> Path:
        return self.journal / f"{name.volume}.{name.generation}.{name.number}"

    def unfinished_segment(self, name: JournalName) -> Path:
        """Return the path of a journal segment until it is written in full."""
        return self.journal / f"{self.journal_segment(name).name}{_UNFINISHED_SUFFIX}"

    def spare_segment(self, name: JournalName) -> Path:
        """Return the path of a journal segment that is not needed any more and is kept in
        reserve."""
        return self.journal / f"{self.journal_segment(name).name}{_SPARE_SUFFIX}"

    def spare_segments(self) -> list[JournalName]:
        """List all journal segments kept in reserve, by the names that they had when last used."""
        return self._journal_names(_SPARE_SUFFIX)

    def journal_segments(self) -> list[JournalName]:
        """List all journal segments on disk, in order."""
        return self._journal_names("")

    def unfinished_segments(self) -> list[JournalName]:
        """List all journal segments on disk that are being made, or were when the process making
        them died."""
        return self._journal_names(_UNFINISHED_SUFFIX)

    def _journal_names(self, suffix: str) -> list[JournalName]:
        found = [
            JournalName(VolumeId(int(m[1])), int(m[2]), int(m[3]))
            for entry in os.listdir(self.journal)
            if entry.endswith(suffix) and (m := _JOURNAL_NAME.fullmatch(entry.removesuffix(suffix)))
        ]
        return sorted(found, key=lambda n: (n.volume, n.generation, n.number))

    def layer_segments(self) -> list[tuple[LayerId, int]]:
        """List all layer segments on disk, as (layer, number), in order."""
        return sorted(
            (LayerId(int(m[1])), int(m[2]))
            for entry in os.listdir(self.layers)
            if (m := _LAYER_NAME.fullmatch(entry))
        )


def unlink_if_present(path: Path) -> None:
    """Remove a file that a transaction has forgotten; an earlier attempt may have succeeded."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def unlink_leftover(path: Path) -> None:
    """Remove a file that nothing needs any more. The operation that left it has succeeded and does
    not fail because of it: a file that cannot be removed costs a little space and does no harm."""
    try:
        unlink_if_present(path)
    except OSError as error:
        log.warning("%s was not removed: %s", path, error)
