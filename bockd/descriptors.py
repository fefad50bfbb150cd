"""How file descriptors are shared out, so that a low limit of them (`ulimit -n`) still serves.

What is left beside the shares is for the index, the sockets and the API.
"""

from __future__ import annotations

import resource
from typing import Final

CLIENT_DESCRIPTORS: Final = 2
"""A client's socket and, while answers to it wait for a device profile, their timer."""

VOLUME_DESCRIPTORS: Final = 4
"""Of a volume that is open: its lock and, once it was written, its head and its journal."""

CLIENTS_SHARE: Final = 10
"""One descriptor in so many is for a client: each may have a volume of its own, which is written.
"""

LAYERS_SHARE: Final = 8
"""One in so many is for a frozen layer."""

SEGMENTS_SHARE: Final = 4
"""One in so many is for a segment of a write-back log: all that have something which is not below
are open. A pool that has such logs has no layers of its own."""

IDLE_SHARE: Final = 32
"""For one in so many, a volume may stay open that nobody uses."""


def raise_limit() -> None:
    """Let this process have as many descriptors as it may give itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def portion(share: int, most: int) -> int:
    """Return one in `share` of the descriptors that this process may have; at least 1, at most
    `most`."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return most
    return max(1, min(most, limit // share))
