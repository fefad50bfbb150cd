"""Rotation: another head takes the place of an open volume's packed one, which is nearly full, or
is to be settled.

The map stays as it is. The full head is frozen where it is at home, and the new one is at home in
the same map. So no leaf changes, and no snapshot is made. Where the index may have lost cells the
new head is raw, as after a snapshot (`Registry.packs_head`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from bockd.drivers.local.format.catalogue import Catalogue, LocalVolumeRecord
from bockd.drivers.local.newheads import change_head
from bockd.drivers.local.newlayers import LayerMaker
from bockd.drivers.local.registry import Registry
from bockd.failpoints import Failpoint, hit
from bockd.model import LayerId, VolumeId
from bockd.pool.index import Transaction
from bockd.runtime.steps import Steps


class Rotations:
    """Gives volumes of an open pool other heads."""

    def __init__(self, registry: Registry, layers: LayerMaker) -> None:
        self._registry = registry
        self._layers = layers

    def rotate(self, volume: VolumeId) -> Steps[None]:
        """Give an open volume another head, if its own has few cells left. Raises BockdError, with
        everything as it was."""
        return self._exclusively(volume, None)

    def freeze_head(self, volume: VolumeId, head: LayerId) -> Steps[None]:
        """Give a volume another head, if it is open and writes to `head`. Raises BockdError, with
        everything as it was."""
        return self._exclusively(volume, head)

    def _exclusively(self, volume: VolumeId, head: LayerId | None) -> Steps[None]:
        doing = f"giving volume {volume} another layer"
        return self._registry.exclusive(volume, doing, self._rotate, volume, head)

    async def _rotate(self, volume: VolumeId, head: LayerId | None) -> None:
        opened = self._registry.volumes.get(volume)
        cells = None if opened is None else opened.volume.durability.cells
        if opened is None or cells is None:
            return
        if not (cells.is_short if head is None else opened.volume.durability.head.id == head):
            return
        packed = self._registry.packs_head()
        async with self._layers.turn:
            await change_head(
                self._registry.store,
                self._layers,
                opened.volume,
                partial(_name_head, packed=packed),
                lambda _record: None,
                packed=packed,
                made=Failpoint.ROTATE_LAYER,
            )
        hit(Failpoint.ROTATE_COMMITTED)
        self._registry.on_frozen()


def _name_head(
    txn: Transaction, record: LocalVolumeRecord, layer: LayerId, *, packed: bool
) -> tuple[LocalVolumeRecord, None]:
    Catalogue(txn).add_layer(layer, record.size_bytes, record.map, packed=packed)
    hit(Failpoint.ROTATE_CHANGED)
    return replace(record, head=layer), None
