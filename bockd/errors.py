"""Every error a caller may meet, in one family.

A frontend (NBD, HTTP, command line) has one place that turns a `BockdError` into its own language:
`errno` is what a block protocol answers, `code` is the stable word a script may match, and the
message is written for a person: what happened, to what, and what to do about it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class BockdError(Exception):
    """Base of all errors raised on purpose. The message is safe to show to a user."""

    code: ClassVar[str] = "internal"
    errno: ClassVar[int] = errno.EIO
    public_text: str | None = None
    """What clients over the network are told instead, where the message is for the operator alone:
    see bockd.publictexts."""


class InvalidRequestError(BockdError):
    """An argument is out of range or malformed; nothing was changed."""

    code = "invalid"
    errno = errno.EINVAL


class NotFoundError(BockdError):
    """No volume, snapshot or export answers to that name or id."""

    code = "not-found"
    errno = errno.ENOENT


class ConflictError(BockdError):
    """The name is taken, or the object's state does not allow the operation."""

    code = "conflict"
    errno = errno.EEXIST


class InUseError(BockdError):
    """A client, another process or another daemon holds the object (promise D6)."""

    code = "in-use"
    errno = errno.EBUSY


class DirtyElsewhereError(InUseError):
    """Another gateway has answered writes to the volume that the cluster does not have yet."""

    code = "dirty-elsewhere"
    errno = errno.EBUSY


class CoOpenersError(InUseError):
    """Processes other than the daemon (nbdkit with our plugin) have something of the pool open."""

    code = "has-guests"
    errno = errno.EBUSY


class NoSpaceError(BockdError):
    """The file system below the pool is full; nothing acknowledged was lost (promise D5)."""

    code = "no-space"
    errno = errno.ENOSPC


class NoInodesError(NoSpaceError):
    """The file system below the pool can hold no more files, whatever space it has."""

    code = "no-inodes"
    errno = errno.ENOSPC


class IndexFullError(NoSpaceError):
    """The pool's index has reached the size that it may have, whatever room the disk has."""

    code = "index-full"
    errno = errno.ENOSPC


class ReadOnlyError(BockdError):
    """A write was sent to a snapshot or to a read-only export."""

    code = "read-only"
    errno = errno.EPERM


class NotSupportedError(BockdError):
    """The operation exists, but not for this object or in this combination."""

    code = "not-supported"
    errno = errno.ENOTSUP


class VolumeFailedError(BockdError):
    """A sync failed, so what is on disk is unknown; the volume is refused until reopened."""

    code = "volume-failed"
    errno = errno.EIO


