"""Which blocks of which layers are reached, and which take space unreached (strays).

Blocks of a packed layer lie in cells (format.cells), so of these it is the cells that are strays. A
cell of a block that no map shows is legal, too: such *leftovers* are forgotten with the strays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from bockd.drivers.local.format import cells
from bockd.drivers.local.format.catalogue import LayerRecord
from bockd.drivers.local.format.layer import SEGMENT_BYTES, Layer, segment_sizes
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.integrity.checkcells import CellWalk, Masks
from bockd.errors import from_os_error
from bockd.model import BLOCK_SIZE, LayerId
from bockd.pool.index import Transaction


@dataclass(frozen=True, slots=True)
class StrayRun:
    """Blocks (of a packed layer: cells) first..first+count-1 of a layer that take space and that
    nobody reaches."""

    layer: LayerId
    first: int
    count: int


class LayerCheck:
    """Blocks as one 256-bit number for each (layer, leaf number): those that maps reach, and
    those that something else (a journal, the punch queue) accounts for."""

    def __init__(self, layout: Layout) -> None:
        self.stray_count = 0
        self.hollow_count = 0
        self.outlived_count = 0
        """Checksums of blocks that no map reaches and that are not there."""
        self._layout = layout
        self._mapped: dict[LayerId, dict[int, int]] = {}
        self._excused: dict[LayerId, dict[int, int]] = {}
        self._checksums: dict[LayerId, dict[int, int]] = {}
        self._data: dict[LayerId, dict[int, int]] = {}
        self._excused_cells: dict[LayerId, dict[int, int]] = {}
        self._doubted: set[LayerId] = set()
        self._strays: list[StrayRun] = []
        self._stray_blocks: list[tuple[LayerId, int, Collection[int]]] = []
        self.leftover_count = 0
        """Cells of blocks that no map shows."""
        self.moving: frozenset[LayerId] = frozenset()
        """Layers whose blocks move to others, merged or settled: what was moved keeps its checksums
        until all are, also a block of zeros that is a hole."""

    def reach(self, layer: LayerId, number: int, first: int, end: int) -> None:
        """Record that a map refers to blocks first..end-1 of leaf `number` in `layer`."""
        masks = self._mapped.setdefault(layer, {})
        masks[number] = masks.get(number, 0) | _mask(first, end)

    def excuse(self, layer: LayerId, first: int, count: int) -> None:
        """Record that blocks first..first+count-1 of the volume may hold data in `layer`, or
        not."""
        masks = self._excused.setdefault(layer, {})
        for number, start, stop in _by_leaf(first, first + count):
            masks[number] = masks.get(number, 0) | _mask(start, stop)

    def excuse_cells(self, layer: LayerId, first: int, count: int) -> None:
        """Record that cells first..first+count-1 of a packed layer may hold data, or not."""
        masks = self._excused_cells.setdefault(layer, {})
        for number, start, stop in _by_leaf(first, first + count):
            masks[number] = masks.get(number, 0) | _mask(start, stop)

    def doubt(self, *layers: LayerId) -> None:
        """Record that something which cannot be read may show any block of these layers: nothing in
        them is a stray."""
        self._doubted.update(layers)

    def expect(self, layer: LayerId, number: int, mask: int, data: int) -> None:
        """Record which blocks of leaf `number` in `layer` have checksums, as a 256-bit number. For
        those in `data` the checksum says that the block is not all zeros."""
        self._checksums.setdefault(layer, {})[number] = mask
        self._data.setdefault(layer, {})[number] = data

    def check_cells(
        self, record: LayerRecord, txn: Transaction, problem: Callable[[str], None]
    ) -> None:
        """Tell `problem` what is wrong with the cells of a packed layer that another process writes
        to. Raises DamagedError."""
        walk = CellWalk(record, self._mapped.pop(record.id, {}), {})
        walk.run(cells.ROWS.rows_of(txn, record.id), {}, {})
        for text in walk.problems():
            problem(text)

    def compare(self, record: LayerRecord, txn: Transaction, problem: Callable[[str], None]) -> int:
        """Compare a layer's allocated blocks with the expected ones. Return the number of blocks
        that a map refers to and that are holes though their checksums are of data. Tell `problem`
        what is wrong with its cells. Raises DamagedError, OSError."""
        mapped = self._mapped.pop(record.id, {})
        excused = self._excused.pop(record.id, {})
        written, allocated = self._present(record)
        if record.packed:
            walk = CellWalk(record, mapped, excused)
            in_cells = allocated
            written, allocated = walk.run(cells.ROWS.rows_of(txn, record.id), written, allocated)
            self._add_cell_strays(walk, in_cells, problem)
        elif record.id in self._doubted:
            pass
        elif not cells.ROWS.has_rows(txn, record.id):  # otherwise it is no raw layer at all
            first = len(self._strays)
            self._add_strays(record.id, allocated, mapped, excused)
            for run in self._strays[first:]:
                for number, start, stop in _by_leaf(run.first, run.first + run.count):
                    self._stray_blocks.append((record.id, number, range(start, stop)))
        for number, mask in mapped.items():
            hollow = mask & ~(allocated.get(number, 0) | excused.get(number, 0))
            self.hollow_count += hollow.bit_count()
        known = self._checksums.pop(record.id, {})
        for number, mask in known.items() if record.id not in self.moving else ():
            gone = mask & ~(mapped.get(number, 0) | allocated.get(number, 0))
            self.outlived_count += gone.bit_count()
        return sum(
            (mask & mapped.get(number, 0) & ~written.get(number, 0)).bit_count()
            for number, mask in self._data.pop(record.id, {}).items()
        )

    def _present(self, record: LayerRecord) -> tuple[dict[int, int], dict[int, int]]:
        """A layer's blocks that are written, and those that are allocated: zeros may be allocated
        and not written."""
        layer = Layer.of(self._layout, record, writable=False)
        try:
            written = _masks(layer.data_ranges(0, layer.length_bytes()), {})
            return written, _masks(layer.unwritten_ranges(), dict(written))
        finally:
            layer.close()

    def _add_cell_strays(
        self, walk: CellWalk, allocated: Masks, problem: Callable[[str], None]
    ) -> None:
        layer = walk.record.id
        problems = list(walk.problems())
        for text in problems:
            problem(text)
        if problems or layer in self._doubted:
            return  # a mapped block may be in what looks like a stray
        self._add_strays(layer, allocated, walk.named, self._excused_cells.pop(layer, {}))
        for number, blocks in walk.unshown.items():
            self.leftover_count += len(blocks)
            self._stray_blocks.append((layer, number, frozenset(blocks)))

    def _add_strays(self, layer: LayerId, allocated: Masks, reached: Masks, excused: Masks) -> None:
        for number, mask in allocated.items():
            loose = mask & ~(reached.get(number, 0) | excused.get(number, 0))
            self.stray_count += loose.bit_count()
            while loose:
                low = (loose & -loose).bit_length() - 1
                length = ((loose >> low) ^ ((loose >> low) + 1)).bit_length() - 1
                self._strays.append(StrayRun(layer, number * LEAF_BLOCKS + low, length))
                loose &= ~_mask(low, low + length)

    def strays_by_leaf(self) -> Iterator[tuple[LayerId, int, Collection[int]]]:
        """Yield blocks that nobody reaches, as (layer, leaf number, blocks within the leaf): those
        that take space in a raw layer, and those that have a cell in a packed one."""
        return iter(self._stray_blocks)

    def punch_strays(self, layers: Mapping[LayerId, LayerRecord]) -> int:
        """Give the strays back to the file system. Return the number of blocks. Raises
        BockdError."""
        punched = 0
        opened: dict[LayerId, Layer] = {}
        try:
            for run in self._strays:
                layer = opened.get(run.layer)
                if layer is None:
                    layer = Layer.of(self._layout, layers[run.layer], writable=True)
                    opened[run.layer] = layer
                layer.punch(run.first * BLOCK_SIZE, run.count * BLOCK_SIZE)
                punched += run.count
        except OSError as error:
            raise from_os_error(error, "punching strays") from error
        finally:
            for layer in opened.values():
                layer.close()
        return punched


def overlong_files(layout: Layout, record: LayerRecord) -> Iterator[str]:
    """Yield a sentence for each file of a layer that is longer than any can be: what is behind
    SEGMENT_BYTES there belongs into the next file. Raises OSError."""
    for number in range(len(segment_sizes(record.file_bytes))):
        path = layout.layer_segment(record.id, number)
        beyond = os.stat(path).st_size - SEGMENT_BYTES
        if beyond > 0:
            at = (number + 1) * SEGMENT_BYTES
            yield (
                f"{path} has {beyond} bytes beyond {SEGMENT_BYTES}, which nobody reads: the end of "
                f"writes across byte {at} of the volume, which an older bockd put there and not "
                f"into the next file. Compare what volumes and snapshots hold from byte {at} on "
                f"with a backup, or with 'tail -c {beyond} {path}', write what is missing again, "
                f"and then, with no bockd running, 'truncate -s {SEGMENT_BYTES} {path}'"
            )


def _masks(ranges: Iterable[tuple[int, int]], masks: dict[int, int]) -> dict[int, int]:
    """Add ranges of bytes to the masks of blocks."""
    for start, stop in ranges:
        for number, first, end in _by_leaf(start // BLOCK_SIZE, -(-stop // BLOCK_SIZE)):
            masks[number] = masks.get(number, 0) | _mask(first, end)
    return masks


def _mask(first: int, end: int) -> int:
    return (1 << end) - (1 << first)


def _by_leaf(first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Blocks first..end-1 as (leaf number, first, end) within each leaf."""
    while first < end:
        number, start = divmod(first, LEAF_BLOCKS)
        stop = min(LEAF_BLOCKS, start + end - first)
        yield number, start, stop
        first += stop - start
