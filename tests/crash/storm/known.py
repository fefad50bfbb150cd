"""What a storm's client knows of each volume: what it may hold, and its snapshots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from tests.crash.history import History, Shot

Read = Callable[[str], bytes]
"""The whole content of an NBD export."""

VALUES_OF_A_VOLUME = 1 << 32
"""Writes to two volumes never have the same number: what is another volume's shows."""


class There(Enum):
    """Whether a volume exists."""

    COMING = "being made"
    YES = "there"
    GOING = "being deleted"


@dataclass(eq=False)
class KnownVolume:
    """One volume."""

    name: str
    history: History
    there: There = There.COMING
    shots: list[Shot] = field(default_factory=list)
    taken: int = 0
    """Snapshots that were ever asked for."""

    @property
    def size_bytes(self) -> int:
        return self.history.units * self.history.unit_bytes

    def begin_shot(self) -> Shot:
        """A snapshot is about to be asked for."""
        shot = self.history.begin_shot(f"{self.name}-{self.taken}")
        self.taken += 1
        self.shots.append(shot)
        return shot

    def end_shot(self, shot: Shot, *, created: bool) -> None:
        """It was made; or the daemon died of it, and it may be there or not."""
        shot.created = created
        self.history.shots.remove(shot)

    def verify_listing(self, found: set[str]) -> None:
        """What exists is what must, and nothing that must not; what does not is forgotten."""
        must = {shot.name for shot in self.shots if shot.created and not shot.deleting}
        may = {shot.name for shot in self.shots}
        assert must <= found, f"snapshots are missing: {must - found}"
        assert found <= may, f"snapshots of nobody, or not deleted: {found - may}"
        self.shots = [shot for shot in self.shots if shot.name in found]

    def verify(self, read: Read) -> int:
        """After a restart: the volume holds what was acknowledged or newer (D1), every snapshot
        what it held (D4). Returns how many snapshots."""
        for shot in self.shots:
            self.history.verify_shot(shot, read(f"snapshot/{shot.name}"))
            shot.created, shot.deleting = True, False
        self.history.verify(read(self.name))
        self.there = There.YES
        return len(self.shots)


def clone_of(shot: Shot, source: KnownVolume, name: str, number: int) -> KnownVolume:
    """A volume that is about to be made from a snapshot whose content is known."""
    assert shot.content is not None
    old = source.history
    history = History(old.units, old.unit_bytes, number * VALUES_OF_A_VOLUME + 1, shot.content)
    return KnownVolume(name, history)


def verify_listing(volumes: dict[str, KnownVolume], found: set[str]) -> None:
    """As `KnownVolume.verify_listing`, of volumes."""
    must = {name for name, volume in volumes.items() if volume.there is There.YES}
    assert must <= found, f"volumes are missing: {must - found}"
    assert found <= set(volumes), f"volumes of nobody, or not deleted: {found - set(volumes)}"
    for name in set(volumes) - found:
        del volumes[name]
