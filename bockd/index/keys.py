"""Keys that order entries by number: big-endian unsigned numbers of 8 bytes."""

from __future__ import annotations

import struct

_ID = struct.Struct(">Q")
_PAIR = struct.Struct(">QQ")

FIRST_KEY = b""
LAST_KEY = b"\xff" * 17
"""Above every key of two numbers."""


def id_key(number: int) -> bytes:
    """Return the key of one number."""
    return _ID.pack(number)


def key_id(key: bytes) -> int:
    """Return the number of a key."""
    return int(_ID.unpack(key)[0])


def pair_key(first: int, second: int) -> bytes:
    """Return the key of two numbers."""
    return _PAIR.pack(first, second)


def second_of_pair(key: bytes) -> int:
    """Return the second number of a key of two."""
    return int(_PAIR.unpack(key)[1])
