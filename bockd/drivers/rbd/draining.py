"""Having what is dirty written back for as long as it gets less: a cluster that does not take it is
not waited for without a limit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import Enum, auto

from bockd.errors import BockdError
from bockd.runtime.steps import Signal, Spawn, Steps, blocking_apart, try_spawn

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""Between two looks at how much is left."""

STALLED_SECONDS = 20.0
"""How long it may not get less."""

MOST_SECONDS = 40.0
"""In all. Whoever asked waits for an answer."""


class Drained(Enum):
    """What came of it."""

    YES = auto()
    GOES_ON = auto()
    """It gets less, and is not below yet."""
    NO = auto()
    """It has failed, or stands still."""


async def drain_while_it_shrinks(
    drain: Callable[[], Steps[None]], left_bytes: Callable[[], int], spawn: Spawn
) -> Drained:
    """Write back what is dirty. Return when that has ended, or has the limits above; it goes on
    then until whoever runs it ends it. Its error is logged."""
    ended, errors = Signal(), list[BockdError]()

    async def run() -> None:
        try:
            await drain()
        except BockdError as error:
            errors.append(error)
            log.warning("what is dirty cannot be written back: %s", error)
        finally:
            ended.fire()

    if not try_spawn(spawn, run()):
        return Drained.NO
    began = since = time.monotonic()
    least = left_bytes()
    while not ended.fired:
        await blocking_apart("looks at write-back", time.sleep, LOOK_SECONDS)
        now, left = time.monotonic(), left_bytes()
        if left < least:
            least, since = left, now
        if now - since >= STALLED_SECONDS:
            return Drained.NO
        if now - began >= MOST_SECONDS:
            return Drained.GOES_ON
    return Drained.NO if errors else Drained.YES
