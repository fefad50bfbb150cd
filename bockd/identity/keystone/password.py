"""The service user's password: from a file that only its owner reads, or from the environment."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from bockd.errors import InvalidRequestError

VARIABLE = "BOCKD_KEYSTONE_PASSWORD"

MAX_BYTES = 4096
"""Keystone hashes no longer password."""


def password_source(path: Path | None, environ: Mapping[str, str]) -> Callable[[], str]:
    """Return a function that returns the password at each call, from the file if one is configured.

    Raises InvalidRequestError when there is no password; so does each call of that function.
    """
    if path is None:
        given = environ.get(VARIABLE, "")
        if not given:
            raise InvalidRequestError(
                f"keystone.password_file: needed for keystone.username, unless {VARIABLE} is set"
            )
        return lambda: given
    read_password(path)
    return lambda: read_password(path)


def read_password(path: Path) -> str:
    """Read the password from the file, without the newline at its end. Raises
    InvalidRequestError."""
    try:
        # A named pipe must not make us wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _check_private(path, os.fstat(fd))
            content = os.read(fd, MAX_BYTES + 1)
        finally:
            os.close(fd)
        password = content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise InvalidRequestError(
            f"keystone.password_file: cannot read {path}: {error.strerror}"
        ) from error
    except UnicodeDecodeError:
        raise InvalidRequestError(f"keystone.password_file: {path} is not UTF-8 text") from None
    if not password or len(content) > MAX_BYTES or "\n" in password:
        raise InvalidRequestError(
            f"keystone.password_file: {path} must hold the password alone, on one line of at most "
            f"{MAX_BYTES} bytes"
        )
    return password


def _check_private(path: Path, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequestError(f"keystone.password_file: {path} is not a regular file")
    if status.st_uid not in (0, os.geteuid()):
        raise InvalidRequestError(f"keystone.password_file: {path} belongs to another user")
    if mode & 0o077:
        raise InvalidRequestError(
            f"keystone.password_file: others may read {path} (mode {mode:04o}): chmod 600 {path}"
        )
