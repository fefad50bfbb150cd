"""What nobody uses costs a request nothing, and what everybody uses is done once: counted in calls,
because time says little on a machine with other work."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import bockd
from bockd.drivers.memory.device import MemoryDevice
from bockd.model import BLOCK_SIZE
from tests.nbd.server.client import Client
from tests.nbd.server.serving import FixedExports, in_trio, serving

UNUSED = ("nbd/server/heat", "nbd/server/tracering", "nbd/server/holding", "throttle/")
"""Heat maps, recordings, limits."""

REQUESTS = 30


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """How often each function of bockd is called by this thread during the block."""
    root = str(Path(bockd.__file__).parent) + "/"
    calls = Counter[str]()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root):
            calls[f"{code.co_filename.removeprefix(root)} {code.co_name}"] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


@in_trio
async def test_features_that_nobody_uses_are_not_entered(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    async with serving(exports, path), await Client.go(path) as client:
        for at_once in (True, False):
            device.immediate, device.blocking = at_once, not at_once
            with counting() as calls:
                for number in range(REQUESTS // 3):
                    await client.write(number * BLOCK_SIZE, bytes(BLOCK_SIZE))
                    await client.command(3)
                    await client.read_data(0, BLOCK_SIZE)
            assert [one for one in calls if one.startswith(UNUSED)] == []
            assert calls["nbd/server/durations.py add"] == REQUESTS
            # A batch that has answered nothing is not looked through.
            assert calls["nbd/server/batch.py enter"] == (REQUESTS if at_once else 0)
