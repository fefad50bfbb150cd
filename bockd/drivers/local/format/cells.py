"""Cells: where the blocks of a packed layer lie.

The layer of a volume's own is *raw*: a block lies at its own offset. In a *packed* layer new blocks
lie one behind the other, each in a *cell* of 4 KiB: cell c at byte c x 4096 of the layer's file.
The map says that a layer holds a block; in which cell, this table does, for all maps alike: in one
layer a block has one cell at any time. While the layer is a head, its volume alone writes there;
afterwards nothing changes.

    CELLS/<layer:u64><leaf number:u32>   blocks: 256 bits | cell:u32 for each bit that is set

(format.leafvalues). A row loses bits in the transaction that queues their blocks to be punched. The
rows of a layer that the index has forgotten go in batches, before its file does.

Invariants:
* A leaf that leads to a packed layer for a block has a cell for it. The reverse need not be.
* No two blocks of a layer have the same cell, and every cell is below the record's `cells`.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from bockd.drivers.local.format.leaf import LEAF_BLOCKS, Leaf
from bockd.drivers.local.format.leafvalues import (
    LeafTable,
    LeafValues,
    leaf_value_key,
    leaf_value_key_parts,
)
from bockd.errors import DamagedError
from bockd.index.tables import Table
from bockd.model import LayerId
from bockd.pool.index import Transaction

CELLS = Table(b"cells")

MAX_CELLS = 1 << 32
"""Of one layer: what a row has room for."""

ROWS = LeafTable(CELLS, "cells")

LeafCells = LeafValues
"""Block within the leaf to its cell."""


def stored_cells(txn: Transaction, layer: LayerId, number: int) -> LeafCells:
    """Return the cells of a leaf's blocks in a packed layer. Raises DamagedError."""
    return ROWS.get(txn, layer, number)


def leaves_with_cells(txn: Transaction, layer: LayerId, first: int) -> Iterator[int]:
    """Yield the numbers, from `first` on, of the leaves of which a packed layer has or had blocks,
    in order. Raises DamagedError where one may have been lost."""
    keys = txn.keys(CELLS, leaf_value_key(layer, first), leaf_value_key(LayerId(layer + 1), 0))
    for key in keys:
        yield leaf_value_key_parts(key)[1]


def cells_of_leaf(txn: Transaction, number: int, leaf: Leaf, packed: Container[int]) -> array[int]:
    """Return, for each block of a leaf that is in a packed layer, its cell there (typecode I). For
    all others the number means nothing. Raises DamagedError where a cell is missing."""
    found = array("I", bytes(4 * LEAF_BLOCKS))
    for code, layer in enumerate(leaf.palette):
        if layer not in packed:
            continue
        count = 0
        for block, cell in stored_cells(txn, LayerId(layer), number).items():
            if leaf.index[block] == code:
                found[block] = cell
                count += 1
        if count != leaf.index.count(code):
            raise DamagedError(
                f"the index does not say where all blocks of leaf {number} lie in layer {layer}; "
                "run 'bockd check'"
            )
    return found


@dataclass(slots=True)
class RunCount:
    """How many blocks a packed layer has, and in how many runs of cells they lie if one goes by
    their order. Blocks of other layers in between end no run."""

    blocks: int = 0
    runs: int = 0
    _following: int = -1
    """The cell that would go on with the last run."""

    def add(self, row: LeafCells) -> None:
        """Count in the next row of the layer."""
        for cell in row.values():
            if cell != self._following:
                self.runs += 1
            self._following = cell + 1
        self.blocks += len(row)


def erase_leaves(txn: Transaction, layer: LayerId, first: int, end: int) -> None:
    """Forget the cells of all blocks of leaves first..end-1 in a packed layer. Raises DamagedError,
    with nothing forgotten, where the index may have lost some."""
    txn.erase(CELLS, leaf_value_key(layer, first), leaf_value_key(layer, end))


def runs_of_cells(cells: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield cells, in ascending order, as runs (first, end) of such that follow each other."""
    first = end = -1
    for cell in cells:
        if cell != end:
            if first >= 0:
                yield first, end
            first = cell
        end = cell + 1
    if first >= 0:
        yield first, end
