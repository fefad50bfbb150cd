"""Having what is dirty written back for as long as that goes on: a cluster that does not take it is
not waited for without a limit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from bockd.errors import BockdError, UnavailableError
from bockd.runtime.steps import Signal, Spawn, Steps, blocking_apart, try_spawn

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""Between two looks at how far it is."""

STALLED_SECONDS = 20.0
"""How long no request may end below."""

MOST_SECONDS = 40.0
"""In all. Whoever asked waits for an answer."""


async def drain_while_it_goes_on(
    drain: Callable[[], Steps[None]], carried_out: Callable[[], int], spawn: Spawn
) -> bool:
    """Write back what is dirty. `carried_out` returns a number that changes whenever something of
    it is below: what is dirty gets less in whole epochs only, each of which may last very long.

    Return whether it has ended; False: it goes on, and is below later. Raises what `drain` has
    raised; UnavailableError: nothing has got below for `STALLED_SECONDS`, or there is no thread to
    be had. What was begun goes on then until whoever runs it ends it.
    """
    ended, errors = Signal(), list[BockdError]()

    async def run() -> None:
        try:
            await drain()
        except BockdError as error:
            errors.append(error)
            log.debug("what is dirty is not written back: %s", error)
        finally:
            ended.fire()

    if not try_spawn(spawn, run()):
        raise UnavailableError("no thread can be started now, or bockd is about to end")
    began = since = time.monotonic()
    seen = carried_out()
    while not ended.fired:
        await blocking_apart("looks at write-back", time.sleep, LOOK_SECONDS)
        now = time.monotonic()
        if (found := carried_out()) != seen:
            seen, since = found, now
        if ended.fired:
            break
        if now - since >= STALLED_SECONDS:
            raise UnavailableError(f"the cluster has taken nothing for {STALLED_SECONDS:.0f} s")
        if now - began >= MOST_SECONDS:
            return False
    if errors:
        raise errors[0]
    return True
