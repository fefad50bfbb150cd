"""The bounds of the file view, with their reasons."""

from __future__ import annotations

from typing import Final

from bockd.model import KIB, MIB

MAX_REQUEST_BYTES: Final = 1 * MIB
"""The largest read or write that the kernel sends: 256 pages, libfuse's own limit."""

MAX_INLINE_READ_BYTES: Final = 256 * KIB
"""Larger reads go to a thread, as they do over NBD: they would hold the loop for too long."""

MIN_ZERO_BYTES: Final = 64 * KIB
"""Writes of nothing but zeros make holes from this size on. Smaller ones are a file system's
metadata, which is soon written again; larger ones are disk images and cleared space."""

MAX_DELAYED: Final = 64
"""Requests that wait for the time that a device profile says: more threads than programs use on one
disk. Each occupies a task."""

MAX_TASKS: Final = 64 + MAX_DELAYED
"""Requests served at once; what waits for a disk occupies one. Beside those that a device profile
delays more than the device's threads (32), so that requests that need none are still taken."""

LOOK_SECONDS: Final = 10.0
"""How long looking at the mount point may take; longer, and something below it hangs."""

TURN_NS: Final = 100_000
"""How long requests are served, some ten of 4 KiB, before the rest of the daemon runs. With 1 ms
a read over NBD beside a busy file took 7 times as long."""
