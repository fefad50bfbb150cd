"""What the dashboard needs of the daemon beside the control interface: its way in.

What the docstring of bockd.control says holds here too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


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
