"""Leading the home of a layer that moves, and all its descendants, to the copies of its blocks; and
the walk that finds that nobody is led to a settled one any more.

A window's transaction looks at nothing but the window's leaf numbers, by key, in the home and in
each descendant: others wait for it. That is enough. It refuses if one of them shows a block that
was not copied. In a leaf number where the home does not show the source no descendant does either,
nor will: they show what the home does, and a home only ceases to show something. If the index is
damaged, so that one does, it goes on being led to the source, which is whole until it is forgotten;
and the walk refuses before that. The walk need not be of one instant. A leaf is copied from an
ancestor, whose map has the smaller number, and folding goes to a child: so maps are walked in the
order of their numbers, those made meanwhile with them, and a leaf that still shows the source can
come to be in no place but in front of the walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from bockd.drivers.local.format import cells, checksums, queue
from bockd.drivers.local.format.blockmap import own_leaves
from bockd.drivers.local.format.catalogue import Catalogue, LayerRecord
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAF_SHIFT, LEAVES, Leaf, leaf_key
from bockd.drivers.local.maintenance.copying import Window
from bockd.errors import DamagedError
from bockd.failpoints import Failpoint, hit
from bockd.model import LayerId, MapId
from bockd.pool.index import Transaction

Place = tuple[MapId, int]
"""A map, and a leaf number there."""


@dataclass(frozen=True, slots=True)
class Merge:
    """The live blocks of `source` move into `target`; both are at home in `home`."""

    home: MapId
    source: LayerRecord
    target: LayerRecord
    """A raw one."""


def read_again(txn: Transaction, merge: Merge) -> None:
    """Have the target read from its beginning, if the source was not read to its end: what has no
    checksum yet has moved, to where it will be looked for."""
    read = checksums.reading_of(txn, merge.source.id)
    if read is None or not read.done:
        checksums.forget_reading(txn, merge.target.id)


def lead_to_copies(
    txn: Transaction, member: MapId, number: int, leaf: Leaf, merge: Merge
) -> list[int]:
    """Redirect a leaf of the home, or of a descendant, to the target wherever it shows the source.
    Return these blocks. With a leaf of the home checksums and marks of damage go along: it comes
    first, and shows all that anybody shows."""
    layers = leaf.layers()
    blocks = [block for block, layer in enumerate(layers) if layer == merge.source.id]
    if member == merge.home:
        checksums.copy_blocks(txn, merge.source.id, merge.target.id, number, blocks)
    moved = [merge.target.id if layer == merge.source.id else layer for layer in layers]
    txn.put(LEAVES, leaf_key(member, number), Leaf.of(moved).encode())
    return blocks


def showing(txn: Transaction, member: MapId, number: int, layer: LayerId) -> Leaf | None:
    """Return a map's own leaf if it may show blocks of a layer. Raises DamagedError."""
    payload = txn.get(LEAVES, leaf_key(member, number))
    leaf = None if payload is None else Leaf.decode(payload)
    return leaf if leaf is not None and layer in leaf.palette else None


def _not_copied(member: MapId, merge: Merge) -> DamagedError:
    return DamagedError(
        f"map {member} shows blocks of layer {merge.source.id} that its home, map {merge.home}, "
        "does not; run 'bockd check'"
    )


def redirect_window(txn: Transaction, merge: Merge, window: Window) -> None:
    """Redirect the home and its descendants to the copies. Raises DamagedError, with nothing
    changed, if one of the window's leaves shows what was not copied."""
    copied = set(window.blocks.values())
    unshown = set(copied)
    numbers = sorted({block >> LEAF_SHIFT for block in copied})
    for member in Catalogue(txn).subtree(merge.home):
        for number in numbers:
            leaf = showing(txn, member, number, merge.source.id)
            if leaf is None:
                continue
            moved = lead_to_copies(txn, member, number, leaf, merge)
            blocks = {number * LEAF_BLOCKS + block for block in moved}
            if not blocks <= copied:
                raise _not_copied(member, merge)
            if member == merge.home:
                unshown -= blocks
    queue.begin_settling(txn, merge.source.id, merge.target.id)
    read_again(txn, merge)
    for start, end in cells.runs_of_cells(sorted(unshown)):
        queue.add_punch(txn, queue.PunchEntry(merge.target.id, start, end - start))
    hit(Failpoint.SETTLE_LED)


def walk(txn: Transaction, merge: Merge, place: Place, most: int) -> tuple[int, Place]:
    """Look at the leaves of all that may show the source, from a place on, `most` of them at most.
    Return how many they were (fewer than `most` are the last) and where to go on. Raises
    DamagedError if one shows the source."""
    first, start = place
    looked = 0
    for member in sorted(Catalogue(txn).subtree(merge.home)):
        if member < first:
            continue
        leaves = own_leaves(txn, member, start if member == first else 0)
        for number, payload in islice(leaves, most - looked):
            if merge.source.id in Leaf.decode(payload).layers():
                raise _not_copied(member, merge)
            looked += 1
            place = member, number + 1
        if looked == most:
            break
    return looked, place
