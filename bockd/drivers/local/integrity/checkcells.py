"""Checking the cells of packed layers (format.cells): each row as it stands in the index, and all
rows of one layer together, against what maps show and what its file holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from bockd.drivers.local.format import cells
from bockd.drivers.local.format.catalogue import LayerRecord
from bockd.drivers.local.format.cells import CELLS, LeafCells
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAF_MASK, LEAF_SHIFT
from bockd.drivers.local.format.leafvalues import leaf_value_key_parts
from bockd.errors import DamagedError
from bockd.index.transaction import LmdbTransaction, unseal
from bockd.model import BLOCK_SIZE, LayerId

Masks = dict[int, int]
"""By number of a group of 256 blocks, or cells: a bit for each."""


def check_rows(
    txn: LmdbTransaction,
    layers: Mapping[LayerId, LayerRecord],
    leaving: Collection[LayerId],
    problem: Callable[[str], None],
    unreadable: Callable[[DamagedError], None],
) -> None:
    """Tell `unreadable` of every row of CELLS that is malformed, and `problem` of one that is of no
    block of a packed layer. Forgotten layers, which are `leaving`, may still have some."""
    for key, value in txn.raw(CELLS):
        try:
            row = cells.ROWS.decode(unseal(CELLS, key, value))
        except DamagedError as error:
            unreadable(error)
            continue
        layer, number = leaf_value_key_parts(key)
        record = layers.get(layer)
        if record is None:
            if layer not in leaving:
                problem(f"there are cells of layer {layer}, which is missing")
        elif not record.packed:
            problem(f"layer {layer} has cells, and is not packed")
        elif (number * LEAF_BLOCKS + max(row) + 1) * BLOCK_SIZE > record.size_bytes:
            problem(f"layer {layer} has cells for blocks beyond its end in leaf {number}")


@dataclass
class CellWalk:
    """One walk over the rows of a packed layer. Raises DamagedError for a row that cannot be
    read."""

    record: LayerRecord
    mapped: Masks
    """Blocks that maps show in it."""
    excused: Masks
    """Blocks that a journal may have changed."""
    named: Masks = field(default_factory=dict)
    """Cells of blocks that are mapped or excused."""
    unshown: dict[int, list[int]] = field(default_factory=dict)
    """By leaf number: blocks with a cell that are neither."""
    _seen: Masks = field(default_factory=dict)
    _without: int = 0
    _doubled: int = 0
    _beyond: int = 0

    def run(
        self, rows: Iterator[tuple[int, LeafCells]], written: Masks, allocated: Masks
    ) -> tuple[Masks, Masks]:
        """Look at each row. `written` and `allocated` are the cells that the file has so; return
        the blocks of which that is so."""
        lacking = dict(self.mapped)
        by_block: tuple[Masks, Masks] = {}, {}
        for number, row in rows:
            lacking[number] = lacking.get(number, 0) & ~sum(1 << block for block in row)
            for block, cell in row.items():
                self._look(number, block, cell)
            for of_file, of_layer in zip((written, allocated), by_block, strict=True):
                of_layer[number] = sum(1 << block for block in row if _has(of_file, row[block]))
        self._without = sum(mask.bit_count() for mask in lacking.values())
        return by_block

    def _look(self, number: int, block: int, cell: int) -> None:
        self._beyond += cell >= self.record.cells
        self._doubled += _has(self._seen, cell)
        _add(self._seen, cell)
        if (self.mapped.get(number, 0) | self.excused.get(number, 0)) >> block & 1:
            _add(self.named, cell)
        else:
            self.unshown.setdefault(number, []).append(block)

    def problems(self) -> Iterator[str]:
        """Yield what should never be."""
        for count, what in (
            (self._without, "mapped blocks without a cell"),
            (self._doubled, "blocks whose cell is another block's as well"),
            (self._beyond, f"blocks whose cell is beyond its {self.record.cells} cells"),
        ):
            if count:
                yield f"layer {self.record.id} has {count} {what}"


def _has(masks: Masks, cell: int) -> bool:
    return bool(masks.get(cell >> LEAF_SHIFT, 0) >> (cell & LEAF_MASK) & 1)


def _add(masks: Masks, cell: int) -> None:
    group = cell >> LEAF_SHIFT
    masks[group] = masks.get(group, 0) | 1 << (cell & LEAF_MASK)
