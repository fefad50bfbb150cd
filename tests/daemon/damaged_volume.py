"""A volume and its snapshot, of whose frozen blocks one is damaged on the disk and scrubbed."""

from __future__ import annotations

import json
from typing import Any

from tests.drivers.local.bitflip import flip_bit

from .process import Bockd, program

BLOCK = 4096
DAMAGED = 5
"""The block whose bit flips."""


def content(value: int, blocks: int) -> bytes:
    """Return blocks that tell `value` and their own number."""
    return b"".join(b"%4d%4d" % (value, block) * (BLOCK // 8) for block in range(blocks))


def scrub(daemon: Bockd, *options: str, status: int = 0) -> dict[str, Any]:
    """Run `bockd scrub`, which must end with `status`, and return its JSON."""
    result = daemon.run(program("bockd"), "scrub", "--json", *options)
    assert result.status == status, result
    found: dict[str, Any] = json.loads(result.out)
    return found


def fill(daemon: Bockd) -> None:
    """Make a volume of 8 MiB with a snapshot that holds 600 blocks, of which the volume has
    overwritten the first four."""
    daemon.bock("volume", "create", "disk", "--size", "8M")
    with daemon.connected("disk") as client:
        client.pwrite(content(1, 600), 0)
    daemon.bock("snapshot", "create", "disk", "kept")
    with daemon.connected("disk") as client:
        client.pwrite(content(2, 4), 0)
        client.flush()


def flip(daemon: Bockd, block: int = DAMAGED) -> None:
    """Flip a bit of a block that the snapshot holds, on the disk."""
    flip_bit(daemon.data_dir / "layers" / "1.0", block * BLOCK + 77)
