"""Gateways: the daemons that serve one pool at once, where a kind of pool has several.

Plain data; the driver keeps it in the index, so every gateway sees all of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a daemon is reached over TCP. A host is one that other machines know it by."""

    nbd: str | None = None
    """HOST:PORT. None: no NBD clients over TCP."""
    nbd_tls: bool = False
    """Over TLS only."""
    api: str | None = None
    """The URL of the block storage API. None: none over TCP."""


NOWHERE = Addresses()
"""What is known of a gateway that has not opened its frontends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A daemon that serves the pool, or has died and was not missed yet."""

    name: str
    """The one that it is configured with; no other gateway of the pool has it."""
    run: str
    """Its life from this start to its end."""
    since: float
    """When it began, in seconds since the epoch."""
    addresses: Addresses = NOWHERE
    confirmed: int = 0
    """How often it has committed that it is there, after it was cut off from the pool."""
