"""`[cache]`: what is read of a pool that is elsewhere is kept on the local disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bockd.config.schema import Section, key
from bockd.config.values import integer, read_path
from bockd.model import GIB


@dataclass(frozen=True, slots=True)
class CacheSettings(Section):
    """`[cache]`: a read cache, write-through."""

    directory: Path | None = key(None, read_path)
    """None: no cache."""
    size_gib: int = key(16, integer(1, 256))
    """More than that would not fit what the map of it may take of memory (cache.space)."""

    @property
    def size_bytes(self) -> int:
        """The most that its files may take of the disk."""
        return self.size_gib * GIB
