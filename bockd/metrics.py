"""What a daemon shows to whoever watches it: metrics, and whether it is ready.

The metrics are Prometheus's own records (`prometheus_client.core`): a family has a name, a sentence
about it, a type, and samples with labels. docs/metrics.md has all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from prometheus_client.core import Metric


class Watched(Protocol):
    """What can be asked."""

    async def families(self) -> Iterable[Metric]:
        """Collect all metrics. What is counted is read now, and lets the loop turn meanwhile."""
        ...

    async def trouble(self) -> str | None:
        """Return why clients cannot be served now, in words; None when they can."""
        ...
