"""Errors in NBD's language: what closes a connection, and the errno that answers a request."""

from __future__ import annotations

import errno
from typing import Final

from bockd.errors import BockdError, InvalidRequestError
from bockd.nbd.protocol import constants as nbd

KNOWN_ERRORS: Final = frozenset(
    {
        nbd.EPERM,
        nbd.EIO,
        nbd.ENOMEM,
        nbd.EINVAL,
        nbd.ENOSPC,
        nbd.EOVERFLOW,
        nbd.ENOTSUP,
        nbd.ESHUTDOWN,
    }
)
"""proto.md, "Error values": the only ones a client has to understand."""

SAME_MEANING: Final = {
    errno.EROFS: nbd.EPERM,
    errno.EACCES: nbd.EPERM,
    errno.EFBIG: nbd.ENOSPC,
    errno.EDQUOT: nbd.ENOSPC,
    errno.EOPNOTSUPP: nbd.ENOTSUP,
}
"""Errors of the system that a client should see as the nearest one of the protocol."""

MAX_MESSAGE_BYTES: Final = 1024
"""An error's text in a reply: a few sentences. The protocol's limit for a string is 4096."""


class ProtocolError(InvalidRequestError):
    """The peer broke the protocol in a way that leaves no answer but to close the connection."""

    code = "protocol"


def nbd_errno(number: int) -> int:
    """Return the NBD error value for a system error number. EIO stands for those that NBD does not
    know."""
    if number in KNOWN_ERRORS:
        return number
    return SAME_MEANING.get(number, nbd.EIO)


def answer(error: Exception) -> tuple[int, str]:
    """Return the NBD error value and the text with which a request is answered that failed with
    `error`. This is the one place where errors become NBD's. A client is not told the details of a
    bug of ours, nor what is for the operator alone."""
    if isinstance(error, BockdError):
        return nbd_errno(error.errno), error.public_text or str(error)
    if isinstance(error, OSError):
        return nbd_errno(error.errno or nbd.EIO), error.strerror or "input/output error"
    if isinstance(error, MemoryError):
        return nbd.ENOMEM, "out of memory"
    return nbd.EIO, "internal error"


def is_bug(error: Exception) -> bool:
    """Return whether `answer` conceals what happened, so that it must be logged."""
    return not isinstance(error, BockdError | OSError | MemoryError)


def message_bytes(message: str) -> bytes:
    """Encode an error's text as it is sent: UTF-8, no NUL, cut to `MAX_MESSAGE_BYTES` at a
    character."""
    encoded = message.replace("\0", " ").encode(errors="replace")
    return encoded[:MAX_MESSAGE_BYTES].decode(errors="ignore").encode()
