"""The files that a server wrote: bringing them to the disk, and what they occupy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def write_back(directory: Path) -> None:
    """Write back all dirty pages of the files below `directory`, so that the kernel does not do it
    while something else is measured."""
    for path in _regular_files(directory):
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # a journal segment that was no longer needed
            continue
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)


def drop_from_cache(directory: Path) -> None:
    """Drop the clean pages of the files below `directory` from the page cache."""
    for path in _regular_files(directory):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def occupied_bytes(paths: Iterable[Path]) -> int:
    """Sum the bytes that files take of their file system, its own bookkeeping for them included."""
    return sum(os.stat(path).st_blocks * 512 for path in paths)


def _regular_files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
