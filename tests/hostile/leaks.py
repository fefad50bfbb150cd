"""What a daemon must have given back once its clients are gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bockd.cli.client import ControlClient
from tests.daemon.process import Bockd
from tests.hostile.live import HANG_SECONDS, descriptors, sockets

COMING_AND_GOING = 1
"""An innocent client that connects again and again may be in, out, or in between."""


@dataclass(frozen=True)
class Held:
    """What a daemon holds at one moment."""

    descriptors: int
    sockets: int
    connections: int
    """Counted on volumes."""


def held_by(daemon: Bockd, control: ControlClient) -> Held:
    connections = sum(volume.connections for volume in control.list_volumes())
    pid = daemon.pid
    return Held(descriptors(pid), sockets(pid), connections)


@contextmanager
def nothing_leaks(daemon: Bockd) -> Iterator[None]:
    """Sockets and other descriptors are back where they were, so are the connections counted on
    volumes. (Memory: `test_memory.py`. What was in use once, the allocator may keep.)"""
    with daemon.control() as control:
        before = held_by(daemon, control)
        yield
        deadline = time.monotonic() + HANG_SECONDS
        while not _given_back(before, after := held_by(daemon, control)):
            assert time.monotonic() < deadline, f"{after}, before it was {before}"


def _given_back(before: Held, after: Held) -> bool:
    return (
        after.descriptors <= before.descriptors + COMING_AND_GOING
        and after.sockets <= before.sockets + COMING_AND_GOING
        and after.connections <= before.connections + COMING_AND_GOING
    )
