"""Errors of rados and rbd in our terms: the one place that translates them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from bockd.drivers.rbd.binding import rados, rbd
from bockd.errors import (
    BockdError,
    ClusterUnavailableError,
    DeniedError,
    DeviceError,
    NoSpaceError,
    NotFoundError,
    VolumeTakenError,
)
from bockd.publictexts import for_operator


class ShutOutError(ClusterUnavailableError):
    """Another gateway has put this connection on Ceph's blocklist: nothing goes through it any
    more."""


CEPH_ERRORS = (rados.Error, rbd.Error)
"""The two families; their classes have nothing in common but `errno`, which may be None."""

NO_ANSWER = frozenset(
    {
        errno.ETIMEDOUT,
        errno.EINTR,
        errno.ENOTCONN,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ESHUTDOWN,
    }
)
"""After these it is not known whether an operation was, or will be, carried out."""

FENCED = frozenset({errno.ESHUTDOWN, errno.EROFS})
"""What operations on an image fail with once another gateway has put us on the blocklist, or has
the exclusive lock."""


def errno_of(error: Exception) -> int:
    """Return the number of a Ceph error; EIO where it has none, as for a wrong use of the API."""
    number = getattr(error, "errno", None)
    return abs(number) if isinstance(number, int) and number else errno.EIO


def from_ceph_error(error: Exception, doing: str) -> BockdError:
    """Translate a Ceph error to a BockdError. `doing` says what was attempted, as in "reading the
    index". Clients over the network are told less."""
    return for_operator(_translated(error, doing))


def _translated(error: Exception, doing: str) -> BockdError:
    number = errno_of(error)
    reason = os.strerror(number)
    if number == errno.ENOSPC:
        return NoSpaceError(
            f"{doing}: the Ceph cluster, or its pool, is full; remove something, or add disks to it"
        )
    if number == errno.EDQUOT:
        return NoSpaceError(
            f"{doing}: the Ceph pool's quota is used up ('ceph osd pool get-quota')"
        )
    if number in (errno.EACCES, errno.EPERM):
        return DeniedError(
            f"{doing}: Ceph does not allow it ({reason}); the user in [rbd] needs mon 'profile "
            "rbd' and osd 'profile rbd pool=POOL namespace=NAMESPACE' ('ceph auth get')"
        )
    if number == errno.ENOENT:
        return NotFoundError(f"{doing}: there is no such thing in the Ceph cluster")
    if number == errno.ESHUTDOWN:
        return ShutOutError(
            f"{doing}: the Ceph cluster has shut this gateway out ('ceph osd blocklist ls'); "
            "start bockd again"
        )
    if number in NO_ANSWER:
        return ClusterUnavailableError(
            f"{doing}: the Ceph cluster does not answer ({reason}); 'ceph -s' says how it is"
        )
    return DeviceError(f"{doing}: {reason} ({error})")


def from_volume_error(error: Exception, doing: str) -> BockdError:
    """Translate a Ceph error that an open image gave, after its lock was ours."""
    if errno_of(error) in FENCED:
        return VolumeTakenError(f"{doing}: another gateway has taken the volume")
    return from_ceph_error(error, doing)


@contextmanager
def named(doing: str) -> Iterator[None]:
    """Raise a Ceph error of the `with` block in our terms (`from_ceph_error`)."""
    try:
        yield
    except CEPH_ERRORS as error:
        raise from_ceph_error(error, doing) from error
