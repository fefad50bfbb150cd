"""What one kind of pool can do and another cannot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Features:
    """What a driver says of its pools."""

    driver: str
    """The name of its room in bockd.drivers."""
    durable: bool
    """What was acknowledged survives the death of the process, and what was flushed power loss."""
    hole_bytes: int
    """What extents and trims are rounded to."""
    shares_blocks: bool
    """Whether `Pool.shares` and `Space.shared_bytes` tell which blocks several nodes show."""
    in_directory: bool = False
    """A pool is files in the data directory: it has the room of the file system there."""
    caches: bool = False
    """Whether volumes may have a cache of their own on the local disk: `Pool.caches`."""
    several_gateways: bool = False
    """Several daemons may serve a pool at once, so what its index shows here may be old until it is
    refreshed."""
