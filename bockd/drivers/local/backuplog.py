"""Which backups of a pool were made: `backups.json` in its directory.

Who makes a backup writes it, and holds the pool's lock `backup` or the pool itself meanwhile. It
only tells people: no backup needs it, and none fails because it cannot be written.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from bockd.durable import replace_file
from bockd.pool.reports import BackupRecord

log = logging.getLogger(__name__)

FILE = "backups.json"

KEPT = 32
"""Directories that are remembered: those with the latest backups."""


def read_backups(pool: Path) -> tuple[BackupRecord, ...]:
    """Return the last backup into each directory, the latest first. What cannot be read is logged,
    and is no backup."""
    path = pool / FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=tuple[BackupRecord, ...])
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.DecodeError) as error:
        log.warning("which backups were made is not known: %s: %s", path, error)
        return ()
    return tuple(sorted(found, key=lambda one: one.began_at, reverse=True))


def note_backup(pool: Path, made: BackupRecord) -> None:
    """Remember a backup that begins, or has ended, in place of the one that its directory had. If
    that cannot be written, a warning is logged."""
    others = [one for one in read_backups(pool) if one.directory != made.directory]
    latest = sorted([made, *others], key=lambda one: one.began_at, reverse=True)[:KEPT]
    try:
        replace_file(pool / FILE, msgspec.json.encode(latest))
    except OSError as error:
        log.warning("the backup in %s was not noted in %s: %s", made.directory, pool, error)
