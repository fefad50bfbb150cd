"""What a pool says of itself: space, room, how whole it is. Plain data, for whoever shows it.

Sizes are in bytes, times are seconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

from bockd.model import NodeKind


@dataclass(frozen=True, slots=True)
class Space:
    """What a volume or snapshot stores: blocks only it reaches, and blocks others reach too."""

    exclusive_bytes: int
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class NodeSpace:
    """The space of one volume or snapshot."""

    kind: NodeKind
    id: int
    space: Space


@dataclass(frozen=True, slots=True)
class SpacePage:
    """The space of some volumes and snapshots."""

    spaces: tuple[NodeSpace, ...]
    next: int | None
    """Where to go on; None: that was the last."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Where a snapshot may differ from an older one."""

    ranges: tuple[tuple[int, int], ...]
    """Offset and length in bytes, in order, none next to another."""
    end_bytes: int
    """Up to where they are all; the size of the newer one if there are no more."""


@dataclass(frozen=True, slots=True)
class BackupRecord:
    """The last backup of a pool into one directory."""

    directory: str
    began_at: float
    """It has what was answered before."""
    finished_at: float | None = None
    """When it was whole and checked. None: it is under way, or was interrupted, and the directory
    has no backup."""
    written_bytes: int = 0
    left_out: tuple[str, ...] = ()
    """Volumes in the trash that had failed, and are not in it."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` found. `clean` decides the exit status."""

    clean: bool
    problems: tuple[str, ...]
    """One line each: what is wrong, with what, and what it means."""
    repaired: tuple[str, ...]
    volumes: int
    snapshots: int
    layers: int
    leaves: int
    stray_blocks: int
    """Blocks in layers that no map reaches: legal after a crash, space that `--repair` returns."""
    pending_reclaim: int
    """Maps, layers and block runs that wait for background reclaim."""
    hollow_blocks: int = 0
    """Mapped blocks that take no space in their layer and read as zeros: legal in a volume that
    lost power between a trim and the next flush, and in a copy; a fault anywhere else."""
    checksums: int = 0
    """Blocks of snapshots whose checksum is known."""
    damaged_blocks: int = 0
    """Those that did not have it when they were last read; each is among the problems."""


@dataclass(frozen=True, slots=True)
class DamagedBlock:
    """A block of a frozen layer that does not hold what it held; reading it fails."""

    layer: int
    offset_bytes: int
    """In every volume and snapshot that shows it, and in a layer that is not packed."""
    found_at: float
    readable: bool
    """False: the disk does not give it at all."""
    volumes: tuple[str, ...]
    """Names of those that show it; one in use may have overwritten it since."""
    snapshots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScrubStatus:
    """How far the checksums of what snapshots hold are written, and verified."""

    unread_layers: int
    """Layers that have no checksums yet, or not all."""
    under_way: bool
    """A pass that verifies them was begun and is not finished."""
    started_at: float | None
    """Of the pass under way, or else of the last one."""
    finished_at: float | None
    verified_bytes: int
    leaves_done: int
    leaves_total: int
    """Of 1 MiB each, at most; as known when the pass began."""
    damaged: tuple[DamagedBlock, ...]
    running: bool = False
    """Somebody has asked this daemon for a pass, and it is not finished."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Bytes of a pool's data by who keeps them. A block that several show counts once, for the
    first of these."""

    volumes_bytes: int
    snapshots_bytes: int
    """What no volume shows: it returns when all snapshots are deleted."""
    images_bytes: int
    """What neither a volume nor a snapshot shows."""
    trash_bytes: int = 0
    """What only volumes and snapshots in the trash show: it returns when that is emptied."""


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """What a volume or snapshot takes. `space.exclusive_bytes` return when it is deleted, unless
    `freed_bytes` says what does."""

    kind: NodeKind
    id: int
    name: str
    """In the pool; of one in the trash, what it was called there."""
    size_bytes: int
    made_of: tuple[NodeKind, int] | None
    """Of the same family; None: that is deleted, or there was nothing."""
    space: Space
    with_below_bytes: int
    """They return when it is deleted, and all that was made of it."""
    in_trash: bool = False
    freed_bytes: int | None = None
    """They return when it alone is deleted, at least. None: as many as are exclusive."""


@dataclass(frozen=True, slots=True)
class FamilyUsage:
    """Volumes and snapshots that may share data, by id. No other shares any with them."""

    total_bytes: int
    """A block that several show counts once."""
    nodes: tuple[NodeUsage, ...]
    hidden_snaps: int = 0
    """Those that Ceph keeps for clones, though their snapshots are deleted. What only they have is
    not known, and in no figure."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a file view shows of a volume or snapshot, beside its record."""

    allocated_bytes: int
    """The space that it takes. At least what it shows: a file of no blocks is taken for empty."""
    modified_at: float
    """Of its content."""
