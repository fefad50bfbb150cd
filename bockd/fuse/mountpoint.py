"""Where the view is mounted: what may be there before, and what must not stay there after.

Everything here may block and runs in a thread. It must never look *into* the view: the daemon
would wait for itself. What is mounted where is read from /proc/self/mountinfo, which asks no file
system.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bockd.directories import make_private
from bockd.errors import (
    BockdError,
    DeniedError,
    InUseError,
    InvalidRequestError,
    NotSupportedError,
    UnavailableError,
    from_os_error,
)

log = logging.getLogger(__name__)

SUBTYPE = "bockd"
FILE_SYSTEM_TYPE = f"fuse.{SUBTYPE}"

_MNT_DETACH = 2
_DEVICE = Path("/dev/fuse")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of mountinfo, as far as it matters here."""

    path: str
    type: str
    source: str


def source_name(data_dir: Path) -> str:
    """Return the mount source of a pool's view in mountinfo. It tells which pool a mount belongs
    to. It is percent-encoded, because commas and spaces have a meaning in mount options."""
    return f"bockd:{quote(str(data_dir))}"


def mounts(mountinfo: str) -> list[Mounted]:
    """Parse a mountinfo (proc_pid_mountinfo(5)) and return its mounts, in the order they were
    made."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        found.append(Mounted(_unescape(fields[4]), kind[0], _unescape(kind[1])))
    return found


def _unescape(field: str) -> str:
    for character in " \t\n\\":
        field = field.replace(f"\\{ord(character):03o}", character)
    return field


def mounted_at(path: Path) -> Mounted | None:
    """Return what is mounted on exactly this path, or None. Of several mounts it is the last one,
    which covers the others."""
    text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return next((m for m in reversed(mounts(text)) if m.path == str(path)), None)


def prepare(path: Path, data_dir: Path) -> Path:
    """Prepare `path` for mounting: make it an empty directory if it does not exist, and remove the
    stale mount of a daemon that was killed. The pool's lock is held, so no other daemon uses a
    mount of this pool's view. Returns the path without symbolic links, as mountinfo has it. Raises
    BockdError."""
    try:
        return _prepare(Path(os.path.realpath(path)), data_dir)
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidRequestError(f"--mount {path}: this is not a directory") from error
    except FileNotFoundError as error:
        raise InvalidRequestError(f"--mount {path}: no directory can be made there") from error
    except OSError as error:
        raise from_os_error(error, f"--mount {path}") from error


def _prepare(path: Path, data_dir: Path) -> Path:
    if not os.access(_DEVICE, os.R_OK | os.W_OK, effective_ids=True):
        _refuse_device()
    if data_dir == path or path in data_dir.parents:
        raise InvalidRequestError(
            f"--mount {path}: the pool {data_dir} is inside; choose a directory beside it"
        )
    _clear_stale(path, source_name(data_dir))
    make_private(path)
    if os.listdir(path):
        raise InvalidRequestError(f"--mount {path}: the directory is not empty; choose another")
    return path


def _refuse_device() -> None:
    if not _DEVICE.exists():
        raise UnavailableError(f"--mount needs {_DEVICE}, which is missing: try 'modprobe fuse'")
    raise DeniedError(f"--mount needs {_DEVICE}, which this user may not open")


def _clear_stale(path: Path, source: str) -> None:
    while (found := mounted_at(path)) is not None:
        if (found.type, found.source) != (FILE_SYSTEM_TYPE, source):
            raise InUseError(
                f"--mount {path}: {found.type} {found.source} is mounted there; unmount it, or "
                "choose another directory"
            )
        log.info("removing the mount that a killed daemon left at %s", path)
        detach(path)


def detach(path: Path) -> None:
    """Unmount from the tree at once, even while files are open in it. Raises BockdError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
        return
    if ctypes.get_errno() != errno.EPERM:
        raise _cannot_unmount(path, os.strerror(ctypes.get_errno()))
    try:
        ended = subprocess.run(
            ["fusermount3", "-u", "-z", path], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise NotSupportedError(
            "only root can unmount without fusermount3; install the package fuse3"
        ) from None
    if ended.returncode != 0:
        raise _cannot_unmount(path, ended.stderr.strip())


def _cannot_unmount(path: Path, reason: str) -> BockdError:
    return UnavailableError(f"unmounting {path}: {reason}; try 'umount -l {path}'")


_PR_SET_IO_FLUSHER = 57


def never_wait_for_own_writeback() -> None:
    """Tell the kernel that this process is in the way of writeback (prctl PR_SET_IO_FLUSHER): when
    memory is short, its allocations must not wait for pages that only it can write, such as those
    of a loop device on one of its files. For the main thread, before others start: they inherit
    it. Without the right to (CAP_SYS_RESOURCE) nobody could mount a loop device either."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        log.debug("PR_SET_IO_FLUSHER: %s", os.strerror(ctypes.get_errno()))
