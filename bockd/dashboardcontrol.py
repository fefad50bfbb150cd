"""What the dashboard needs of the daemon beside the control interface: its way in, and heat maps.

What the docstring of bockd.control says holds here too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from bockd.model import VolumeId


@dataclass(frozen=True, slots=True)
class DashboardLink:
    """The way into the dashboard, for one browser."""

    url: str = field(repr=False)
    seconds: int
    """Until it ends."""


class DashboardControl(Protocol):
    """The pages for a browser."""

    async def make_link(self) -> DashboardLink:
        """Make a link that works once; where no listener is configured, open one on the loopback
        interface first. Raises UnavailableError if that cannot be."""
        ...


@dataclass(frozen=True, slots=True)
class HeatMap:
    """How busy NBD clients make each region of a volume: a sample of their requests, faded with
    time, and so shares and not counts."""

    size_bytes: int
    region_bytes: int
    """Of each but the last."""
    reads: tuple[float, ...]
    writes: tuple[float, ...]
    """With trims and writes of zeroes."""
    ages: tuple[int | None, ...]
    """Seconds since a request was seen; None: never, as long as somebody has watched."""


class HeatControl(Protocol):
    """Watching a volume."""

    async def heat(self, volume: VolumeId) -> HeatMap:
        """Return the heat map of a volume, whose requests are looked at from the first call until
        none has come for some seconds."""
        ...
