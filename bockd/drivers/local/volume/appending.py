"""The end of an open volume's journal: map changes on their way into the segment under way.

    stage    a change joins the batch under way
    commit   the batch is appended, before it is acknowledged (promise D1)

Invariants:
* Scattered single blocks come before whatever is staged after them, so records are in order.
* A batch that could not be appended stays staged, and the volume has failed: what waits for it is
  never acknowledged.
* The segment has room for what is staged: whoever stages has asked (volume.room).
"""

from __future__ import annotations

from collections.abc import Sequence

from bockd.drivers.local.format.journal import (
    CellBlocks,
    CellRun,
    Entry,
    JournalSegment,
    Kind,
    ZeroBlocks,
    places,
)
from bockd.drivers.local.volume.failing import Failure
from bockd.failpoints import Failpoint, hit


class JournalTail:
    """The journal segment that is appended to, and the batch that comes next."""

    def __init__(self, failure: Failure, segment: JournalSegment) -> None:
        """`segment` has no room: the journal begins with the first `switch_to`."""
        self.begun = False
        """Something may have been changed since the volume was opened: it has a journal, and the
        index knows. Until then there is no head to write to."""
        self.segment = segment
        self.sequence = 0
        """A sequence not above that of the next change to be appended, and above all earlier
        ones: what the map remembers of when a leaf changed."""
        self.allowance = 0
        """Single blocks that may still be redirected before `JournalRoom` is to be asked."""
        self.last_change = 0
        """The sequence of the last change that was appended and that the index may not have."""
        self.durable = 0
        """The last sequence that a durable barrier covers."""
        self._failure = failure
        self._staged: list[Entry] = []
        self._scattered: list[int] = []
        self._first_cell = -1
        """Of a packed head: where the first of `_scattered` lies; the others follow."""

    def switch_to(self, segment: JournalSegment) -> None:
        """Append to another segment from now on. Nothing is staged."""
        self.begun = True
        self.segment = segment
        self.sequence = segment.next_sequence
        self.allowance = 0

    def forget_changes(self) -> None:
        """Forget that appended changes lack a barrier: the index has them."""
        self.last_change = self.durable = 0

    @property
    def untouched(self) -> bool:
        """True when the segment is empty and nothing is staged."""
        return not (self.segment.used or self._staged or self._scattered)

    def exposed(self) -> bool:
        """Return whether the map changed since the last durable barrier."""
        return self.last_change > self.durable or bool(self._staged or self._scattered)

    def free(self) -> int:
        """Return how many places the segment has, beside those for what is staged."""
        free = self.segment.free - len(self._scattered)
        return free - places(self._staged) if self._staged else free

    def stage(self, kind: Kind, first: int, count: int) -> None:
        """Add a change of a range to the batch that `commit` appends."""
        self._gather_scattered()
        if kind is Kind.HOLE and self._staged:
            # Clients trim one range after the other, in many requests.
            last = self._staged[-1]
            if last[0] is Kind.HOLE and last[1] + last[2] == first:
                self._staged[-1] = (kind, last[1], last[2] + count)
                return
        self._staged.append((kind, first, count))

    def stage_block(self, block: int) -> None:
        """Add the redirect of one block, for which there is allowance."""
        self.allowance -= 1
        self._scattered.append(block)

    def stage_blocks(self, blocks: Sequence[int]) -> None:
        """Add redirects of single blocks, for which there is allowance."""
        self.allowance -= len(blocks)
        self._scattered.extend(blocks)

    def stage_range(self, first: int, count: int) -> None:
        """Add the redirect of `count` blocks from `first` on, for which there is allowance for
        one."""
        self.allowance -= 1
        self.stage(Kind.REDIRECT, first, count)

    def stage_cells(self, blocks: Sequence[int], cell: int) -> None:
        """Add that single blocks are in a packed head, for which there is allowance: in cells from
        `cell` on, one behind the other."""
        self.allowance -= len(blocks)
        if self._first_cell + len(self._scattered) != cell:
            self._gather_scattered()
        if not self._scattered:
            self._first_cell = cell
        self._scattered.extend(blocks)

    def stage_run(self, first: int, count: int, cell: int) -> None:
        """Add that `count` blocks from `first` on are in a packed head, in cells from `cell` on,
        for which there is allowance for one."""
        self.allowance -= 1
        self._gather_scattered()
        self._staged.append(CellRun(first, count, cell))

    def stage_new(self, runs: Sequence[tuple[int, int]], cell: int) -> None:
        """Add the new blocks of one engine write to a packed head, as runs (first, end), which lie
        in cells from `cell` on."""
        self._gather_scattered()
        single = CellBlocks([block for run in runs for block in range(*run)], cell)
        if places([single]) < len(runs):
            self._staged.append(single)
            return
        for first, end in runs:
            self._staged.append(CellRun(first, end - first, cell))
            cell += end - first

    def stage_zeros(self, blocks: Sequence[int]) -> None:
        """Add to the batch that these blocks of the head, in order, may be all zeros from now on.
        They are blocks of one engine write."""
        self._gather_scattered()
        self._staged.append(ZeroBlocks(blocks))

    def _gather_scattered(self) -> None:
        scattered, cell = self._scattered, self._first_cell
        if scattered:
            # One block alone takes a single place as a range.
            alone = len(scattered) == 1
            if cell < 0:
                self._staged.append((Kind.REDIRECT, scattered[0], 1) if alone else scattered)
            else:
                one = CellRun(scattered[0], 1, cell)
                self._staged.append(one if alone else CellBlocks(scattered, cell))
            self._scattered, self._first_cell = [], -1

    def commit(self) -> None:
        """Append the staged changes. Raises VolumeFailedError: none of them may be acknowledged
        then."""
        self._gather_scattered()
        if not self._staged:
            return
        self._failure.check_usable()
        hit(Failpoint.WRITE_REMAPPED)
        try:
            self.segment.append(self._staged)
        except OSError as error:
            # What is staged stays: those whose changes these are must not succeed later.
            self._failure.declare(f"appending to the journal failed: {error}")
        self._failure.check_usable()
        self._staged = []
        hit(Failpoint.JOURNAL_APPENDED)
        self.last_change = self.segment.last_sequence
        self.sequence = self.segment.next_sequence
