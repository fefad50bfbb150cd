"""What the handshake promises and transmission holds to: sizes, and the number of a context."""

from __future__ import annotations

from typing import Final

from bockd.model import MIB

MAX_EXPORT_NAME_BYTES: Final = 4096
"""proto.md, "Conventions": no string is longer."""

MAX_META_QUERIES: Final = 64
"""There is one context to ask for; a client that sends more than this is not asking."""

MIN_BLOCK_BYTES: Final = 1
"""The kernel's client never asks for block sizes, so every alignment has to be served."""

MAX_PAYLOAD_BYTES: Final = 64 * MIB
"""The largest read or write: what nbdkit takes, and more than the 50 MB that the reference
implementation's own test client sends."""

ALLOCATION_CONTEXT_ID: Final = 1
"""What block status replies carry for base:allocation."""
