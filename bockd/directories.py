"""Directories: made for their owner alone, whatever the umask, and synced."""

from __future__ import annotations

import os
from pathlib import Path


def make_private(path: Path) -> None:
    """Make a directory and what is missing above it, each with mode 0700. One that exists keeps its
    mode. Raises OSError."""
    # os.makedirs would give its mode to the last one alone.
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        os.makedirs(directory, mode=0o700, exist_ok=True)


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
