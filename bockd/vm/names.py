"""What a volume's disk is called in a VM, so that its volume and attachment can be found later.

`bockd-<daemon>-<volume id>-<attachment>`: the daemon is a digest of its NBD socket's path (several
daemons may serve one VM), the attachment is a digest of its export name (each attachment has a new
one, and the name of a disk is no secret). A disk whose name has our prefix and belongs to no
attachment is left over from an attachment that was undone.
"""

from __future__ import annotations

import hashlib

MAX_NAME_LENGTH = 31
"""QEMU's limit on the name of a block node."""

DIGEST_LENGTH = 6
"""Hexadecimal digits. A volume is attached once at a time: two of its names need only differ."""


_NODE = "bockd-"

_SPARE_NODE = "bockd."
"""As long as the other one: a name may have no more."""


def prefix(nbd_socket: str) -> str:
    """Return the prefix of the names of all disks of one daemon."""
    return f"{_NODE}{_digest(nbd_socket)}-"


def disk_name(nbd_socket: str, volume: int, export_name: str) -> str:
    """Return the name of the block node and of the device."""
    name = f"{prefix(nbd_socket)}{volume}-{_digest(export_name)}"
    assert len(name) <= MAX_NAME_LENGTH  # up to 10^11 volumes
    return name


def spare_name(name: str) -> str:
    """Return the other name that a disk's block node may have. A node whose volume has grown is
    replaced by a fresh one, and QEMU wants two names while there are both."""
    assert name.startswith(_NODE)
    return _SPARE_NODE + name.removeprefix(_NODE)


def disk_of(node: str) -> str:
    """Return the name of the disk that a block node belongs to, whichever of the two names it
    has."""
    return _NODE + node.removeprefix(_SPARE_NODE) if node.startswith(_SPARE_NODE) else node


def serial(volume: int) -> str:
    """Return the serial that the guest reads in /sys/block/vdX/serial; with udev, the disk is at
    /dev/disk/by-id/virtio-<serial>."""
    return f"bockd-{volume}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
