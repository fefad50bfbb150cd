"""The volume contract: all that a frontend (NBD, FUSE, nbdkit) may ask of a volume or snapshot.

Requests arrive here validated: inside the device, within its size, not a write to something
read-only (the boundary checks, the inside asserts). Offsets and lengths are in bytes and need no
alignment. Everything is called on the owner thread.

A write is *acknowledged* when the frontend may answer its client. That is after `commit()` for the
`try_*` forms and when the coroutine has finished for the others; from then on it survives the
death of the process (promise D1).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from bockd.model import GIB, Extent
from bockd.runtime.steps import Blocking, Signal, Steps

CACHE_AHEAD_BYTES = 1 * GIB
"""How far one call of `cache` reads ahead: the page cache of a machine is not much larger, and a
hint that names a whole volume of 16 TiB must not bring 16 million leaves into memory."""


class BlockDevice(Protocol):
    """An open volume (writable) or snapshot (read-only)."""

    @property
    def size_bytes(self) -> int:
        """Size now; a volume may be extended while it is open."""
        ...

    @property
    def read_only(self) -> bool:
        """True for a snapshot: only reads, extents, cache and flush are allowed."""
        ...

    def try_read(self, offset: int, into: memoryview) -> bool:
        """Fill `into` from `offset` if that needs no waiting; False if it would, with `into` in
        an undefined state. Raises BockdError on an I/O error."""
        ...

    def try_write(self, offset: int, data: memoryview) -> bool:
        """Write `data` at `offset` if that needs no waiting; False, with nothing changed, if it
        would. Not acknowledged before `commit()`. Raises BockdError (NoSpaceError, ...)."""
        ...

    def try_trim(self, offset: int, length: int) -> bool:
        """Trim a range, as `trim` does, if that needs no waiting; False, with nothing changed, if
        it would. Not acknowledged before `commit()`. Raises BockdError."""
        ...

    def commit(self) -> None:
        """Make what `try_write` and `try_trim` did since the last commit safe against the death of
        the process: one journal append for the whole batch. Costs nothing when no map entry
        changed. Raises VolumeFailedError when that failed: then nothing since the last commit may
        be acknowledged."""
        ...

    def read(self, offset: int, into: memoryview) -> Steps[None]:
        """Fill `into` from `offset`."""
        ...

    def write(self, offset: int, data: memoryview) -> Steps[None]:
        """Write `data` at `offset`. `data` must not change before the end."""
        ...

    def zero(self, offset: int, length: int, *, allocate: bool) -> Steps[None]:
        """Make a range read as zeros; with `allocate`, keep it backed by disk space (NBD's
        NO_HOLE), otherwise give the space of whole blocks back."""
        ...

    def trim(self, offset: int, length: int) -> Steps[None]:
        """Give back whole blocks inside a range; they read as zeros. Partial ones at the edges
        are left alone."""
        ...

    def flush(self) -> Steps[None]:
        """Make every write acknowledged before the call survive power loss (promise D2)."""
        ...

    def try_extents(self, offset: int, length: int, limit: int) -> list[Extent] | None:
        """Answer as `extents` if that needs no waiting, after about 1 ms of work at most; None if
        it would."""
        ...

    def extents(self, offset: int, length: int, limit: int) -> Steps[list[Extent]]:
        """Describe the range from `offset` on as alternating extents: at least one, at most
        `limit`; may stop short of `length` (the caller asks again from there)."""
        ...

    def cache(self, offset: int, length: int) -> Steps[None]:
        """Ask the operating system to read a range ahead; a hint, it never fails."""
        ...


@runtime_checkable
class SharedDevice(Protocol):
    """A `BlockDevice` that another gateway may take: everything raises VolumeTakenError then,
    whatever came of it, and no request may be answered any more."""

    lost: Signal
    """Fires when that is known, before anything raises. Who has opened the device leaves it, and
    opens it anew to go on."""


class MappedWindow(Protocol):
    """A part of a file in memory, for system calls alone: a page that cannot be read kills whoever
    touches it otherwise."""

    start: int
    """Its place in the file."""
    address: int
    length: int
    """In bytes."""


class OpenLayer(Protocol):
    """Files that hold blocks: each at its offset in the device, or in cells if they are packed."""

    first_descriptor: int
    """Of the file that holds what lies within `FastView.reach_bytes`; negative: do not read."""
    nowait_flag: int
    """For preadv: fail rather than wait for the disk; 0 where that cannot be had."""

    packed: bool
    """A block lies in the cell that `FastView.cells` has for it: cell c is the 4 KiB from byte
    c x 4096 of the first file."""
    used: bool
    """To be set by whoever reads."""

    def window(self, offset: int) -> MappedWindow | None:
        """Return the window that contains byte `offset` of the first file, or None."""
        ...


class Journal(Protocol):
    """Where a device notes what the next flush has to do."""

    unsynced: bool
    """Set before the first write in place."""


class Redirects(Protocol):
    """How a frontend may write whole blocks that the head does not hold: with `allowance`, it
    writes them into the head's file and sets their slot in a leaf of their own, then stages them.
    Nothing that it has served since is acknowledged before `commit`. None of the blocks may be
    all zeros. It is RawRedirects or PackedRedirects, as the head is."""

    shared: dict[int, array[int]]
    """Leaves that stand in many places, by their slot. They must not be changed."""
    piece_bytes: int
    """No more is to be written in one call, for the sake of the page cache."""

    def allowance(self) -> int:
        """Return how many redirects may be made before the next question; 0 for none."""
        ...

    def own_leaf(self, number: int) -> array[int] | None:
        """Return the leaf of this number, or a copy that stands in its place from now on if it was
        shared. In a packed head it has cells of its own, too. None if it is not in memory."""
        ...

    def trim(self, ranges: bytes) -> int:
        """Trim ranges of the device as `try_trim` does. Each is given by its offset and its length
        in bytes, as two native 64-bit numbers. Return how many of them were trimmed, from the first
        on; the next one is to be asked for by `try_trim`. May be called, too, while `head_slot`
        says that nothing may be written."""
        ...

    def commit(self) -> bool:
        """Append to the journal what is staged. False when that failed: nothing since the last
        commit may be acknowledged, and nothing may be written any more."""
        ...


class RawRedirects(Redirects, Protocol):
    """A block is written at its own offset."""

    def stage(self, ranges: bytes) -> None:
        """Note redirects for the journal: for each the first block and how many follow it in the
        same leaf, itself included, as two native 32-bit numbers. What is not staged is lost."""
        ...


class PackedRedirects(Redirects, Protocol):
    """Blocks are written to cells that `take` gives. Their cells are set with their slots."""

    def take(self, count: int) -> int:
        """Return the first of `count` cells that follow each other; -1 if there are none."""
        ...

    def give_back(self, cell: int, count: int) -> None:
        """Take back cells to which no map leads: they were not written, or not all of them."""
        ...

    def stage_cells(self, ranges: bytes, cell: int) -> None:
        """Note redirects for the journal, as RawRedirects.stage. Their blocks lie one behind the
        other in the cells from `cell` on."""
        ...


class FastView(NamedTuple):
    """What a frontend may read, and write in place, without asking for each request; valid until
    anything else is called (but for what `redirects` has) or awaited. Reading or writing so is as
    `try_read`, and as `try_write` of blocks that need no `commit`."""

    leaves: dict[int, array[int]]
    """256 neighbouring blocks each, by the number of the first divided by 256: for each block its
    slot (typecode H). One that is absent must be asked for by `try_read` or `try_write`."""
    cells: dict[int, array[int]]
    """By the same numbers, for leaves with a block in a packed layer: for each block its cell in
    the layer of its slot (typecode I). It means nothing for blocks that are not in one."""
    slots: Sequence[OpenLayer | None]
    """The layer of each slot; None is all zeros."""
    head_slot: int
    """Blocks of this slot may be overwritten; -1 when nothing may be."""
    journal: Journal | None
    """None when nothing may be written."""
    reach_bytes: int
    """Only requests that end before are served so."""
    minds_zeros: bool
    """A write that leaves a block, or the part of it that it covers, all zeros is none of these.
    So it is after the first redirect in any case."""
    redirects: Redirects | None
    """Whole blocks that are not in the head may be written through these, unless `head_slot` says
    that nothing may be, and trims be made. None when neither may be."""
    marks: list[int]
    """A read that covers the byte at one of these offsets must be asked for by `try_read`."""


FilePart = tuple[int, int, int, int, int]
"""A read that `FastView` has shown to lie in one piece of a file: its slot, its offset in the
device, that in the file, its length, and where in a buffer its data goes; all but the slot in
bytes."""


class PartSizes(NamedTuple):
    """How the payload of a large write is cut when it is written as it comes."""

    longest_bytes: int
    """What one part is at most; it ends at a multiple of this in the device."""
    unit_bytes: int
    """A part ends at a multiple of this, but for the last: it divides `longest_bytes`, and is less
    than what is received at once."""


@runtime_checkable
class FastDevice(Protocol):
    """A BlockDevice whose blocks lie in files."""

    part_sizes: PartSizes

    @property
    def size_bytes(self) -> int: ...

    def fast_view(self) -> FastView:
        """See FastView."""
        ...

    def read_files(
        self, parts: Sequence[FilePart], into: memoryview, read: Blocking[None]
    ) -> Steps[None]:
        """Make the call `read` in a thread, where it reads `parts` into a buffer, of which
        `try_read` could do none. The files stay open, their blocks stay what they are, and what has
        checksums is verified.

        To be begun while the view is valid that has shown the parts. Raises what `read` raises,
        and BockdError."""
        ...