class SyncFailedError(VolumeFailedError):
    """A sync has just failed outside an open volume, in recovery: final for the volume, and to be
    recorded by whoever meets it."""

    def __init__(self, message: str, *, volume: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.volume = volume
        self.reason = reason


class UnreadableError(VolumeFailedError):
    """What was answered and is not in the pool yet cannot be read back where it is kept."""


class VolumeTakenError(VolumeFailedError):
    """Another gateway has taken the volume and shut this one out. No answer to a request: it may
    still be carried out. The client's connection is closed, so that it connects again and resends
    what was not answered."""

    code = "volume-taken"
    errno = errno.ESHUTDOWN


def volume_failed(volume: int, name: str, reason: str) -> VolumeFailedError:
    """Build the error that says why a volume is refused, and what to do about it."""
    return VolumeFailedError(
        f"volume {volume} ({name}) is refused after an error: {reason}. Writes since its last "
        f"successful flush may be lost; 'bock volume reopen {volume}' accepts that"
    )


class DamagedError(BockdError):
    """Something on disk is missing, truncated or fails its checksum: refused, never guessed."""

    code = "damaged"
    errno = errno.EIO


class DamagedBlockError(DamagedError):
    """A block that was read does not hold what it held: of which layer, and its number there."""

    def __init__(self, message: str, *, layer: int = 0, block: int = 0) -> None:
        super().__init__(message)
        self.layer = layer
        self.block = block


class PoolFormatError(BockdError):
    """The directory is not a pool, or a newer bockd wrote it."""

    code = "pool-format"
    errno = errno.EINVAL


class DeniedError(BockdError):
    """The operating system does not let this process use the pool's files."""

    code = "denied"
    errno = errno.EACCES


class ReadOnlyFileSystemError(DeniedError):
    """The file system below the pool takes no changes any more; what is stored can be read."""

    code = "read-only-file-system"
    errno = errno.EROFS

    def __init__(self, doing: str) -> None:
        super().__init__(
            f"{doing}: read-only file system; find out why ('dmesg' tells of an error), repair it, "
            "mount it for writing, and start bockd again"
        )


class DeviceError(BockdError):
    """The file system below the pool failed a read, a write or a sync."""

    code = "device-error"
    errno = errno.EIO


class UnavailableError(BockdError):
    """The daemon is not running, is stopping, or cannot be reached; or a service that it needs."""

    code = "unavailable"
    errno = errno.ESHUTDOWN


class ClusterUnavailableError(UnavailableError):
    """The storage cluster does not answer, or not now."""

    public_text = "the storage cluster does not answer; try again later"


class InvalidStateError(ConflictError):
    """The status of a volume or snapshot does not allow the operation; its message begins with
    "Invalid volume" or "Invalid snapshot"."""

    code = "invalid-state"
    errno = errno.EBUSY


class OverLimitError(BockdError):
    """A tenant's quota or a limit on requests is used up."""

    code = "over-limit"
    errno = errno.EDQUOT

    def __init__(self, message: str, retry_after_seconds: int = 0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        """0 when waiting alone does not help, as for a quota."""


class UnauthorizedError(BockdError):
    """The credentials or the token are wrong, or the token has expired."""

    code = "unauthorized"
    errno = errno.EACCES


class ForbiddenError(BockdError):
    """Whoever asks is known, and may not do this."""

    code = "forbidden"
    errno = errno.EPERM


def from_os_error(error: OSError, doing: str) -> BockdError:
    """Translate an error of the operating system to a BockdError. `doing` says what was attempted,
    as in "writing to layer 3"."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(error, doing)
    if error.errno == errno.EROFS:
        return ReadOnlyFileSystemError(doing)
    if error.errno in (errno.EACCES, errno.EPERM):
        return DeniedError(f"{doing}: {reason}; check who owns the pool directory")
    advice = _ADVICE.get(error.errno or 0, "")
    return DeviceError(f"{doing}: {reason}{advice}")


_ADVICE = {
    errno.EMFILE: "; raise the limit of open files (LimitNOFILE= of the unit, ulimit -n), or use "
    "fewer volumes at a time",
    errno.ENFILE: "; raise fs.file-max, the machine's limit of open files",
    errno.EIO: "; the kernel's log says what the disk reported",
}
"""What to do, where the error's own text does not say it."""


def _full(error: OSError, doing: str) -> NoSpaceError:
    """What there is none left of, and what to do. A file that cannot be made is named by its error;
    where bytes cannot be written there is no name, or a descriptor's number."""
    if error.errno == errno.EDQUOT:
        return NoSpaceError(f"{doing}: the disk quota is used up; free some space and try again")
    if isinstance(error.filename, str):
        try:
            status = os.statvfs(os.path.dirname(error.filename) or ".")
        except OSError:
            status = None
        if status is not None and status.f_files and not status.f_favail:
            return NoInodesError(
                f"{doing}: the file system has no inodes left ('df -i' shows it), whatever space "
                "it has; remove some files and try again"
            )
    return NoSpaceError(f"{doing}: the file system is full; free some space and try again")


@contextmanager
def named(doing: str) -> Iterator[None]:
    """Raise an OSError of the `with` block in our terms (`from_os_error`)."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing) from error
