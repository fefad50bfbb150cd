"""Whether the pool's disk has room for an image."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from bockd.diskimage.opening import Image
from bockd.errors import NoSpaceError
from bockd.model import MIB

ADVICE = "delete snapshots or volumes, or make the disk larger"


def free_bytes(directory: Path) -> int:
    """Return what may be written to the file system of a directory. Raises OSError."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def room_for(image: Image, directory: Path | None, title: str) -> Iterator[None]:
    """Check that the pool in `directory` has room for an image, then run the body, which writes it.
    `title` names the image in messages. A directory of None: the pool is on no disk of this
    machine, so nothing is checked.

    Raises NoSpaceError, with what is needed and what is free, before anything is written. A
    NoSpaceError from the body is replaced by one with the same details, because others write to the
    disk, too.
    """
    if directory is None:
        yield
        return
    free = free_bytes(directory)
    needed = image.needed_bytes(free)
    if needed > free:
        raise NoSpaceError(
            f"there is no room for {title} on the pool's disk: it has {shown(needed)} of data, and "
            f"{shown(free)} are free in {directory}; {ADVICE}"
        )
    try:
        yield
    except NoSpaceError as error:
        left = free_bytes(directory)
        raise NoSpaceError(
            f"the pool's disk is full: {title} has {shown(needed)} of data, of which a part is "
            f"written already, and {shown(left)} are left in {directory}; {ADVICE}"
        ) from error


def shown(size_bytes: int) -> str:
    """Format a size for people, in MiB, rounded up."""
    return f"{-(-size_bytes // MIB)} MiB"
