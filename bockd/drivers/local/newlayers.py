"""Making a layer: its files first, then the transaction that names it.

The next layer's id is peeked before its files exist, so those who make layers exclude each other,
pool-wide (`turn`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.catalogue import LAYERS, Catalogue
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layerfiles import create_layer, unlink_layer
from bockd.errors import BockdError, from_os_error
from bockd.index.keys import id_key
from bockd.model import LayerId
from bockd.pool.index import Transaction
from bockd.runtime.steps import blocking
from bockd.runtime.waiting import Mutex

log = logging.getLogger(__name__)
T = TypeVar("T")


class LayerMaker:
    """Makes the layers of one pool."""

    def __init__(self, store: StoreAccess) -> None:
        self._store = store
        self.turn = Mutex()
        """Held from the choice of an id until a transaction has named it."""

    async def make_with(
        self, size_bytes: int, change: Callable[[Transaction, LayerId], T], *, packed: bool = False
    ) -> T:
        """Make a layer's files, then name them in a transaction with `change`. Takes the turn."""
        async with self.turn:
            return await blocking(self._make_and_commit, size_bytes, change, packed)

    def _make_and_commit(
        self, size_bytes: int, change: Callable[[Transaction, LayerId], T], packed: bool
    ) -> T:
        layer = self.make(size_bytes, packed=packed)
        try:
            return self._store.index.update(lambda txn: change(txn, layer))
        except BockdError:
            self.unmake(layer)
            raise

    def make(self, size_bytes: int, *, packed: bool = False) -> LayerId:
        """Make the files of a layer, for so many bytes of a volume. Those of a `packed` one are
        empty. The caller holds the turn. Blocks. Raises BockdError, with nothing made."""
        with self._store.index.reading() as txn:
            layer = Catalogue(txn).next_layer()
        try:
            create_layer(self._store.layout, layer, 0 if packed else size_bytes)
        except OSError as error:
            self._remove(layer)
            raise from_os_error(error, f"creating layer {layer}") from error
        return layer

    def _remove(self, layer: LayerId) -> None:
        """Remove the files of a layer that was never named. Those that stay are taken over by the
        next one, which gets the same id."""
        try:
            unlink_layer(self._store.layout, layer)
        except OSError as error:
            log.warning("layer %s was not removed: %s", layer, error)

    def unmake(self, layer: LayerId) -> None:
        """Remove the files of a layer, if no transaction has named it. This is looked up, not
        assumed."""
        with self._store.index.reading() as txn:
            named = txn.get(LAYERS, id_key(layer)) is not None
        if not named:
            self._remove(layer)

    def grow(self, head: Layer, size_bytes: int) -> None:
        """Make a layer's files as long as a growing volume needs them. The file of a packed one is
        as long as what is in it. Blocks. Raises BockdError."""
        if head.packed:
            return
        try:
            head.grow(self._store.layout, size_bytes)
        except OSError as error:
            raise from_os_error(error, f"growing layer {head.id}") from error
