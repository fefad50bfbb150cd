"""Opening the files of a pool: its index, its ballast, and what a crash left unfinished."""

from __future__ import annotations

import logging
import os
import time

from bockd.directories import make_private
from bockd.engine.access import StoreAccess
from bockd.errors import DamagedError, InUseError, NoSpaceError, PoolFormatError
from bockd.failpoints import Failpoint, hit
from bockd.store.ballast import Ballast
from bockd.store.catalogue import FORMAT, Catalogue, PoolRecord
from bockd.store.index import Index, Table, Transaction
from bockd.store.journal import boot_id
from bockd.store.layout import Layout, sync_directory, unlink_if_present
from bockd.store.locks import FileLock

log = logging.getLogger(__name__)


def open_store(layout: Layout, boot: str) -> StoreAccess:
    """Open the index and see that it is ours before anything else is touched."""
    _refuse_lost_index(layout)
    ballast = Ballast(layout.ballast)
    index = Index.open(layout.index, ballast)
    try:
        index.update(_establish)
        hit(Failpoint.POOL_ESTABLISHED)
        for directory in (layout.layers, layout.discarded):
            make_private(directory)
        if not ballast.ensure():
            log.warning("the file system of %s is full; there is no ballast", layout.root)
        for directory in (layout.root, layout.index, layout.journal):
            sync_directory(directory)
        _remove_unfinished(layout)
    except BaseException:
        index.close()
        raise
    return StoreAccess(layout, index, ballast, boot)


def join_store(layout: Layout) -> StoreAccess:
    """Open the index of a pool that somebody else has made, and may have open now."""
    ballast = Ballast(layout.ballast)
    index = Index.open(layout.index, ballast)
    try:
        with index.reading() as txn:
            _refuse_empty(Catalogue(txn), layout)
    except BaseException:
        index.close()
        raise
    return StoreAccess(layout, index, ballast, boot_id())


def _refuse_lost_index(layout: Layout) -> None:
    """DamagedError for layers without an index: making a new one would be the end of them."""
    if layout.unfinished_index.exists() and not layout.index_data.exists():
        raise DamagedError(
            f"{layout.root} is a backup that was not finished: let 'bockd backup' finish it"
        )
    try:
        if os.stat(layout.index_data).st_size:
            return
        segments = layout.layer_segments()
    except FileNotFoundError:
        segments = layout.layer_segments() if layout.layers.exists() else []
    if segments:
        raise DamagedError(
            f"{layout.index_data} is missing or empty, but {layout.layers} holds layers: "
            "restore the index from a backup, or choose another data directory"
        )


def _refuse_empty(catalogue: Catalogue, layout: Layout) -> None:
    if catalogue.pool() is None:
        raise PoolFormatError(f"the pool in {layout.root} is not complete; start bockd")


def _remove_unfinished(layout: Layout) -> None:
    """Remove journal segments whose making was interrupted; not those that another process is
    making this moment for a volume that it has open."""
    for segment in layout.unfinished_segments():
        try:
            lock = FileLock.acquire(
                layout.volume_lock(segment.volume), shared=False, held_message="open elsewhere"
            )
        except (InUseError, NoSpaceError):  # the next start finds it again
            continue
        try:
            unlink_if_present(layout.unfinished_segment(segment))
        finally:
            lock.release()


def _establish(txn: Transaction) -> None:
    """Give a new index its pool record, an older one our format; refuse one of a newer format."""
    catalogue = Catalogue(txn)
    record = catalogue.pool()
    if record is not None:
        catalogue.upgrade(record)
        return
    if txn.count(Table.VOLUMES) or txn.count(Table.LAYERS):
        raise PoolFormatError("the index has volumes but no pool record; restore it from a backup")
    catalogue.put_pool(PoolRecord(FORMAT, time.time(), next_node=1, next_map=1, next_layer=1))
