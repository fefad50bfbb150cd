"""What outlasts a power cut: entries of directories, and small files of which a reader sees all of
the old content or all of the new."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def unfinished(path: Path) -> Path:
    """Return the name that a file's new content has while it is written."""
    return path.with_name(f".{path.name}.new")


def replace_file(path: Path, content: bytes) -> None:
    """Give a file new content, and make it if need be: on disk when this returns. After a SIGKILL
    or a power cut it has the old content or the new one. Only its owner may read it, and that is
    the directory's owner where root writes it and may give it away. Raises OSError."""
    new = unfinished(path)
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        owner, own = os.stat(path.parent), os.fstat(fd)
        # The call itself is forbidden to a service whose unit forbids what only root needs. Where a
        # server on the network forbids it, the file is as good without.
        if os.geteuid() == 0 and (owner.st_uid, owner.st_gid) != (own.st_uid, own.st_gid):
            with suppress(PermissionError):
                os.fchown(fd, owner.st_uid, owner.st_gid)
        file.write(content)
        file.flush()
        os.fsync(fd)
    os.replace(new, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
