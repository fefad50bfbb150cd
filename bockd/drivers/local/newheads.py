"""Giving an open volume another head, in a quiesced commit: for a snapshot, and for a rotation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.catalogue import LocalVolumeRecord
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.newlayers import LayerMaker
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import ConflictError
from bockd.failpoints import Failpoint, hit
from bockd.model import LayerId
from bockd.pool.index import Transaction
from bockd.runtime.steps import blocking

T = TypeVar("T")

HeadChange = Callable[[Transaction, LocalVolumeRecord, LayerId], tuple[LocalVolumeRecord, T]]
"""Names a layer as the head, in a transaction: the volume's record as it is, and as it becomes."""


async def change_head(
    store: StoreAccess,
    layers: LayerMaker,
    volume: Volume,
    change: HeadChange[T],
    adopt: Callable[[LocalVolumeRecord], None],
    *,
    packed: bool,
    made: Failpoint,
) -> T:
    """Make a layer, and let the volume write to it once `change` has named it. `adopt` runs on the
    owner thread after the commit, before anything is written; `made` is hit when the layer's files
    are there. The caller holds the turn of `layers`. Raises BockdError, with everything as it
    was."""
    if volume.layers.full:
        raise ConflictError("too many snapshots since the volume was opened; reconnect")
    size = volume.size_bytes
    layer = await blocking(lambda: layers.make(size, packed=packed))
    hit(made)
    head: Layer | None = None
    try:
        length = 0 if packed else size
        head = await blocking(
            lambda: Layer.open(store.layout, layer, length, writable=True, packed=packed)
        )
        fresh_head = head

        def adopt_head(record: LocalVolumeRecord, _result: T) -> None:
            adopt(record)
            volume.adopt_head(fresh_head)

        return await volume.durability.quiesced_commit(
            lambda txn, record: change(txn, record, layer), adopt_head, packed=packed
        )
    except BaseException:
        if volume.durability.head is not head:
            if head is not None:
                head.close()
            layers.unmake(layer)
        raise
