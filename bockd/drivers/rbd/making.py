"""Making something in the cluster before the commit that names it, and removing it afterwards.

What is made has a random name, and nobody knows it before the commit. If the commit fails for
certain, it is removed at once. Otherwise, and after a death, it stays for the sweep, which leaves
alone what is younger than an hour. So who has made something gives up, instead of committing, when
more than `MAKING_SECONDS` have passed: nothing that is named was ever swept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bockd.errors import BockdError, ClusterUnavailableError, UnavailableError

log = logging.getLogger(__name__)

MAKING_SECONDS = 300.0
"""Far less than an hour, and far more than making anything takes."""


class Deadline:
    """Until when what was made may be named."""

    def __init__(self) -> None:
        self._end = _now() + MAKING_SECONDS

    def check(self) -> None:
        """Return if it may be named still: asked in the transaction that does. Raises
        UnavailableError."""
        if _now() > self._end:
            raise ClusterUnavailableError(
                f"the Ceph cluster took more than {MAKING_SECONDS:.0f} s for it; try again"
            )


@contextmanager
def making(what: str, remove: Callable[[], object]) -> Iterator[Deadline]:
    """Make something in the `with` block, and commit what names it; `remove` it when that fails
    for certain. Blocks."""
    try:
        yield Deadline()
    except UnavailableError:
        # The cluster does not answer to this, either; or it may be named yet.
        raise
    except BockdError:
        # Nothing was committed. Of any other exception nobody knows that: it is left to the sweep.
        try_to(f"removing {what}", remove)
        raise


def try_to(doing: str, operation: Callable[[], object]) -> None:
    """Do what the sweep does otherwise: log an error instead of raising it."""
    try:
        operation()
    except BockdError as error:
        log.warning("%s is put off: %s", doing, error)


def _now() -> float:
    # It goes on while the machine is suspended.
    return time.clock_gettime(time.CLOCK_BOOTTIME)
