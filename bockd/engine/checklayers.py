"""Which blocks of which layers are reached, and which hold data that nothing reaches (strays)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bockd.errors import from_os_error
from bockd.model import BLOCK_SIZE, LayerId
from bockd.store.catalogue import LayerRecord
from bockd.store.layer import Layer
from bockd.store.layout import Layout
from bockd.store.leaf import LEAF_BLOCKS


@dataclass(frozen=True, slots=True)
class StrayRun:
    """Blocks first..first+count-1 of a layer that hold data nobody reaches."""

    layer: LayerId
    first: int
    count: int


class LayerCheck:
    """Reached blocks as one 256-bit number for each (layer, leaf number)."""

    def __init__(self, layout: Layout) -> None:
        self.stray_count = 0
        self._layout = layout
        self._reached: dict[tuple[LayerId, int], int] = {}
        self._strays: list[StrayRun] = []

    def reach(self, layer: LayerId, number: int, first: int, end: int) -> None:
        """Blocks first..end-1 of leaf `number` are reached in `layer`."""
        mask = (1 << end) - (1 << first)
        key = (layer, number)
        self._reached[key] = self._reached.get(key, 0) | mask

    def reach_range(self, layer: LayerId, first: int, count: int) -> None:
        """Blocks first..first+count-1 of the volume are reached in `layer`."""
        end = first + count
        while first < end:
            number, start = divmod(first, LEAF_BLOCKS)
            stop = min(LEAF_BLOCKS, start + end - first)
            self.reach(layer, number, start, stop)
            first += stop - start

    def count_strays(self, record: LayerRecord) -> None:
        """Compare a layer's allocated blocks with the reached ones. DamagedError, OSError."""
        layer = Layer.open(self._layout, record.id, record.size_bytes, writable=False)
        try:
            for start, stop in layer.data_ranges(0, record.size_bytes):
                first, end = start // BLOCK_SIZE, -(-stop // BLOCK_SIZE)
                for run in self._unreached(record.id, first, end):
                    self._strays.append(run)
                    self.stray_count += run.count
        finally:
            layer.close()

    def _unreached(self, layer: LayerId, first: int, end: int) -> Iterator[StrayRun]:
        while first < end:
            number, start = divmod(first, LEAF_BLOCKS)
            stop = min(LEAF_BLOCKS, start + end - first)
            present = (1 << stop) - (1 << start)
            loose = present & ~self._reached.get((layer, number), 0)
            while loose:
                low = (loose & -loose).bit_length() - 1
                length = ((loose >> low) ^ ((loose >> low) + 1)).bit_length() - 1
                yield StrayRun(layer, number * LEAF_BLOCKS + low, length)
                loose &= ~((1 << (low + length)) - (1 << low))
            first += stop - start

    def punch_strays(self, layers: Mapping[LayerId, LayerRecord]) -> int:
        """Give the strays back to the file system; the number of blocks. BockdError."""
        punched = 0
        opened: dict[LayerId, Layer] = {}
        try:
            for run in self._strays:
                layer = opened.get(run.layer)
                if layer is None:
                    size = layers[run.layer].size_bytes
                    layer = Layer.open(self._layout, run.layer, size, writable=True)
                    opened[run.layer] = layer
                layer.punch(run.first * BLOCK_SIZE, run.count * BLOCK_SIZE)
                punched += run.count
        except OSError as error:
            raise from_os_error(error, "punching strays") from error
        finally:
            for layer in opened.values():
                layer.close()
        return punched
