"""`[write_back]`: where writes are kept that a pool elsewhere gets later, for volumes that ask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bockd.config.schema import Section, key
from bockd.config.values import integer, read_path, read_some_names
from bockd.model import GIB


@dataclass(frozen=True, slots=True)
class WriteBackSettings(Section):
    """`[write_back]`: apart from `[cache]`, which may be removed at any time, and this may not."""

    directory: Path | None = key(None, read_path)
    """None: every volume is written through."""
    size_gib: int = key(16, integer(1, 4096))
    volume_gib: int = key(4, integer(1, 4096))
    tenants: tuple[str, ...] = key((), read_some_names)
    """Who may choose it over the API, and give up what is dirty: by id or name."""

    @property
    def size_bytes(self) -> int:
        """The most that its logs may take of the disk."""
        return self.size_gib * GIB

    @property
    def volume_bytes(self) -> int:
        """The most that the log of one volume may take of that."""
        return min(self.volume_gib, self.size_gib) * GIB
