"""What this host has connected, on disk: one small JSON file for each connection.

A record is written before its device comes, and removed after its device has gone and its volume
is detached. So whatever is left by a death in between is known, and `bock disconnect` or
`bock connect` carries on from there; after a reboot the records say what to bring back. Files are
replaced by renaming, synced before and after. Whoever changes something here, or on a device,
holds the directory's lock.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bockd.directories import make_private
from bockd.durable import replace_file, sync_directory
from bockd.errors import DamagedError, InUseError, from_os_error
from bockd.host.blockdevices import wait_until

STATE_DIR = Path("/var/lib/bock")
"""Survives a reboot; /run would not."""

STATE_VARIABLE = "BOCK_STATE"

_SUFFIX = ".json"
_LOCK = "lock"

LOCK_SECONDS = 60.0
"""For another `bock`. Connecting takes a second; one that waits for a network or a device may take
very long, and whoever wants to do something about that must learn of it."""

MAX_PID_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Connection:
    """A volume that is, or shall be, a device of this host."""

    key: str
    """Names the record's file."""
    daemon: str
    """Where the block storage API was asked: an OS_AUTH_URL, or the path of a socket."""
    tenant_id: str
    volume: int
    name: str
    """The volume's, when it was connected."""
    server: str
    """What the API calls this host."""
    device: str
    """Like /dev/nbd0; empty for a loop device that has not come yet."""
    file: str | None
    """What a loop device is on; None for an NBD device."""
    boot: str
    """The run of the kernel that `device` and `pid` are of."""
    pid: int | None
    """Tells this connection of an NBD device from others; None before it has come."""
    connected_at: float
    sector_bytes: int | None = None
    """The device's logical sectors. None in a record of an older bock, which chose 4096 for NBD
    devices and 512 for loop devices: what they hold may count in those."""
    disk_sequence: int | None = None
    """Tells this use of a loop device from others: see `loopdevices.disk_sequence`. None before it
    has come, in a record of an older bock, and where the kernel counts none."""


def current_boot() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Records:
    """The records in one directory, which is made when the first is written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> Records:
        """Return the records in $BOCK_STATE, or in the usual directory."""
        return cls(Path(environ.get(STATE_VARIABLE) or STATE_DIR))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, so that only one `bock` at a time changes connections of this host. Raises
        InUseError when another one holds it for too long."""
        try:
            make_private(self.directory)
            lock = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise from_os_error(error, f"opening {self.directory}") from error
        try:
            if not wait_until(lambda: _take(lock), LOCK_SECONDS):
                holder = os.pread(lock, MAX_PID_DIGITS, 0).decode(errors="replace").strip()
                raise InUseError(
                    f"another bock (process {holder or 'unknown'}) is connecting or disconnecting "
                    "here, and waits for something: see what it waits for, or end it"
                )
            os.ftruncate(lock, 0)
            os.pwrite(lock, b"%d\n" % os.getpid(), 0)
            yield
        finally:
            os.close(lock)

    def list(self) -> list[Connection]:
        """List the connections in the order in which they were made. Raises DamagedError when a
        file is not a record."""
        try:
            names = sorted(name for name in os.listdir(self.directory) if name.endswith(_SUFFIX))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise from_os_error(error, f"reading {self.directory}") from error
        found = (self._read(name) for name in names)
        return sorted((one for one in found if one is not None), key=lambda one: one.connected_at)

    def _read(self, name: str) -> Connection | None:
        import msgspec

        path = self.directory / name
        try:
            return msgspec.json.decode(path.read_bytes(), type=Connection)
        except FileNotFoundError:
            return None  # it went meanwhile
        except OSError as error:
            raise from_os_error(error, f"reading {path}") from error
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise DamagedError(
                f"{path} is not a record of bock ({error}): move it away, and see with "
                "'bock attachment list' what is attached"
            ) from error

    def write(self, connection: Connection) -> None:
        """Write a record; it is on disk when this returns. Raises NoSpaceError, DeniedError,
        DeviceError."""
        import msgspec

        path = self._path(connection)
        try:
            replace_file(path, msgspec.json.format(msgspec.json.encode(connection)))
        except OSError as error:
            raise from_os_error(error, f"writing {path}") from error

    def remove(self, connection: Connection) -> None:
        """Remove a record durably."""
        path = self._path(connection)
        try:
            path.unlink(missing_ok=True)
            sync_directory(self.directory)
        except OSError as error:
            raise from_os_error(error, f"removing {path}") from error

    def _path(self, connection: Connection) -> Path:
        return self.directory / (connection.key + _SUFFIX)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def new_key() -> str:
    """Generate a random key for a new record."""
    return secrets.token_hex(8)
