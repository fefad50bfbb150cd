"""What a pool's gateways have of its volumes on their local disks, in front of the pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from bockd.model import CacheMode


@dataclass(frozen=True, slots=True)
class CacheState:
    """Of one volume. Times are seconds since the epoch."""

    mode: CacheMode
    dirty_at: str | None = None
    """The gateway that has answered writes that the pool does not have yet. None: none has."""
    dirty_since: float | None = None
    """When it answered the first of them."""
    dirty_bytes: int | None = None
    """How much they take there; only that gateway knows, while it has the volume open."""
    trouble: str | None = None
    """Why it does not write them back now."""
    discarded_at: float | None = None
    """When such writes were last given up."""
    salvaged: Salvaged | None = None
    """What became of their log then; None: it was not read."""


class Salvaged(NamedTuple):
    """What became of a damaged log whose writes were given up, in bytes that they took in it."""

    written_bytes: int
    """Of what lies before the damage: the last attempt to give it up has written it back. What
    earlier ones had written back is not counted."""
    given_up_bytes: int
    """Of all the rest, as far as it is there: the damage, and what is behind it, readable or
    not."""


class LogReach(NamedTuple):
    """How far a log has come that has writes which the pool does not have. It is never less far
    again, unless an older one takes its place: on a disk that was restored from a backup."""

    log: str
    """Its id."""
    done: int
    """All records up to this sequence are in the pool."""
    synced: int
    """All records up to this sequence are on the local disk."""
