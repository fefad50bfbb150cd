"""Volumes whose writes are answered before the cluster has them: what this driver asks of
`bockd.drivers.writeback`, and what it writes down about it in the index.

A volume is *dirty* at a gateway from before the first such write is answered until all of them are
in its image, or were discarded. The record says so (bockd.drivers.rbd.records), and whoever takes
volumes minds it (bockd.drivers.rbd.taking).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bockd.drivers.rbd.records import DirtyAt, Identity, Tenures
from bockd.model import VolumeId
from bockd.pool.caches import LogReach, Salvaged
from bockd.pool.device import BlockDevice
from bockd.pool.figures import Figure
from bockd.runtime.steps import Steps, blocking_apart


class WriteBackDevice(BlockDevice, Protocol):
    """A device that answers writes when a log on the local disk has them, and writes them to
    another one later, in the order of flushes."""

    @property
    def trouble(self) -> str | None:
        """Why nothing is written back now."""
        ...

    def dirty(self) -> tuple[int, float | None]:
        """Return how many bytes of the log are not below, and since when (seconds since the epoch);
        None if there are none."""
        ...

    def carried_out(self) -> int:
        """Return a number that changes whenever the device below has carried out a request of what
        is written back. For any thread."""
        ...

    def reach(self) -> LogReach | None:
        """Return how far the log has come of which `on_dirty` was told; None: it was of none."""
        ...

    def note_known(self, reach: LogReach) -> Steps[None]:
        """Keep in the log what the index has committed of how far it has come: a record that says
        less is an older one."""
        ...

    def write_through(self) -> None:
        """Answer writes from now on when the device below has them."""
        ...

    def write_back(self) -> None:
        """Answer writes from the log again."""
        ...

    def hold(self, *, held: bool) -> None:
        """Answer writes and flushes when the device below has them, or not only then any more."""
        ...

    def drain(self) -> Steps[None]:
        """Return when all that was answered is below and flushed. While writes go through, nothing
        is dirty then, and that was written down. Raises BockdError."""
        ...

    def retire(self) -> None:
        """Answer nothing any more: the volume is given back."""
        ...

    def lose(self) -> None:
        """Answer nothing any more: the volume was taken. What is dirty stays in the log."""
        ...

    def close(self) -> Steps[None]:
        """Send nothing below any more, end a `drain`, and keep what is dirty for the next opening.
        Doing so again does nothing."""
        ...


class WriteBackSalvage(Protocol):
    """Writes to an image what a damaged log of it has before its damage."""

    def drain(self) -> Steps[None]:
        """Return when all of that is below and flushed. Raises UnreadableError: the rest of it
        cannot be read; BockdError."""
        ...

    def carried_out(self) -> int:
        """Do what `WriteBackDevice.carried_out` does."""
        ...

    def left_bytes(self) -> int:
        """Return how much of the log is not below that may yet be."""
        ...

    def result(self) -> Salvaged:
        """Return what has become of the log, if the rest is given up now."""
        ...

    def close(self) -> Steps[None]:
        """Send nothing below any more, end a `drain`, and leave the log as it is."""
        ...


class WriteBacks(Protocol):
    """Makes them: `bockd.drivers.writeback.directory.WriteBackDirectory`."""

    @property
    def id(self) -> str:
        """What names the directory of logs for good."""
        ...

    @property
    def path(self) -> Path:
        """Where it is, for people."""
        ...

    def open(
        self,
        below: BlockDevice,
        image: str,
        dirty: LogReach | None,
        on_dirty: Callable[[str], Steps[None]],
        on_clean: Callable[[], Steps[None]],
        on_unnotable: Callable[[], Steps[None]],
    ) -> Steps[WriteBackDevice]:
        """Put a log in front of an image. `dirty` is what the record says of the log which has what
        is dirty; None: nothing is, so logs of the image that are here are void. `on_dirty` is
        awaited before the first write is answered that is not below, with the log's id; `on_clean`
        when nothing is dirty any more; `on_unnotable` before more may be below than the log says.
        Raises DamagedError: the log is missing, or an older one, or damaged, or the record is older
        than the log; BockdError."""
        ...

    def salvage(
        self, below: BlockDevice, image: str, dirty: LogReach
    ) -> Steps[WriteBackSalvage | None]:
        """Begin to write to an image what its log has before its damage: the rest is to be given
        up. None: nothing of the log can be used. Raises BockdError: it cannot be read."""
        ...

    def images(self) -> list[str]:
        """Return the images of which there are logs. For any thread; blocks. Raises BockdError."""
        ...

    def has(self, image: str, log: str) -> bool:
        """Return whether there is a log of that id here, whole or not. For any thread. Raises
        BockdError."""
        ...

    def refuse_missing(self, image: str, log: str) -> Steps[None]:
        """Raise DamagedError if there is no log of that id here; BockdError: nobody knows."""
        ...

    def discard(self, image: str, *, keep: bool) -> Steps[None]:
        """Remove the log of an image that is not open, if there is one; but with `keep`, put it
        aside if it has something that is not below. Raises BockdError."""
        ...

    def aside(self) -> list[Path]:
        """Return what was put aside."""
        ...

    def figures(self, left: Sequence[float] = ()) -> list[Figure]:
        """Measure the logs. `left`: since when volumes are dirty here that are not open."""
        ...

    def look(self) -> None:
        """See what is due: called every second or so."""
        ...

    def release(self) -> None:
        """Give up the place where the logs are. Nothing is open."""
        ...


@dataclass(frozen=True)
class DirtyMarks:
    """Of a volume that this gateway has since an epoch: what its device writes down in the
    index."""

    tenures: Tenures
    who: Identity
    clock: Callable[[], float]
    volume: VolumeId
    epoch: int

    async def dirty(self, directory: str, log: str) -> None:
        """Write down that this gateway makes the volume dirty, in a log of a directory, by their
        ids. Raises VolumeTakenError, and BockdError: it may have been written down all the same."""
        dirty = DirtyAt(self.who.gateway, log, self.clock(), directory=directory)
        mark = self.tenures.mark_dirty
        await blocking_apart("dirty marks", mark, self.volume, self.epoch, dirty, directory)

    async def clean(self) -> None:
        """Write down that nothing is dirty. Raises as `dirty` does."""
        await blocking_apart("dirty marks", self.tenures.mark_clean, self.volume, self.epoch)

    async def unnotable(self) -> None:
        """Write down that more may be in the image than the log says. Raises as `dirty` does."""
        await blocking_apart("dirty marks", self.tenures.mark_unnotable, self.volume, self.epoch)
