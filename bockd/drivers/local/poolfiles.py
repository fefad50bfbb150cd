"""Opening the files of a pool: its index, its ballast, and what a crash left unfinished."""

from __future__ import annotations

import logging
import os
import time

from bockd.directories import make_private
from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.catalogue import FORMAT, LAYERS, Catalogue, PoolRecord
from bockd.drivers.local.format.frozenlayer import OpenFiles
from bockd.drivers.local.format.journal import boot_id
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.format.locks import FileLock, touch_if_possible
from bockd.drivers.local.format.spares import SpareSegments
from bockd.drivers.local.format.writepieces import choose_write_pieces
from bockd.durable import sync_directory
from bockd.errors import DamagedError, InUseError, NoSpaceError, PoolFormatError
from bockd.failpoints import Failpoint, hit
from bockd.index.ballast import Ballast
from bockd.index.index import LmdbIndex
from bockd.pool.index import Transaction
from bockd.pool.nodes import VOLUMES

log = logging.getLogger(__name__)


def open_store(layout: Layout, boot: str) -> StoreAccess:
    """Open the index, and check that it is ours before anything else is touched."""
    _refuse_lost_index(layout)
    ballast = Ballast(layout.ballast)
    index = LmdbIndex.open(layout.index, ballast.release)
    try:
        index.update(_establish)
        hit(Failpoint.POOL_ESTABLISHED)
        for directory in (layout.layers, layout.discarded):
            make_private(directory)
        spares, files = SpareSegments(layout), OpenFiles.of_process()
        pieces = choose_write_pieces(layout.layers)
        store = StoreAccess(layout, index, ballast, spares, files, boot, pieces)
        if not store.ensure_reserve():
            log.warning(
                "the file system of %s is full: what is kept in reserve for that is not complete",
                layout.root,
            )
        for directory in (layout.root, layout.index, layout.journal):
            sync_directory(directory)
        _remove_unfinished(store)
        _make_lock_files(store)
    except BaseException:
        index.close()
        raise
    return store


def join_store(layout: Layout) -> StoreAccess:
    """Open the index of a pool that another process has made, and may have open now."""
    ballast = Ballast(layout.ballast)
    index = LmdbIndex.open(layout.index, ballast.release)
    try:
        with index.reading() as txn:
            _refuse_empty(Catalogue(txn), layout)
    except BaseException:
        index.close()
        raise
    # Whoever manages the pool may remove a layer's file while it is read here.
    spares, pieces = SpareSegments(layout), choose_write_pieces(layout.layers)
    return StoreAccess(layout, index, ballast, spares, OpenFiles(None), boot_id(), pieces)


def _refuse_lost_index(layout: Layout) -> None:
    """Raise DamagedError for layers without an index: a new index would make them unreachable."""
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


def _remove_unfinished(store: StoreAccess) -> None:
    """Remove journal segments whose making was interrupted; not those that another process is
    making this moment for a volume that it has open."""
    layout = store.layout
    for segment in layout.unfinished_segments():
        try:
            lock = FileLock.acquire(
                layout.volume_lock(segment.volume), shared=False, held_message="open elsewhere"
            )
        except (InUseError, NoSpaceError):  # the next start finds it again
            continue
        try:
            store.spares.keep_or_unlink(layout.unfinished_segment(segment), segment)
        finally:
            lock.release()


def _make_lock_files(store: StoreAccess) -> None:
    """Make the lock files that are not there (older versions made them at the first opening), so
    that opening something needs no file: a full file system may have none to give."""
    with store.index.reading() as txn:
        catalogue = Catalogue(txn)
        paths = [store.layout.volume_lock(record.id) for record in catalogue.sound_volumes()]
        paths += [store.layout.snapshot_lock(record.id) for record in catalogue.sound_snapshots()]
    there = set(os.listdir(store.layout.locks))
    for path in paths:
        if path.name not in there:
            touch_if_possible(path)


def _establish(txn: Transaction) -> None:
    """Give a new index its pool record, an older one our format; refuse one of a newer format."""
    catalogue = Catalogue(txn)
    record = catalogue.pool()
    if record is not None:
        catalogue.upgrade(record)
        return
    if txn.count(VOLUMES) or txn.count(LAYERS):
        raise PoolFormatError("the index has volumes but no pool record; restore it from a backup")
    catalogue.put_pool(PoolRecord(FORMAT, time.time(), next_node=1, next_map=1, next_layer=1))
