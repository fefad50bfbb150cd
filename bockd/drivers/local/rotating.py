"""Rotation: the packed head of an open volume is nearly full, and another one takes its place.

The map stays as it is. The full head is frozen where it is at home, and the new one is at home in
the same map. So no leaf changes, and no snapshot is made.
"""

from __future__ import annotations

from dataclasses import replace

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
        doing = f"giving volume {volume} another layer"
        return self._registry.exclusive(volume, doing, self._rotate, volume)

    async def _rotate(self, volume: VolumeId) -> None:
        opened = self._registry.volumes.get(volume)
        cells = None if opened is None else opened.volume.durability.cells
        if opened is None or cells is None or not cells.is_short:
            return
        async with self._layers.turn:
            await change_head(
                self._registry.store,
                self._layers,
                opened.volume,
                _name_head,
                lambda _record: None,
                packed=True,
                made=Failpoint.ROTATE_LAYER,
            )
        hit(Failpoint.ROTATE_COMMITTED)
        self._registry.on_frozen()


def _name_head(
    txn: Transaction, record: LocalVolumeRecord, layer: LayerId
) -> tuple[LocalVolumeRecord, None]:
    Catalogue(txn).add_layer(layer, record.size_bytes, record.map, packed=True)
    hit(Failpoint.ROTATE_CHANGED)
    return replace(record, head=layer), None
