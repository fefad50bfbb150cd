"""Reading a log back: what is in it, where it ends, and whether a crash may have ended it there.

A record that does not verify ends the log, if a crash may have left it so: it was never synced, a
whole sector of it is missing, or it is the last one of a process that was killed. All else is
damage. What a crash has left behind the end is made zeros, durably, before anything is appended:
else it might be taken for something at the next recovery.

What is read may be in memory only, even if a sync of it succeeds: after one that has failed, the
kernel may take for clean what is not on the disk. So all that nothing durable calls synced is
written again before it is synced: records, the zeros behind them, and the progress.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from bockd.drivers.local.format.journal import boot_id
from bockd.drivers.writeback.dirtyrecords import DirtyRecords
from bockd.drivers.writeback.log import Opened
from bockd.drivers.writeback.progress import NAME, Progress, ProgressFile
from bockd.drivers.writeback.records import (
    HEADER_BYTES,
    Header,
    Record,
    parse,
    verifies,
)
from bockd.drivers.writeback.segment import (
    FIRST_RECORD,
    NOT_OF_THE_DISK,
    SUFFIX,
    Segment,
    is_segment,
    segment_path,
    segments_in,
)
from bockd.durable import sync_directory
from bockd.errors import DamagedError, named
from bockd.failpoints import Failpoint, hit
from bockd.model import KIB

log = logging.getLogger(__name__)

_NOTHING = memoryview(b"")
_NOWHERE = array("I")

_PIECE_BYTES = 64 * KIB

_SECTOR = 512
"""A disk writes whole ones."""


SLICE = 256
"""Records that are looked at between two moments in which other threads go on: a millisecond."""

_MOMENT_SECONDS = 0.0001
"""Enough for a thread that waits for the interpreter to get it."""


@dataclass
class Scanned:
    """A segment, and what was found in it."""

    segment: Segment
    content: memoryview
    """Of the last one only."""
    places: array[int]
    """Where each record lies, in order: there may be 262,000. Of the last one only."""
    synced: int
    """The highest sequence that one of them calls synced."""
    end: int
    """The place of the first record that does not verify."""
    error: OSError | None = None
    """Why what was found could not be written again."""

    def drop_content(self) -> None:
        """Keep no content: all of a log may be more than there is memory."""
        self.content, self.places = _NOTHING, _NOWHERE

    def write_again(self, synced: int) -> None:
        """Write what follows a sequence as it was read: only this is known to be what verified."""
        known = max(0, synced + 1 - self.segment.first_sequence)
        start = self.places[known] if known < len(self.places) else self.end
        try:
            self.segment.write_again(self.content[start : self.end], start)
        except OSError as error:
            self.error = error


def create(path: Path, image: str, log_id: str, segment_bytes: int) -> Opened:
    """Make a log in a directory that is empty, and was just made. Blocks. Raises OSError: any part
    of it may be there then."""
    segment = Segment.create(path, 1, segment_bytes, log_id)
    progress = Progress(log_id, image, 1, 0, 1, 1, 0, boot_id())
    try:
        file = ProgressFile.create(path, progress)
        try:
            sync_directory(path)
            sync_directory(path.parent)
        except BaseException:
            file.close()
            raise
    except BaseException:
        segment.close()
        raise
    hit(Failpoint.WRITEBACK_CREATED)
    return Opened(path, file, progress, [segment], DirtyRecords(), 0)


def recover(path: Path, image: str, log_id: str) -> Opened:
    """Read a log back, and make it ready to be appended to. Blocks.

    Raises:
        DamagedError: something in it is missing or not what was written, in a way that no crash
            leaves.
        BockdError: it cannot be read or changed.
    """
    with named(f"opening the write-back log {path}"):
        try:
            file, progress = ProgressFile.open(path)
        except FileNotFoundError as error:
            raise DamagedError(f"the write-back log {path} has no {NAME}") from error
        segments: list[Segment] = []
        try:
            refuse_another(path, progress, image, log_id)
            for number in _needed(path, progress):
                one = Segment.open(segment_path(path, number), number, progress.log)
                segments.append(one)
            return _recover(path, file, progress, segments)
        except BaseException:
            file.close()
            for segment in segments:
                segment.close()
            raise


def refuse_another(path: Path, progress: Progress, image: str, log_id: str) -> None:
    if (progress.log, progress.image) != (log_id, image):
        raise DamagedError(f"{path} is the write-back log of another volume")


def _needed(path: Path, progress: Progress) -> list[int]:
    """Return the numbers of the segments that are needed, all of which are there. Raises
    DamagedError."""
    numbers = [one for one in segments_in(path) if one >= progress.first]
    expected = list(range(progress.first, progress.first + len(numbers)))
    if not numbers or sorted(numbers) != expected:
        missing = min(set(expected or [progress.first]) - set(numbers))
        raise DamagedError(f"{segment_path(path, missing)} is missing")
    return expected


def _recover(path: Path, file: ProgressFile, progress: Progress, segments: list[Segment]) -> Opened:
    records = DirtyRecords()
    if progress.drained:
        left = needless(path, segments)
        return Opened(path, file, progress, segments, records, progress.done, left)
    scanned, sequence = _scan_all(segments, progress, records)
    # The log goes on in the last segment that has a record; those behind it are spare.
    last = len(scanned) - 1
    _refuse_damage(path, progress, scanned[last], segments[last + 1 :], sequence)
    for spare in segments[last + 1 :]:
        spare.close()
    del segments[last + 1 :]
    unnotable = True
    try:
        # It may be in memory only, while the disk has an older one, which needs older segments, and
        # on which less below rests.
        file.write(progress)
        unnotable = False
        if not progress.broken:
            progress = _make_ready(path, file, progress, scanned, sequence)
    except OSError as error:
        if error.errno in NOT_OF_THE_DISK:
            raise
        broken = progress.broken or f"making it ready when it was opened: {error}"
        progress = msgspec.structs.replace(progress, broken=broken)
    left = needless(path, segments)
    return Opened(path, file, progress, segments, records, sequence, left, unnotable)


def _make_ready(
    path: Path, file: ProgressFile, progress: Progress, scanned: list[Scanned], sequence: int
) -> Progress:
    """Make all that was read durable, and that nothing is behind it; the progress was written
    again. Return the one that says so. Raises OSError: nothing may be appended."""
    _remove_but(path, [one.segment for one in scanned])
    for one in scanned:
        if one.error is not None:
            raise one.error
    scanned[-1].segment.clear_from(scanned[-1].end)
    hit(Failpoint.WRITEBACK_CLEARED)
    for one in scanned:
        one.segment.sync()
    # Not before the spare segments are gone: in the same boot, something in them would be damage.
    ready = msgspec.structs.replace(
        progress, count=progress.count + 1, synced=sequence, boot=boot_id()
    )
    hit(Failpoint.WRITEBACK_RECOVERED)
    file.write(ready)
    return ready


def _remove_but(path: Path, needed: list[Segment]) -> None:
    """Remove, durably, all segments but those that are needed.

    The process or the power may end at any moment, and what was not synced may be there again. So
    that no gap is behind the log then, which would be damage, one is removed there when those that
    follow it are gone for good.
    """
    others = _others(path, [one.path.name for one in needed])
    for one in sorted(others, key=_number_of, reverse=True):
        if _number_of(one) > needed[-1].number:
            sync_directory(path)
        one.unlink()
    sync_directory(path)


def needless(path: Path, needed: list[Segment]) -> int:
    """Return what segments take that are not needed."""
    others = _others(path, [one.path.name for one in needed])
    return sum(one.stat().st_size for one in others if one.suffix == SUFFIX)


def _number_of(segment: Path) -> int:
    return int(segment.stem)


def _others(path: Path, needed: list[str]) -> list[Path]:
    return [one for one in path.iterdir() if is_segment(one) and one.name not in needed]


def _scan_all(
    segments: list[Segment], progress: Progress, records: DirtyRecords
) -> tuple[list[Scanned], int]:
    """Verify what follows the progress, up to the first segment, but for the first one, that has no
    record, and write again what nothing calls synced. Enter in `records` what is not below. Return
    the sequence of the last one, too."""
    scanned, sequence, synced = list[Scanned](), progress.first_sequence - 1, progress.synced
    for segment in segments:
        one = scan(segment, sequence, progress.done, records)
        if scanned:
            if not one.places:
                break
            scanned[-1].drop_content()
        synced = max(synced, one.synced)
        if not progress.broken:
            one.write_again(synced)
        scanned.append(one)
        sequence += len(one.places)
    return scanned, sequence


def scan(segment: Segment, sequence: int, done: int, records: DirtyRecords) -> Scanned:
    """Verify the records of a segment that follow a sequence."""
    content = memoryview(segment.content())
    places, synced, at, first = array("I"), 0, FIRST_RECORD, sequence + 1
    while (header := parse(content, at)) is not None:
        if header.sequence != sequence + 1 or not verifies(content, at, header, segment.seed):
            break
        sequence += 1
        if sequence > done:
            record = Record(header.kind, sequence, header.offset, header.length, segment, at)
            records.enter(record, header.size_bytes, header.time)
        places.append(at)
        synced = max(synced, header.synced)
        at += header.size_bytes
        _give_way(sequence)
    if places:
        segment.first_sequence, segment.last_sequence = first, sequence
    segment.go_on_behind(content, at)
    return Scanned(segment, content, places, synced, at)


def _give_way(nth: int) -> None:
    """Let other threads go on, now and then: clients of other volumes must not wait."""
    if nth % SLICE == 0:
        time.sleep(_MOMENT_SECONDS)


def _refuse_damage(
    path: Path, progress: Progress, tail: Scanned, behind: list[Segment], sequence: int
) -> None:
    """Raise DamagedError, if no crash can have ended the log where it ends."""
    seed, wanted = tail.segment.seed, sequence + 1
    synced, later, whole = max(progress.synced, tail.synced), False, False
    for nth, (content, at) in enumerate(_ends(tail, behind)):
        if (known := found_after(content, at, seed, sequence)) is not None:
            synced, later = max(synced, known.synced), True
        header = parse(content, at) if nth < 2 else None
        if header is not None and header.sequence == wanted:
            whole = whole or not _is_torn(content, at, header)
    where = f"record {wanted} of {path}, after byte {tail.end} of {tail.segment.path.name},"
    if sequence < synced:
        raise DamagedError(f"{where} is missing or damaged, and was flushed")
    if later and progress.boot == boot_id():
        raise DamagedError(f"{where} is damaged: there are others behind it")
    if whole:
        raise DamagedError(f"{where} fails its checksum")
    if later:
        log.warning("%s: what follows record %d was never flushed, and is gone", path, sequence)


def _ends(tail: Scanned, behind: list[Segment]) -> Iterator[tuple[memoryview, int]]:
    """Yield what may have something behind the end of the log, and where, one after the other."""
    yield tail.content, tail.end
    for segment in behind:
        yield memoryview(segment.content()), FIRST_RECORD


class FoundAfter(NamedTuple):
    """What verifies behind a place at which something does not."""

    last: int
    """The highest sequence of it."""
    synced: int
    """The highest sequence that it calls synced."""


def found_after(content: memoryview, at: int, seed: int, sequence: int) -> FoundAfter | None:
    """Look for records that follow a sequence, from a place on. None: nothing verifies."""
    last, synced = 0, 0
    for nth, place in enumerate(range(at, end_of_data(content, at), HEADER_BYTES), 1):
        header = parse(content, place)
        if (
            header is not None
            and header.sequence > sequence
            and verifies(content, place, header, seed)
        ):
            last, synced = max(last, header.sequence), max(synced, header.synced)
        _give_way(nth)
    return FoundAfter(last, synced) if last else None


def end_of_data(content: memoryview, at: int) -> int:
    """Return where the zeros begin that the content ends with; `at`, if all from there on are."""
    end = len(content)
    while end > at:
        start = max(at, end - _PIECE_BYTES)
        if found := content[start:end].tobytes().rstrip(b"\0"):
            return start + len(found)
        end = start
    return at


def _is_torn(content: memoryview, at: int, header: Header) -> bool:
    """Return whether a sector of a record is missing, or the part of one that it has."""
    end = min(at + HEADER_BYTES + header.data_bytes, len(content))
    while at < end:
        stop = min((at // _SECTOR + 1) * _SECTOR, end)
        if not any(content[at:stop]):
            return True
        at = stop
    return False
