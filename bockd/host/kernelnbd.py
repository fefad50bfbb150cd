"""The kernel's NBD devices, through nbd-client: /dev/nbdX from its connection to its end."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Collection
from contextlib import suppress
from urllib.parse import parse_qs, unquote, urlsplit

from bockd.errors import (
    BockdError,
    ConflictError,
    DeviceError,
    InvalidRequestError,
    NotSupportedError,
)
from bockd.host import nbdnetlink, partitions
from bockd.host.blockdevices import SYS_BLOCK, read_attribute, size_bytes, wait_until
from bockd.host.tools import find_tool, run_tool
from bockd.tls.trust import SYSTEM_CA_FILES, Trust

SECTOR_BYTES = 512
"""A volume is a disk of such sectors wherever it is used: partition tables and some file systems
count in them. nbd-client tells the kernel one number, the logical sector and the physical one."""

OLD_SECTOR_BYTES = 4096
"""Of what bock connected before it could be chosen."""

CONNECTIONS = 4
"""Sockets of one device: the kernel spreads its queues over them."""

_NBD_SET_SIZE = 0xAB02
"""linux/nbd.h."""

MODULE = SYS_BLOCK.parents[1] / "module" / "nbd"


def require() -> None:
    """Load the module, and find nbd-client. Raises NotSupportedError, which says what to do without
    them."""
    if not _is_loaded():
        reason = "the module was loaded, and there is no /sys/class/block/nbd0"
        try:
            run_tool("modprobe", "nbd")
        except BockdError as error:
            reason = str(error)
        if not wait_until(_is_loaded, 0):
            raise NotSupportedError(
                f"this machine's kernel has no NBD devices ({reason}). If the daemon runs on this "
                "machine with --mount, a loop device does the same: bock connect --loop VOLUME"
            )
    find_tool("nbd-client")


def _is_loaded() -> bool:
    return MODULE.exists() and (SYS_BLOCK / "nbd0").exists()


def check_name(device: str) -> str:
    """Return the device as /dev/nbdX, whether it was given with or without /dev/.

    Raises InvalidRequestError when it is not an NBD device of this machine, ConflictError when it
    is in use.
    """
    name = device.removeprefix("/dev/")
    if not re.fullmatch(r"nbd[0-9]{1,4}", name):
        raise InvalidRequestError(f"{device!r} is not an NBD device: give one like /dev/nbd0")
    if not (SYS_BLOCK / name).exists():
        raise InvalidRequestError(
            f"there is no /dev/{name}; the kernel has {len(_names())} NBD devices, and more with "
            "the module's parameter nbds_max"
        )
    if not _is_free(name):
        raise ConflictError(f"/dev/{name} is connected already; leave --device out for a free one")
    return f"/dev/{name}"


def find_free(taken: Collection[str]) -> str:
    """Return the first device that nobody uses and that is not in `taken`. Raises ConflictError
    when there is none."""
    for name in _names():
        device = f"/dev/{name}"
        if device not in taken and _is_free(name):
            return device
    raise ConflictError(
        f"all {len(_names())} NBD devices of this machine are in use; the module's parameter "
        "nbds_max gives more"
    )


def _names() -> list[str]:
    """List the NBD devices by number."""
    names = [entry.name for entry in SYS_BLOCK.glob("nbd*") if entry.name[3:].isdigit()]
    return sorted(names, key=lambda name: int(name[3:]))


def _is_free(name: str) -> bool:
    return find_pid(name) is None and size_bytes(name) == 0


def find_pid(device: str) -> int | None:
    """Return the process that connected a device; None when it is not connected. The process may
    have ended since."""
    pid = read_attribute(device, "pid")
    return None if pid is None else int(pid)


def bring_up(device: str, uri: str, trust: Trust, sector_bytes: int = SECTOR_BYTES) -> int:
    """Connect a device to an export, and wait until it is there. Return the id that tells this
    connection from others of the device. Raises DeviceError, and then leaves nothing behind."""
    try:
        run_tool(
            "nbd-client", *_address(uri), device, *_target(uri, sector_bytes), *_tls(uri, trust)
        )
        came = wait_until(lambda: find_pid(device) is not None and size_bytes(device) > 0)
    except BockdError:
        # The device is not ours: somebody else may have connected it just before.
        raise
    except BaseException:
        # Interrupted: it may have come.
        _end(device)
        raise
    if not came:
        _end(device)
        raise DeviceError(f"nbd-client succeeded, and {device} did not come")
    return find_pid(device) or 0


def _end(device: str) -> None:
    if find_pid(device) is not None:
        with suppress(BockdError):
            take_down(device)


def set_size(device: str, size: int) -> None:
    """Give a device, which may be in use, a new size in bytes. Raises DeviceError."""
    try:
        nbdnetlink.set_size(int(device.removeprefix("/dev/nbd")), size)
    except NotSupportedError:
        # An nbd-client that was built without netlink has connected it.
        _set_size_by_ioctl(device, size)
    if not wait_until(lambda: size_bytes(device) == size):
        raise DeviceError(f"{device} has {size_bytes(device)} bytes still, not {size}")


def _set_size_by_ioctl(device: str, size: int) -> None:
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            # fcntl.ioctl takes numbers of 31 bits.
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.ioctl(descriptor, ctypes.c_ulong(_NBD_SET_SIZE), ctypes.c_ulong(size)) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DeviceError(f"the kernel did not resize {device}: {error.strerror}") from error


def take_down(device: str) -> None:
    """Disconnect a device, even if it is in use. Raises DeviceError."""
    run_tool("nbd-client", "-d", device)


def wait_until_gone(device: str) -> None:
    """Wait until nothing is connected to the device. Raises DeviceError."""
    if not wait_until(lambda: find_pid(device) is None):
        raise DeviceError(f"{device} is still connected after nbd-client -d; who has it open?")
    # The kernel keeps the partitions of a device that has gone until somebody looks.
    partitions.scan(device)


def _address(uri: str) -> list[str]:
    parts = urlsplit(uri)
    if parts.scheme == "nbd+unix":
        return ["-unix", parse_qs(parts.query)["socket"][0]]
    return [str(parts.hostname), str(parts.port)]


def _target(uri: str, sector_bytes: int) -> list[str]:
    name = unquote(urlsplit(uri).path[1:])
    return ["-N", name, "-b", str(sector_bytes), "-C", str(CONNECTIONS), "-persist"]


def _tls(uri: str, trust: Trust) -> list[str]:
    """nbd-client does TLS in a process beside the kernel's connection. It verifies nothing without
    a file of CAs."""
    parts = urlsplit(uri)
    if parts.scheme != "nbds":
        return []
    ca_file = trust.ca_file or next(filter(os.path.exists, SYSTEM_CA_FILES), None)
    if ca_file is None:
        raise InvalidRequestError("the daemon requires TLS: set OS_CACERT to its CA's certificate")
    options = ["-enable-tls", "-tlshostname", str(parts.hostname), "-cacertfile", ca_file]
    if trust.certificate_file is not None:
        key_file = trust.key_file or trust.certificate_file
        options += ["-certfile", trust.certificate_file, "-keyfile", key_file]
    return options
