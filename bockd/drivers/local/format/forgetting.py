"""Forgetting a layer that no map leads to any more: all that the index has of it but its checksums,
which are many and go in batches, before its files do.
"""

from __future__ import annotations

from bockd.drivers.local.format import checksums, queue
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.index.index import Transaction
from bockd.model import LayerId


def forget_layer(txn: Transaction, layer: LayerId) -> None:
    """Forget a layer that nothing refers to any more, and queue its files to be unlinked. Raises
    DamagedError when the index has no such layer."""
    Catalogue(txn).remove_layer(layer)
    queue.end_merge(txn, layer)
    checksums.forget_reading(txn, layer)
    queue.add_unlink(txn, layer)
