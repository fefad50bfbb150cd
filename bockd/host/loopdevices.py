"""Loop devices on files of the daemon's file view, for kernels without NBD devices."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from bockd.errors import BockdError, DeviceError, NotFoundError
from bockd.host.blockdevices import SYS_BLOCK, read_attribute, size_bytes, wait_until
from bockd.host.tools import find_tool, run_tool

SECTOR_BYTES = 512
"""See bockd.host.kernelnbd.SECTOR_BYTES. A kernel may choose another one for direct I/O."""

VIEW_PARTS = 2
"""Of a file's path within the daemon's view: volumes/<id>."""


def require() -> None:
    """Raise NotSupportedError when losetup is not installed."""
    find_tool("losetup")


def find_file(device: str) -> str | None:
    """Return the real path of the file behind a loop device; None when it has none."""
    return read_attribute(device, "loop/backing_file")


def disk_sequence(device: str) -> int | None:
    """Return the number that the kernel gave to what is in a device now, and gives to nothing else
    before the next boot. None where it counts none (before Linux 5.15)."""
    number = read_attribute(device, "diskseq")
    return None if number is None else int(number)


def is_on(device: str, path: str, sequence: int | None) -> bool:
    """Return whether a device is on a file of a view, even of one that is no longer mounted.
    `sequence` is what it had, if that is known."""
    return _is_same(device, sequence) and (find_file(device) == path or _is_lost(device, path))


def is_dead(device: str, path: str, sequence: int | None) -> bool:
    """Return whether the view that had a device's file at this path is gone. The kernel then fails
    every request to the device."""
    return _is_same(device, sequence) and _is_lost(device, path)


def _is_same(device: str, sequence: int | None) -> bool:
    return sequence is None or disk_sequence(device) in (None, sequence)


def _is_lost(device: str, path: str) -> bool:
    """Whether the kernel names only the file's path inside the view. So it does when the view is
    not mounted any more, and also for another daemon's in another mount namespace."""
    inside = os.path.join("/", *Path(path).parts[-VIEW_PARTS:])
    return find_file(device) == inside != path


def find_device(path: str) -> str | None:
    """Return a loop device that is on a file; None when there is none."""
    found = (entry.name for entry in SYS_BLOCK.glob("loop*") if find_file(entry.name) == path)
    name = next(found, None)
    return None if name is None else f"/dev/{name}"


def bring_up(path: str, sector_bytes: int = SECTOR_BYTES) -> str:
    """Set up a loop device on a file, with its partitions, and return it. Raises NotFoundError,
    DeviceError."""
    if not Path(path).exists():
        raise NotFoundError(
            f"there is no {path}: is the daemon's file view still mounted? The daemon mounts it "
            "when it starts"
        )
    # Direct I/O saves a second copy of everything in the page cache (docs/fuse.md).
    try:
        return run_tool(
            "losetup",
            *("--find", "--show", "--direct-io=on", "--partscan"),
            *("--sector-size", str(sector_bytes)),
            path,
        ).strip()
    except BaseException:
        # Interrupted, it may have come; nobody else has a device on this file.
        device = find_device(path)
        if device is not None:
            with suppress(BockdError):
                take_down(device)
        raise


def set_size(device: str, size: int) -> None:
    """Give a device, which may be in use, the size in bytes that its file has now. Raises
    DeviceError."""
    file = find_file(device)
    if file is not None:
        # The kernel knows a size that it was told when somebody asked for it.
        with suppress(OSError):
            os.stat(file)
    run_tool("losetup", "--set-capacity", device)
    if not wait_until(lambda: size_bytes(device) == size):
        raise DeviceError(f"{device} has {size_bytes(device)} bytes still, not {size}")


def take_down(device: str) -> None:
    """Detach a loop device from its file, even if it is in use. Raises DeviceError."""
    run_tool("losetup", "--detach", device)


def wait_until_gone(device: str) -> None:
    """Wait until the device has no file. Raises DeviceError."""
    if not wait_until(lambda: find_file(device) is None):
        raise DeviceError(f"{device} is still there after losetup --detach; who has it open?")
