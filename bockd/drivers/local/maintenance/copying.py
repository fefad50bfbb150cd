"""Copying blocks of one layer to their own offsets in a raw one: for merging, and for settling.

What is copied is what leaves of the layers' home show. Of a packed layer it is read in the order of
its cells and written in that of its blocks, a window at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from bockd.drivers.local.format import cells
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, Leaf
from bockd.errors import DamagedError
from bockd.model import BLOCK_SIZE, MIB, LayerId
from bockd.pool.index import Transaction

WINDOW_BLOCKS = 16 * MIB // BLOCK_SIZE
"""Of what is read from a packed layer before it is written: in memory meanwhile."""

_COPY_BYTES = 1 * MIB


def copy_blocks(source: Layer, target: Layer, first: int, end: int) -> None:
    """Copy blocks first..end-1 of a raw layer. Raises OSError, DamagedError, DeviceError."""
    start, stop = first * BLOCK_SIZE, end * BLOCK_SIZE
    buffer = memoryview(bytearray(min(_COPY_BYTES, stop - start)))
    while start < stop:
        piece = buffer[: min(len(buffer), stop - start)]
        source.read(start, piece)
        target.write(start, piece)
        start += len(piece)


@dataclass
class Window:
    """Blocks of a packed layer that are copied together."""

    source: LayerId
    blocks: dict[int, int] = field(default_factory=dict)
    """Cell to block."""

    def take(self, txn: Transaction, number: int, leaf: Leaf) -> bool:
        """Take in what a leaf shows of the layer. Return False, with nothing taken in, if there is
        no room for a whole leaf. Raises DamagedError where a cell is missing, or given twice."""
        if self.source not in leaf.palette:
            return True
        if len(self.blocks) + LEAF_BLOCKS > WINDOW_BLOCKS:
            return False
        found = cells.cells_of_leaf(txn, number, leaf, (self.source,))
        for block, layer in enumerate(leaf.layers()):
            if layer != self.source:
                continue
            if found[block] in self.blocks:
                raise DamagedError(
                    f"two blocks of layer {self.source} have one cell; run 'bockd check'"
                )
            self.blocks[found[block]] = number * LEAF_BLOCKS + block
        return True

    @classmethod
    def of(cls, source: LayerId, txn: Transaction, number: int, leaf: Leaf) -> Self:
        """Return a window that begins with a leaf."""
        window = cls(source)
        window.take(txn, number, leaf)
        return window

    def runs(self) -> list[tuple[int, int]]:
        """Return the blocks as runs (first, end)."""
        return list(cells.runs_of_cells(sorted(self.blocks.values())))

    def copy(self, source: Layer, target: Layer) -> None:
        """Copy the blocks. Raises OSError, DamagedError, DeviceError; any part may be copied."""
        content: dict[int, memoryview] = {}
        for first, end in cells.runs_of_cells(sorted(self.blocks)):
            buffer = memoryview(bytearray((end - first) * BLOCK_SIZE))
            source.read(first * BLOCK_SIZE, buffer)
            for cell in range(first, end):
                at = (cell - first) * BLOCK_SIZE
                content[self.blocks[cell]] = buffer[at : at + BLOCK_SIZE]
        for first, end in self.runs():
            for start in range(first, end, _COPY_BYTES // BLOCK_SIZE):
                stop = min(end, start + _COPY_BYTES // BLOCK_SIZE)
                piece = b"".join([content[block] for block in range(start, stop)])
                target.write(start * BLOCK_SIZE, memoryview(piece))
