"""Directories: made for their owner alone, whatever the umask, synced, and claimed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from bockd.durable import sync_directory
from bockd.errors import InUseError, InvalidRequestError, from_os_error

FILE_SYSTEMS_OWN = "lost+found"
"""What a new file system has, so a directory with nothing else is empty."""


def make_private(path: Path) -> None:
    """Make a directory and what is missing above it, each with mode 0700. One that exists keeps its
    mode. Raises OSError."""
    # os.makedirs would give its mode to the last one alone.
    for directory in _missing(path):
        os.makedirs(directory, mode=0o700, exist_ok=True)


def make_durable(path: Path) -> None:
    """Do what `make_private` does, so that the directory outlasts a power cut. Raises OSError."""
    missing = _missing(path)
    # Whoever made the one that is there may have been killed before it was synced; not so if this
    # process could not have made it, or may not open what it is in.
    parent = (missing[0].parent if missing else path).parent
    if os.access(parent, os.R_OK | os.W_OK):
        sync_directory(parent)
    for directory in missing:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        sync_directory(directory.parent)


def _missing(path: Path) -> list[Path]:
    """Return a directory and what is above it, as far as they are not there: the highest first."""
    missing = list[Path]()
    while not path.is_dir():
        missing.insert(0, path)
        path = path.parent
    return missing


def claim_directory(path: Path, lock_name: str, what: str) -> int:
    """Make a directory of one's own if need be, and lock it: return the descriptor of its lock
    file, which is to be closed at the end. `what` is what it is for, as in "the cache". Raises
    InUseError (another daemon has it), InvalidRequestError (it has something, and no such file),
    BockdError."""
    try:
        make_durable(path)
        _refuse_others(path, lock_name, what)
        lock = os.open(path / lock_name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Before anything else is there: without it, the directory would be another's.
            sync_directory(path)
        except BaseException:
            os.close(lock)
            raise
    except BlockingIOError as error:
        raise InUseError(f"another daemon uses {what} in {path}") from error
    except OSError as error:
        raise from_os_error(error, f"opening {what} in {path}") from error
    return lock


def _refuse_others(path: Path, lock_name: str, what: str) -> None:
    found = set(os.listdir(path)) - {FILE_SYSTEMS_OWN}
    if found and lock_name not in found:
        raise InvalidRequestError(
            f"{path} cannot have {what}: it is not empty, and has no {lock_name}; name a directory "
            "of its own"
        )
