"""Metrics as the text that Prometheus reads: its exposition format, version 0.0.4.

Prometheus's client writes all of it at once. With hundreds of exports that is tens of milliseconds,
in which no other client would be served; so it is given a few samples at a time.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

PIECE_SAMPLES = 50
"""About half a millisecond."""

_HEADER_LINES = 2
"""HELP and TYPE."""


class _Part(Collector):
    """Some samples of one family."""

    def __init__(self, family: Metric, first: int) -> None:
        self._part = Metric(family.name, family.documentation, family.type)
        self._part.samples = family.samples[first : first + PIECE_SAMPLES]

    def collect(self) -> Iterable[Metric]:
        return [self._part]


async def expose(families: Iterable[Metric]) -> bytes:
    """Write families as text, and let the loop turn between two pieces of it."""
    pieces = []
    for family in families:
        for first in range(0, len(family.samples), PIECE_SAMPLES):
            text = generate_latest(_Part(family, first))
            # A family has its header once.
            pieces.append(text.split(b"\n", _HEADER_LINES)[_HEADER_LINES] if first else text)
            await trio.lowlevel.checkpoint()
    return b"".join(pieces)
