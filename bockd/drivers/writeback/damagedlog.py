"""Reading a damaged log back as far as it is whole, so that this can be written below before the
rest is given up.

That is what lies before the damage, up to the last barrier there. What lies between that barrier
and the damage is left out: below there may be all of the next epoch already, and some of the one
after that, which the older half of that epoch must not be written over.

Invariants:
* The damage stays visible. Whoever opens the log later refuses it as before: nothing that does not
  verify is changed, no segment behind the end of the prefix is removed, and the progress never says
  less of what was synced, nor another boot.
* The progress never says that more is below than what is synced.
* Nothing is written below from an older progress than the last one that was durable: below may be
  some of what is two epochs newer than its next epoch. So both slots must be valid.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bockd.drivers.writeback.dirtyrecords import DirtyRecords
from bockd.drivers.writeback.log import Opened
from bockd.drivers.writeback.progress import Progress, ProgressFile
from bockd.drivers.writeback.records import padded, seed_of
from bockd.drivers.writeback.recovery import (
    Scanned,
    end_of_data,
    found_after,
    needless,
    refuse_another,
    scan,
)
from bockd.drivers.writeback.segment import (
    FIRST_RECORD,
    NOT_OF_THE_DISK,
    Segment,
    segment_path,
    segments_in,
)
from bockd.errors import DamagedError, named

log = logging.getLogger(__name__)


@dataclass
class Prefix:
    """What a damaged log has before its damage."""

    progress: Progress
    last: int
    """The highest sequence that anything in the log shows, before the damage or behind it."""
    behind_bytes: int
    """What the log has from the damage on, written or not."""
    opened: Opened | None
    """Ready to be written below; None: nothing of it can be."""

    def close(self) -> None:
        """Close all files."""
        if self.opened is not None:
            self.opened.file.close()
            for segment in self.opened.segments:
                segment.close()


def recover_prefix(path: Path, image: str, log_id: str) -> Prefix:
    """Read a log back up to its first damage. Blocks.

    Raises:
        DamagedError: it does not say how much of it is below, or not for certain, or is another
            volume's.
        BockdError: it cannot be read.
    """
    with named(f"reading what is whole of the write-back log {path}"):
        try:
            file, progress = ProgressFile.open(path, both=True)
        except FileNotFoundError as error:
            raise DamagedError(f"the write-back log {path} has no progress") from error
        segments: list[Segment] = []
        try:
            refuse_another(path, progress, image, log_id)
            prefix = _recover(path, file, progress, segments)
        except BaseException:
            file.close()
            for segment in segments:
                segment.close()
            raise
        if prefix.opened is None:
            file.close()
            for segment in segments:
                segment.close()
        return prefix


def _recover(path: Path, file: ProgressFile, progress: Progress, segments: list[Segment]) -> Prefix:
    records = DirtyRecords()
    scanned, sequence, synced = _scan_whole(path, progress, segments, records)
    last, behind_bytes, called = _look_behind(path, progress, scanned, sequence)
    # What is called synced behind the damage was synced before it, too.
    synced = max(synced, called)
    last = max(last, synced)
    if progress.drained or not records.epochs:
        return Prefix(progress, last, behind_bytes + records.bytes, None)
    try:
        # It may be in memory only, and the next one is written over the slot of the one before.
        file.write(progress)
    except OSError as error:
        if error.errno in NOT_OF_THE_DISK:
            raise
        log.warning("nothing of %s is written back: its progress cannot be noted: %s", path, error)
        return Prefix(progress, last, behind_bytes + records.bytes, None)
    synced = max(synced, _sync(path, scanned, sequence))
    opened = Opened(
        path,
        file,
        msgspec.structs.replace(progress, synced=synced),
        segments,
        records,
        sequence,
        needless(path, segments),
    )
    return Prefix(progress, last, behind_bytes, opened)


def _scan_whole(
    path: Path, progress: Progress, segments: list[Segment], records: DirtyRecords
) -> tuple[list[Scanned], int, int]:
    """Verify what follows the progress, up to the first segment that is missing, damaged or has no
    record, and write again what nothing calls synced. Leave open in `segments` what has some.
    Return the sequence of the last record, and what is called synced, too."""
    scanned, sequence, synced = list[Scanned](), progress.first_sequence - 1, progress.synced
    there = segments_in(path)
    while (number := progress.first + len(scanned)) in there:
        try:
            segment = Segment.open(segment_path(path, number), number, progress.log)
        except DamagedError as error:
            log.warning("%s", error)
            break
        segments.append(segment)
        one = scan(segment, sequence, progress.done, records)
        if scanned:
            if not one.places:
                segments.pop().close()
                break
            scanned[-1].drop_content()
        synced = max(synced, one.synced)
        one.write_again(synced)
        scanned.append(one)
        sequence += len(one.places)
    return scanned, sequence, synced


def _look_behind(
    path: Path, progress: Progress, scanned: list[Scanned], sequence: int
) -> tuple[int, int, int]:
    """Return the highest sequence of what verifies behind the end of the prefix, how many bytes are
    there, whole or not, and up to which sequence they call the log synced."""
    last, behind_bytes, synced = sequence, 0, 0
    for content, at, seed in _ends(path, progress, scanned):
        behind_bytes += padded(end_of_data(content, at) - at)
        if (found := found_after(content, at, seed, sequence)) is not None:
            last, synced = max(last, found.last), max(synced, found.synced)
    return last, behind_bytes, synced


def _ends(
    path: Path, progress: Progress, scanned: list[Scanned]
) -> Iterator[tuple[memoryview, int, int]]:
    """Yield what may have something behind the end of the prefix, from which place on, and the seed
    of its checksums. What cannot be read is left out."""
    if scanned:
        yield scanned[-1].content, scanned[-1].end, scanned[-1].segment.seed
    for number, one in sorted(segments_in(path).items()):
        if number < progress.first + len(scanned):
            continue
        try:
            content = memoryview(one.read_bytes())
        except OSError as error:
            if error.errno in NOT_OF_THE_DISK:
                raise
            log.warning("%s cannot be read: %s", one, error)
            continue
        yield content, FIRST_RECORD, seed_of(progress.log)


def _sync(path: Path, scanned: list[Scanned], sequence: int) -> int:
    """Make what was read durable. Return the sequence up to which it is; 0: nobody knows."""
    try:
        for one in scanned:
            if one.error is not None:
                raise one.error
            one.segment.sync()
    except OSError as error:
        log.warning("only what was synced earlier is written back of %s: %s", path, error)
        return 0
    return sequence
