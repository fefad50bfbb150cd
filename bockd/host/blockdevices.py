"""What the kernel tells of a block device: its size, and who uses it.

Read from /sys and /proc, which ask no file system and no device. A device counts with its
partitions. `claimed` takes the kernel's exclusive claim, the one that a mount takes, so that
nothing can be mounted between the look and the end of the device.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bockd.errors import DeviceError, InUseError, NotFoundError
from bockd.host.tools import run_within

SYS_BLOCK = Path("/sys/class/block")

SECTOR_BYTES = 512
"""The unit of sizes in /sys, whatever the device's own sector is."""

POLL_SECONDS = 0.05
"""Between two looks at /sys, which tells of no changes."""

WAIT_SECONDS = 30.0
"""For a device to come or to go; it takes milliseconds unless the machine is very busy."""

SETTLE_SECONDS = 3.0
"""udev opens a device for a moment whenever somebody has closed it."""

FLUSH_SECONDS = 600.0
"""Gigabytes may wait to be written to a slow network."""

_FLUSH = """
import os, sys
try:
    os.fsync(int(sys.argv[1]))
except OSError as error:
    sys.exit(error.errno)
"""


def read_attribute(device: str, attribute: str) -> str | None:
    """Read one of the files that /sys has of a device; None when there is none. File names in its
    text may be any bytes."""
    try:
        file = SYS_BLOCK / device.removeprefix("/dev/") / attribute
        return file.read_text(errors="surrogateescape").strip()
    except OSError:
        return None


def size_bytes(device: str) -> int:
    """Return the size of a device in bytes; 0 when it does not exist or nothing is connected to
    it."""
    return int(read_attribute(device, "size") or 0) * SECTOR_BYTES


def wait_until(true: Callable[[], bool], seconds: float = WAIT_SECONDS) -> bool:
    """Wait until a condition is true. Return whether that happened in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def users(device: str) -> list[str]:
    """List what uses a device, in words; empty when nothing does."""
    numbers = _numbers(device)
    return [
        *_mounts(numbers),
        *_swaps(numbers),
        *_holders(numbers),
        *_loops(numbers),
        *_openers(numbers),
    ]


@contextmanager
def claimed(device: str) -> Iterator[int]:
    """Claim a device exclusively and yield its descriptor, so that nobody else can mount or claim
    the device meanwhile. Raises InUseError, which says what uses it, and DeviceError."""
    descriptor = _claim(device)
    try:
        # Who has merely opened it has no claim.
        if not wait_until(lambda: not users(device), SETTLE_SECONDS):
            raise in_use(device, users(device))
        yield descriptor
    finally:
        os.close(descriptor)


def flush(device: str, descriptor: int) -> None:
    """Write back what the kernel has cached of a device, and flush the device. Raises DeviceError.

    A separate process does it, because a process that waits for a device cannot be ended: not by a
    limit, nor by a user who has lost patience.
    """
    try:
        status = run_within(
            FLUSH_SECONDS,
            [sys.executable, "-I", "-S", "-c", _FLUSH, str(descriptor)],
            pass_fds=[descriptor],
        )
        reason = os.strerror(status) if status > 0 else f"ended by signal {-status}"
    except TimeoutError:
        status, reason = 1, f"for {FLUSH_SECONDS:g} seconds"
    if status != 0:
        raise DeviceError(
            f"{device} did not take what was still to be written to it ({reason}); is the "
            "daemon running? --force gives that up"
        )


def in_use(device: str, by: list[str]) -> InUseError:
    """Return the error for a device that is in use, which says what to end first."""
    unseen = f"{device} is in use by something that is not seen from here (in a container?)"
    return InUseError(f"{'; '.join(by) or unseen}: end that first")


def _claim(device: str) -> int:
    try:
        return os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise in_use(device, users(device)) from error
        raise DeviceError(f"{device} cannot be opened: {error.strerror}") from error


def _numbers(device: str) -> dict[str, str]:
    """MAJOR:MINOR of a device and of its partitions, and what each is called."""
    name = device.removeprefix("/dev/")
    directory = SYS_BLOCK / name
    if not directory.exists():
        raise NotFoundError(f"there is no block device {device}")
    names = [name, *(entry.name for entry in directory.iterdir() if (entry / "partition").exists())]
    return {number: name for name in names if (number := read_attribute(name, "dev"))}


def _mounts(numbers: dict[str, str]) -> list[str]:
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        source = fields[fields.index("-") + 2]
        # btrfs has device numbers of its own; then the source tells.
        name = numbers.get(fields[2]) or (
            source.removeprefix("/dev/")
            if source.removeprefix("/dev/") in numbers.values()
            else None
        )
        if name is not None:
            found.append(f"/dev/{name} is mounted at {_unescape(fields[4])}")
    return found


def _unescape(path: str) -> str:
    """mountinfo writes blanks in octal (proc_pid_mountinfo(5))."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def _swaps(numbers: dict[str, str]) -> list[str]:
    with suppress(OSError):
        paths = [
            line.split()[0]
            for line in Path("/proc/swaps").read_text(errors="surrogateescape").splitlines()[1:]
        ]
        return [f"{path} is swap space" for path in paths if _number_of(path) in numbers]
    return []


def _number_of(path: str) -> str | None:
    with suppress(OSError):
        found = os.stat(path)
        if stat.S_ISBLK(found.st_mode):
            return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return None


def _holders(numbers: dict[str, str]) -> list[str]:
    """Device mapper, RAID, bcache."""
    found = []
    for name in numbers.values():
        with suppress(OSError):
            for holder in os.listdir(SYS_BLOCK / name / "holders"):
                label = read_attribute(holder, "dm/name")
                found.append(f"/dev/{name} is part of {holder}" + (f" ({label})" if label else ""))
    return found


def _loops(numbers: dict[str, str]) -> list[str]:
    found = []
    for entry in SYS_BLOCK.glob("loop*"):
        backing = read_attribute(entry.name, "loop/backing_file")
        if (backing or "").startswith("/dev/") and _number_of(str(backing)) in numbers:
            found.append(f"{backing} is behind /dev/{entry.name}")
    return found


def _openers(numbers: dict[str, str]) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with suppress(OSError):  # it ended meanwhile
            for descriptor in (process / "fd").iterdir():
                # Only /dev is asked: a file on a dead network file system would not answer.
                path = os.readlink(descriptor)
                name = numbers.get(_number_of(path) or "") if path.startswith("/dev/") else None
                if name is not None:
                    comm = (process / "comm").read_text(errors="replace").strip()
                    found.append(f"/dev/{name} is open in process {process.name} ({comm})")
                    break
    return found
