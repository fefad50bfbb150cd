"""What some kinds of pools cannot do, and what to do instead."""

from __future__ import annotations

from bockd.errors import InvalidRequestError, NotSupportedError
from bockd.model import PoolDriver


def no_scrub(driver: str) -> NotSupportedError:
    """Return the error for verifying checksums in a pool of a kind that has none of its own."""
    if driver == PoolDriver.RBD:
        return NotSupportedError(
            "a pool in Ceph has no checksums of bockd's: Ceph verifies its own by itself (deep "
            "scrub), and 'ceph osd pool deep-scrub POOL' begins it now"
        )
    return NotSupportedError(f"a pool of the kind {driver} has no checksums")


def no_backup(driver: str) -> NotSupportedError:
    """Return the error for copying a pool of a kind that is not made of files."""
    if driver == PoolDriver.RBD:
        return NotSupportedError(
            "a pool in Ceph is not copied as a whole: its data has replicas in the cluster, and "
            "'bock volume export' copies a volume or snapshot out of it"
        )
    return NotSupportedError(f"a pool of the kind {driver} cannot be copied")


def no_repair(driver: str) -> NotSupportedError:
    """Return the error for repairing a pool of a kind of which nothing can be repaired here."""
    return NotSupportedError(
        f"a pool of the kind {driver} cannot be repaired; 'bockd check' says what is wrong with it"
    )


def no_cache(driver: str) -> InvalidRequestError:
    """Return the error for choosing how volumes are cached in a pool that is on the local disk."""
    return InvalidRequestError(
        f"a pool of the kind {driver} has no cache in front of its volumes: they are on this "
        "machine already"
    )
