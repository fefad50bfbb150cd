"""Turning a raw layer into a packed one, by hand: what a volume that packs its head would leave.

Nobody may have the layer open. Blocks come to lie in a random order of cells. Between them are
cells that no block has, as trims leave them: holes, and strays, which hold something.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format import cells
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.cells import LeafCells
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAVES, Leaf, leaf_key_parts
from bockd.model import BLOCK_SIZE, LayerId
from bockd.pool.index import Transaction

FREE_SHARE = 8
"""One cell in so many has no block."""


def pack_layer(
    store: StoreAccess,
    layer: LayerId,
    random: Random,
    *,
    strays: bool = False,
    chosen: Sequence[int] | None = None,
) -> dict[int, int]:
    """Pack a layer. Return its blocks' cells, which are those `chosen` if any are. `strays` leaves
    data in cells that no block has."""
    content = _read(store, layer)
    places = range(len(content) + -(-len(content) // FREE_SHARE))
    chosen = chosen or random.sample(places, len(content))
    packed = dict(zip(sorted(content), chosen, strict=True))
    path = store.layout.layer_segment(layer, 0)
    os.unlink(path)
    with path.open("xb") as file:
        file.truncate((max(chosen, default=-1) + 1) * BLOCK_SIZE)
        for block, cell in packed.items():
            os.pwrite(file.fileno(), content[block], cell * BLOCK_SIZE)
        for cell in set(places) - set(chosen) if strays else ():
            os.pwrite(file.fileno(), b"\xee" * BLOCK_SIZE, cell * BLOCK_SIZE)
    store.index.update(lambda txn: _store(txn, layer, packed))
    return packed


def pack_all(store: StoreAccess, random: Random, *, strays: bool = False) -> list[LayerId]:
    """Pack the layers of a pool that nobody has open."""
    with store.index.reading() as txn:
        layers = [record.id for record in Catalogue(txn).layers() if not record.packed]
    for layer in layers:
        pack_layer(store, layer, random, strays=strays)
    return layers


def _read(store: StoreAccess, layer: LayerId) -> dict[int, bytes]:
    """What the blocks of a raw layer hold that some map shows there."""
    with store.index.reading() as txn:
        record = Catalogue(txn).layer(layer)
        shown = {
            leaf_key_parts(key)[1] * LEAF_BLOCKS + block
            for key, payload in txn.scan(LEAVES, b"", b"\xff" * 13)
            for block, holder in enumerate(Leaf.decode(payload).layers())
            if holder == layer
        }
    opened = Layer.of(store.layout, record, writable=False)
    content: dict[int, bytes] = {}
    for block in shown:
        buffer = bytearray(BLOCK_SIZE)
        opened.read(block * BLOCK_SIZE, memoryview(buffer))
        content[block] = bytes(buffer)
    opened.close()
    return content


def _store(txn: Transaction, layer: LayerId, packed: dict[int, int]) -> None:
    rows: dict[int, LeafCells] = {}
    for block, cell in packed.items():
        number, within = divmod(block, LEAF_BLOCKS)
        rows.setdefault(number, {})[within] = cell
    for number, row in rows.items():
        cells.ROWS.put(txn, layer, number, row)
    catalogue = Catalogue(txn)
    end = max(packed.values(), default=-1) + 1
    catalogue.put_layer(replace(catalogue.layer(layer), packed=True, cells=end))
