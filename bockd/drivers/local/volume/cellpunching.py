"""Punching the cells that trims have emptied in a packed head, in the background.

A write never goes to such a cell: it gets another one. So nothing is locked, and nothing is taken
off the list before it is punched. What is punched may be used again when a checkpoint has made sure
of it (volume.cells).
"""

from __future__ import annotations

from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.volume.cells import HeadCells
from bockd.drivers.local.volume.flushing import Flusher
from bockd.drivers.local.volume.punching import PIECE_BLOCKS
from bockd.failpoints import Failpoint, hit
from bockd.model import BLOCK_SIZE
from bockd.runtime.steps import blocking
from bockd.runtime.waiting import Mutex


class CellPuncher:
    """Punches the emptied cells of one packed head. For the owner thread."""

    def __init__(self, head: Layer, cells: HeadCells, flusher: Flusher) -> None:
        self.scheduled = False
        """A run was spawned and has not ended."""
        self.head = head
        self._cells = cells
        self._flusher = flusher
        self._turn = Mutex()

    @property
    def idle(self) -> bool:
        """True when nothing waits to be punched, and nothing is being punched."""
        return not (self._cells.emptied or self._turn.held)

    def forget(self) -> None:
        """Forget what waits to be punched."""
        self._cells.forget_emptied()

    async def run(self) -> None:
        """Punch until nothing waits. If a punch is under way, wait for its end. Raises OSError:
        what was to be punched is not used again."""
        async with self._turn:
            while taken := self._cells.take_emptied(PIECE_BLOCKS):
                if await blocking(self._punch, taken):
                    # Before they count as punched: the seal that makes them free must sync them.
                    self._flusher.unsynced = True
                    self._cells.note_punched(taken)

    def _punch(self, cells: range) -> bool:
        """In a thread: punch, and return False where the file system cannot."""
        hit(Failpoint.PUNCH_BEGUN)
        punched = self.head.punch(cells.start * BLOCK_SIZE, len(cells) * BLOCK_SIZE)
        hit(Failpoint.PUNCH_DONE)
        return punched
