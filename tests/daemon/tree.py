"""A directory tree at one moment, to show that something left it alone."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(root: Path) -> dict[str, str]:
    """Every file below `root` by name, with its content's digest; directories, too."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "not a file"
        for path in sorted(root.rglob("*"))
    }


def lasting(tree: dict[str, str]) -> dict[str, str]:
    """Without what a look at a pool may change: lock files, which hold a process id, and LMDB's
    table of readers."""
    return {
        name: content
        for name, content in tree.items()
        if not name.startswith("locks/") and name != "index/lock.mdb"
    }
