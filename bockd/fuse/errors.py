"""Errors in FUSE's language: the one place where an exception becomes an errno for the kernel."""

from __future__ import annotations

import errno
import logging
from typing import Final

from bockd.errors import BockdError, ReadOnlyError

log = logging.getLogger(__name__)

NOT_FOR_FILES: Final = {
    # To the kernel ENOSYS means "never ask for this operation again".
    errno.ENOSYS: errno.EIO,
    # Sockets and networks are no part of what a file's user deals with.
    errno.ESHUTDOWN: errno.EIO,
}
"""Errors that would be misunderstood, as the nearest one that is not."""


def fuse_errno(error: Exception) -> int:
    """Return the errno with which the system call fails. An error that is a bug of ours is logged,
    and becomes EIO."""
    if isinstance(error, ReadOnlyError):
        return errno.EROFS
    if isinstance(error, BockdError):
        number = error.errno
    elif isinstance(error, OSError):
        number = error.errno or errno.EIO
    elif isinstance(error, MemoryError):
        number = errno.ENOMEM
    else:
        log.error("a file request failed unexpectedly", exc_info=error)
        number = errno.EIO
    return NOT_FOR_FILES.get(number, number)
