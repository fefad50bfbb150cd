"""Listening on a Unix socket that only its owner can reach.

A socket gets its mode before it gets its name (on Linux `bind` gives the file the descriptor's
mode), and its name by a rename, so that there is no moment in which others could connect or in
which a client finds it half made. One that a dead process left behind is replaced, one that
somebody listens on is not. Two daemons cannot race: whoever serves a pool holds its lock first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from bockd.errors import ConflictError, InUseError, InvalidRequestError, from_os_error

MAX_SOCKET_PATH_BYTES = 107
"""sockaddr_un.sun_path has 108 bytes, one of them for the final NUL."""

BACKLOG = 1024
"""Clients that may wait to be accepted: more than come between two turns of a busy loop. Beyond it
a client on TCP tries again after a second, and one on a Unix socket may be told to."""

_TEMPORARY_SUFFIX = ".new"


def listen_unix(path: Path) -> socket.socket:
    """Create a non-blocking listening socket at `path`, mode 0600.

    Raises InUseError when somebody listens there, ConflictError when something else has the name,
    InvalidRequestError when the path is too long, DeniedError or DeviceError for the directory.
    """
    _check_length(path)
    _check_unused(path)
    temporary = os.fspath(path) + _TEMPORARY_SUFFIX
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        os.fchmod(listener.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        listener.bind(temporary)
        listener.listen(BACKLOG)
        os.rename(temporary, path)
    except OSError as error:
        listener.close()
        raise from_os_error(error, f"listening on {path}") from error
    return listener


@contextlib.contextmanager
def listening_unix(path: Path) -> Iterator[socket.socket]:
    """Listen as `listen_unix` does. At the end the file is removed, if it is still this
    socket's."""
    listener = listen_unix(path)
    ours = path.lstat()
    try:
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.lstat(), ours):
                path.unlink()


def _check_length(path: Path) -> None:
    length = len(os.fsencode(path)) + len(_TEMPORARY_SUFFIX)
    if length > MAX_SOCKET_PATH_BYTES:
        raise InvalidRequestError(
            f"the path of socket {path} is {length - MAX_SOCKET_PATH_BYTES} bytes too long for "
            "the system: choose a shorter data directory (BOCKD_DATA)"
        )


def _check_unused(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise from_os_error(error, f"listening on {path}") from error
    if not stat.S_ISSOCK(mode):
        raise ConflictError(f"{path} exists and is not a socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a daemon with a full backlog is alive too
        refusal = probe.connect_ex(os.fspath(path))
    if refusal != errno.ECONNREFUSED:
        raise InUseError(f"another process listens on {path}; stop it or choose another directory")
