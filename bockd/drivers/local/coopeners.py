"""Co-openers of a pool: who opens volumes and snapshots beside the daemon, or without one.

The nbdkit plugin is such a process: it holds a shared lock on `Layout.co_openers_lock` as long as
it lives, and the lock of whatever it has open. It changes nothing but what belongs to those
volumes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.locks import FileLock, is_held
from bockd.drivers.local.opening import lock_volume
from bockd.errors import CoOpenersError, InUseError
from bockd.model import VolumeId


@contextmanager
def without_co_openers(store: StoreAccess, *, needed: bool) -> Iterator[frozenset[VolumeId]]:
    """Keep every other process out of the pool. If some have it open, raise CoOpenersError when
    they must be out (`needed`); otherwise yield the volumes that they have open. What a crash left
    open stays closed."""
    held: list[FileLock] = []
    live: list[VolumeId] = []
    try:
        try:
            held.append(
                FileLock.acquire(
                    store.layout.co_openers_lock,
                    shared=False,
                    held_message=f"nbdkit has something of the pool {store.layout.root} open: "
                    "end it before --repair, or check without it",
                )
            )
        except InUseError as error:
            if needed:
                raise CoOpenersError(str(error)) from None
            for volume, opened in _volumes(store):
                if opened:
                    try:
                        held.append(lock_volume(store, volume))
                    except InUseError:
                        live.append(volume)
                elif is_held(store.layout.volume_lock(volume)):
                    live.append(volume)  # read so far, and perhaps written in a moment
        yield frozenset(live)
    finally:
        for lock in held:
            lock.release()


def elsewhere(store: StoreAccess, ours: Collection[VolumeId]) -> frozenset[VolumeId]:
    """Return the volumes that another process has open. `ours` are those of this process.
    Blocks."""
    return frozenset(
        volume
        for volume, _ in _volumes(store)
        if volume not in ours and is_held(store.layout.volume_lock(volume))
    )


def _volumes(store: StoreAccess) -> list[tuple[VolumeId, bool]]:
    """All volumes, and whether they were written and not closed."""
    with store.index.reading() as txn:
        return [(record.id, record.opened) for record in Catalogue(txn).volumes()]
