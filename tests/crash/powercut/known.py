"""What is known of each volume and snapshot: what it was given, what was acknowledged, and which
flush covers what.

The clock is the scheduler's. A sector may hold a value if it was given it, and if no other write
began after that one and was acknowledged before `since`: the beginning of the newest acknowledged
flush for a power cut (D2, D3), now for a killed process (D1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from bockd.model import SnapshotId, VolumeId
from tests.drivers.local.schedule import History, Span

SECTOR = History.SECTOR


class There(Enum):
    """Whether it exists."""

    COMING = "being made"
    YES = "there"
    GOING = "being deleted"


def history_of(content: bytes) -> History:
    """Of something whose content is durable."""
    history = History(0)
    history.sectors = [
        [Span(content[at : at + SECTOR], -1, -1)] for at in range(0, len(content), SECTOR)
    ]
    return history


@dataclass(eq=False)
class KnownVolume:
    """One volume, as a client knows it."""

    name: str
    history: History
    there: There = There.COMING
    id: VolumeId | None = None
    flushed: int = -1
    """When the newest acknowledged flush began."""
    active: int = 0
    """Operations on it that have not ended."""
    reserved: bool = False
    """An operation needs it for itself; nothing else begins."""
    instead: bytes | None = None
    """Its content, if the revert under way was done."""
    growing: int = 0
    """Its size, if the extension under way was done."""

    @property
    def size(self) -> int:
        return len(self.history.sectors) * SECTOR

    def verify(self, content: bytes, since: int, now: int) -> None:
        """AssertionError when it holds what it must not."""
        if self.instead is not None and content == self.instead:
            return
        assert len(content) in (self.size, self.growing), f"{self.name} has {len(content)} bytes"
        assert not any(content[self.size :]), f"{self.name} has grown, and not by zeros"
        wrong = self.history.violations(content[: self.size], since, now)
        assert not wrong, f"{self.name}: {self._explain(content, wrong[0], since)} ({len(wrong)})"

    def _explain(self, content: bytes, sector: int, since: int) -> str:
        found = content[sector * SECTOR : (sector + 1) * SECTOR]
        given = [(s.value[:8].hex(), s.start, s.end) for s in self.history.sectors[sector]]
        return f"sector {sector} holds {found[:8].hex()}; since {since} it may of {given}"

    def confirm(self, content: bytes, *, durable: bool) -> None:
        """What was found after a death is what it holds. If it is durable, nothing else counts."""
        if durable or self.instead == content:
            self.history, self.flushed = history_of(content), -1
        self.history.sectors += history_of(content[self.size :]).sectors
        self.instead, self.growing = None, 0
        self.active, self.reserved = 0, False


@dataclass(eq=False)
class KnownSnapshot:
    """One snapshot."""

    name: str
    history: History
    """Of its volume, at the time."""
    size: int
    began: int
    there: There = There.COMING
    id: SnapshotId | None = None
    ended: int | None = None
    content: bytes | None = None
    """What was read from it first: it never changes (D4)."""
    users: int = 0
    """Operations that need it."""

    def verify(self, content: bytes, now: int) -> None:
        """AssertionError when it is not what it was, or not what it should be."""
        if self.content is not None:
            assert content == self.content, f"{self.name} has changed"
            return
        ended = now if self.ended is None else self.ended
        wrong = self.history.violations(content[: self.size], self.began, ended)
        assert not wrong, f"{self.name} is not what was acknowledged: sectors {wrong[:5]}"
        assert not any(content[self.size :])


@dataclass
class World:
    """All of it."""

    volumes: dict[str, KnownVolume] = field(default_factory=dict)
    snapshots: dict[str, KnownSnapshot] = field(default_factory=dict)

    def usable(self) -> list[KnownVolume]:
        """Volumes on which an operation may begin."""
        return [v for v in self.volumes.values() if v.there is There.YES and not v.reserved]

    def ready(self) -> list[KnownSnapshot]:
        """Snapshots that operations may use."""
        return [s for s in self.snapshots.values() if s.there is There.YES and s.content]

    def verify_listing(self, volumes: set[str], snapshots: set[str]) -> None:
        """What is listed is what there is, but for what was under way."""
        for found, known in ((volumes, self.volumes), (snapshots, self.snapshots)):
            must = {name for name, node in known.items() if node.there is There.YES}
            assert must <= found, f"missing: {must - found}"
            assert found <= set(known), f"not deleted, or never made: {found - set(known)}"
