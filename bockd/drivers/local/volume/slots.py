"""The layers of an open device, each known by a *slot*: what a leaf in memory has for a block.

Slots are small numbers given out as layers are met, slot 0 meaning hole and slot 1 what is damaged.

Invariants:
* A slot means the same blocks for as long as the device is open. What they are read from may
  change: another object for the same layer, or the layer into which it was merged. So freezing a
  head, or merging layers, changes no leaf.
* `slots` is one list from the beginning to the end; readers hold on to it.
* Whatever changes what the index's leaves mean raises the era: a load that began before is void.
"""

from __future__ import annotations

from collections.abc import Iterable

from bockd.drivers.local.format.layer import DamagedBlocks, Layer
from bockd.drivers.local.format.leaf import HOLE
from bockd.model import KIB, LayerId

HOLE_SLOT = 0
DAMAGED_SLOT = 1
"""Of blocks that a scrub has found damaged, whatever layer they are in."""

_SPARE_SLOTS = 1024
_MAX_SLOTS = 64 * KIB
"""What a slot's 16 bits hold: layers met by one opening of one device."""


class LayerSlots:
    """Slots and layers of one open device. For the owner thread."""

    def __init__(self) -> None:
        self.slots: list[Layer | None] = [None, DamagedBlocks()]
        self.era = 0
        """Of what is read from the index; see `outdate_loads`."""
        self._slot_of: dict[LayerId, int] = {HOLE: HOLE_SLOT}

    @property
    def full(self) -> bool:
        """True when another layer may find no slot."""
        return len(self.slots) >= _MAX_SLOTS - _SPARE_SLOTS

    def add(self, layer: Layer) -> int:
        """Give an open layer a slot; it is closed with the others in the end."""
        slot = len(self.slots)
        assert slot < _MAX_SLOTS
        self.slots.append(layer)
        self._slot_of[layer.id] = slot
        return slot

    def slot_of(self, layer: Layer) -> int:
        """Return the slot of an open layer. A layer without one gets one."""
        slot = self._slot_of.get(layer.id)
        return self.add(layer) if slot is None else slot

    def slots_of(self, layers: Iterable[int]) -> list[int]:
        """Return the slots of layers that have some, by their ids."""
        return [self._slot_of[LayerId(layer)] for layer in layers]

    def opened(self, layer_id: LayerId) -> Layer | None:
        """Return what a layer is read from, or None if it has no slot."""
        slot = self._slot_of.get(layer_id)
        return None if slot is None else self.slots[slot]

    def knows(self, layer_id: LayerId) -> bool:
        """Return whether the layer has a slot."""
        return layer_id in self._slot_of

    def known(self) -> frozenset[LayerId]:
        """Return the layers that have slots now, and the hole."""
        return frozenset(self._slot_of)

    def packed(self) -> frozenset[LayerId]:
        """Return those of them whose blocks lie in cells."""
        return frozenset(
            layer_id
            for layer_id, slot in self._slot_of.items()
            if (layer := self.slots[slot]) is not None and layer.packed
        )

    def outdate_loads(self) -> None:
        """Invalidate what threads are reading from the index now: it may name a layer that is about
        to be removed, or not say that a block is damaged."""
        self.era += 1

    def take_over(self, layer: Layer) -> Layer | None:
        """Replace the layer object of the same id, which was opened in another way, by `layer`.
        Return the replaced one, which the caller closes when no read uses it any more. None if the
        layer has no slot."""
        slot = self._slot_of.get(layer.id)
        if slot is None:
            return None
        replaced = self.slots[slot]
        self._put_in_place_of(replaced, layer)
        return replaced

    def alias(self, source: LayerId, target: Layer) -> Layer | None:
        """Read `target` (or the layer of that id that is open already, closing this one)
        wherever `source` is remembered. Returns the source's files, to be closed when no read
        uses them any more."""
        self.outdate_loads()
        slot = self._slot_of.pop(source, None)
        known = self._slot_of.get(target.id)
        if slot is None:
            target.close()
            return None
        if known is not None:
            target.close()
            opened = self.slots[known]
            assert opened is not None
            target = opened
        else:
            self._slot_of[target.id] = slot
        old = self.slots[slot]
        self._put_in_place_of(old, target)
        return old

    def forget(self, layer_id: LayerId) -> None:
        """Close a layer that no map reaches any more. No read may be under way."""
        slot = self._slot_of.pop(layer_id, None)
        if slot is not None:
            gone = self.slots[slot]
            assert gone is not None
            self._put_in_place_of(gone, None)
            gone.close()

    def _put_in_place_of(self, old: Layer | None, new: Layer | None) -> None:
        # Aliases share the files: all of the slots go together.
        self.slots[:] = [new if layer is old else layer for layer in self.slots]

    def close(self) -> None:
        """Close all layers. (Aliases close theirs more than once; a layer does not mind.)"""
        for layer in self.slots:
            if layer is not None:
                layer.close()
        self.slots.clear()
