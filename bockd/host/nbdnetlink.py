"""The kernel's netlink interface to NBD devices, as far as it is needed: a device's new size.

Generic netlink (linux/netlink.h, linux/genetlink.h): a message is a header, a command and
attributes, each aligned to four bytes. The kernel answers each with an error number, 0 for success.
Commands and attributes of the family `nbd` are in linux/nbd-netlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import closing

from bockd.errors import DeviceError, NotSupportedError

_NETLINK_GENERIC = 16
_ANSWER_BYTES = 8192
_ANSWER_SECONDS = 10.0
"""The kernel answers at once, unless somebody else is at work on the same device."""

_NLMSG_ERROR = 2
_NLM_F_REQUEST_ACK = 0x1 | 0x4

_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID = 1
_CTRL_ATTR_FAMILY_NAME = 2

_NBD_CMD_RECONFIGURE = 3
_NBD_ATTR_INDEX = 1
_NBD_ATTR_SIZE_BYTES = 2

_HEADER = struct.Struct("=IHHII")
_COMMAND = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")


def set_size(index: int, size_bytes: int) -> None:
    """Give /dev/nbd<index> a new size, whether it is used or not.

    Raises:
        NotSupportedError: the device was not connected through netlink, or the kernel has no such
            interface.
        DeviceError: the kernel refused for another reason.
    """
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC)) as netlink:
        netlink.settimeout(_ANSWER_SECONDS)
        try:
            family = _find_family(netlink)
            attributes = _attribute(_NBD_ATTR_INDEX, struct.pack("=I", index))
            attributes += _attribute(_NBD_ATTR_SIZE_BYTES, struct.pack("=Q", size_bytes))
            _ask(netlink, family, _NBD_CMD_RECONFIGURE, attributes)
        except FileNotFoundError as error:
            raise NotSupportedError(
                "this kernel has no netlink interface to NBD devices"
            ) from error
        except OSError as error:
            reason = error.strerror or "no answer"
            if error.errno == errno.EINVAL:
                raise NotSupportedError(f"/dev/nbd{index} knows no netlink") from error
            raise DeviceError(f"the kernel did not resize /dev/nbd{index}: {reason}") from error


def _find_family(netlink: socket.socket) -> int:
    """Return the number that the kernel has given to the family `nbd`; FileNotFoundError."""
    name = _attribute(_CTRL_ATTR_FAMILY_NAME, b"nbd\0")
    attributes = _ask(netlink, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, name)
    while attributes:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _CTRL_ATTR_FAMILY_ID:
            return int.from_bytes(attributes[_ATTRIBUTE.size : length], "little")
        attributes = attributes[_aligned(length) :]
    raise FileNotFoundError


def _ask(netlink: socket.socket, family: int, command: int, attributes: bytes) -> bytes:
    """Send a command and return the attributes of what comes back before the acknowledgement.
    OSError with the kernel's error number."""
    body = _COMMAND.pack(command, 1, 0) + attributes
    netlink.send(_HEADER.pack(_HEADER.size + len(body), family, _NLM_F_REQUEST_ACK, 1, 0) + body)
    found = b""
    while True:
        received = netlink.recv(_ANSWER_BYTES)
        while received:
            length, kind, *_ = _HEADER.unpack_from(received)
            message, received = received[_HEADER.size : length], received[_aligned(length) :]
            if kind != _NLMSG_ERROR:
                found = message[_COMMAND.size :]
                continue
            (number,) = _ERROR.unpack_from(message)
            if number:
                raise OSError(-number, os.strerror(-number))
            return found


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
