"""Making something in the cluster before the commit that names it, and removing it afterwards.

What is made has a random name, and nobody knows it before the commit. If the commit fails for
certain, it is removed at once. Otherwise, and after a death, it stays for the sweep
(bockd.drivers.rbd.sweep), which must not remove what is about to be named. No clock decides that: a
machine may be suspended, or a virtual one paused, for any time, and go on as if nothing had been.
The index has a number, the *generation*:

    SHARED    "generation"   8 bytes, big-endian; 0 if there is none

Whoever makes something reads it first, and may name what was made until the sweep has begun
`GENERATIONS` newer ones. It looks at the number in the transaction that names the thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bockd.drivers.rbd.gateways import SHARED
from bockd.drivers.rbd.index import SharedIndex
from bockd.drivers.rbd.removals import try_to
from bockd.errors import BockdError, ClusterUnavailableError, UnavailableError
from bockd.index.keys import id_key, key_id
from bockd.pool.index import Transaction

_GENERATION = b"generation"

GENERATIONS = 2
"""The sweep may begin one at any moment. From that on to the next one it lets more time pass than
making anything takes."""


def generation(txn: Transaction) -> int:
    """Return the generation that a transaction sees."""
    payload = txn.get(SHARED, _GENERATION)
    return 0 if payload is None else key_id(payload)


def begin_generation(txn: Transaction) -> int:
    """Begin the next generation, and return it."""
    begun = generation(txn) + 1
    txn.put(SHARED, _GENERATION, id_key(begun))
    return begun


class Permit:
    """Lets something be named that is made after this has begun."""

    def __init__(self, index: SharedIndex) -> None:
        """Raises DeviceError: the index cannot be read."""
        # What others have committed since only makes it end sooner.
        with index.reading() as txn:
            self._begun_in = generation(txn)

    def check(self, txn: Transaction) -> None:
        """Return if it may be named still, in the transaction that does. Raises
        UnavailableError: the sweep may have removed it."""
        if generation(txn) >= self._begun_in + GENERATIONS:
            raise ClusterUnavailableError(
                "it took so long to make something in the Ceph cluster that it counts as left over "
                "by now; try again"
            )


@contextmanager
def making(index: SharedIndex, what: str, remove: Callable[[], object]) -> Iterator[Permit]:
    """Make something in the `with` block, and commit what names it; `remove` it when that fails
    for certain. Blocks."""
    permit = Permit(index)
    try:
        yield permit
    except UnavailableError:
        # The cluster does not answer to this, either; or it may be named yet.
        raise
    except BockdError:
        # Nothing was committed. Of any other exception nobody knows that: it is left to the sweep.
        try_to(f"removing {what}", remove)
        raise
