"""Directories that are their owner's alone, whatever the umask."""

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
