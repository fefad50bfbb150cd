"""The death of a process, played within one: everything open is dropped as the kernel would."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from bockd.drivers.local.pool import LocalPool


def die(pool: LocalPool) -> None:
    """Give up a pool's descriptors and locks without finishing, flushing or closing anything.

    What was written to files stays (the page cache survives a process), and nothing else does.
    """
    for opened in pool.registry.volumes.values():
        opened.volume.durability.abandon()
        opened.volume.map.close()
        opened.lock.release()
    for reader in pool.registry.snapshots.values():
        reader.snapshot.map.close()
        reader.lock.release()
    pool.registry.volumes.clear()
    pool.registry.snapshots.clear()
    pool.index.close()
    pool.registry.lock.release()


def close_everything_below(root: Path) -> None:
    """What operations under way had open is closed too, as the kernel does it."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the one that lists
            if Path(os.readlink(f"/proc/self/fd/{fd}")).is_relative_to(root):
                os.close(fd)
