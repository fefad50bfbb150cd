"""Logs that were given up and have what nobody else has: they are put aside, not removed.

    IMAGE.ID.discarded/      its segments and its progress, as they were
    IMAGE.ID.2.discarded/    the same log, put back and given up once more

No daemon uses one any more. It takes room of the directory's bound until somebody removes it.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from bockd.drivers.writeback.progress import ProgressFile
from bockd.drivers.writeback.records import Kind, parse, verifies
from bockd.drivers.writeback.recovery import end_of_data
from bockd.drivers.writeback.segment import FIRST_RECORD, Segment, segments_in
from bockd.durable import sync_directory
from bockd.errors import DamagedError

ASIDE = ".discarded"


def has_unwritten(log: Path) -> bool:
    """Return whether a log may have a change that is not below: also if it cannot be read. Blocks.
    Raises OSError."""
    try:
        file, progress = ProgressFile.open(log)
    except (FileNotFoundError, DamagedError):
        first = done = 0  # it was not made to its end, or has been damaged since
    else:
        file.close()
        if progress.drained:
            return False
        first, done = progress.first, progress.done
    log_id = log.name.rpartition(".")[2]
    return any(
        _has_after(path, number, log_id, done)
        for number, path in segments_in(log).items()
        if number >= first
    )


def _has_after(path: Path, number: int, log_id: str, done: int) -> bool:
    """Return whether a segment may have a change that follows a sequence."""
    try:
        segment = Segment.open(path, number, log_id)
    except DamagedError:
        return True
    try:
        content, at = memoryview(segment.content()), FIRST_RECORD
    finally:
        segment.close()
    while (header := parse(content, at)) is not None and verifies(
        content, at, header, segment.seed
    ):
        if header.sequence > done and header.kind is not Kind.BARRIER:
            return True
        at += header.size_bytes
    return end_of_data(content, at) > at


def put_aside(log: Path) -> Path:
    """Give a log the name of one that is put aside, durably. Return it. Blocks. Raises OSError."""
    names = (f".{nth}{ASIDE}" for nth in itertools.count(2))
    for ending in itertools.chain([ASIDE], names):
        aside = log.with_name(log.name + ending)
        if not os.path.lexists(aside):
            break
    os.rename(log, aside)
    sync_directory(log.parent)
    return aside


def is_aside(path: Path) -> bool:
    """Return whether something in a directory of logs is one that was put aside. Raises
    OSError."""
    return path.name.endswith(ASIDE) and path.is_dir()
