"""`[trash]`: what is deleted is kept for some time."""

from __future__ import annotations

from dataclasses import dataclass

from bockd.config.schema import Section, key
from bockd.config.values import integer, read_flag

HOUR_SECONDS = 3600

MAX_KEEP_HOURS = 10 * 366 * 24
"""Ten years."""


@dataclass(frozen=True, slots=True)
class TrashSettings(Section):
    """`[trash]`: volumes and snapshots that were deleted."""

    keep_hours: int = key(0, integer(0, MAX_KEEP_HOURS))
    """0: they are gone at once."""
    counts_in_quota: bool = key(False, read_flag)
    """OpenStack's clients expect that a deletion makes room in the quota."""
    full_percent: int = key(95, integer(1, 100))
    """As full as that, the oldest are deleted early. 100: never, for nothing is fuller."""

    @property
    def keep_seconds(self) -> int:
        """For how long something is kept."""
        return self.keep_hours * HOUR_SECONDS
