"""Changes of an open volume through the compiled fast lane, as the server gives them to it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from bockd.drivers.local.volume.volume import Volume
from bockd.nbd.protocol.constants import CMD_TRIM
from bockd.nbd.protocol.replies import encoder_for
from bockd.nbd.protocol.transmission import RequestLimits
from bockd.nbd.server.fastlane import Turn, lane_for
from tests.nbd.protocol import wire

_LIMITS = RequestLimits(read_only=False, extended=False, chunked=False, allocation=False)
_REPLY = struct.Struct(">IIQ")


def change_in_lane(device: Volume, changes: Sequence[tuple[int, bytes | int]]) -> set[int]:
    """Write data at offsets, or trim so many bytes there. Return which changes are acknowledged, by
    their place in the list; the others were handed back, or not looked at because they are too
    large."""
    lane = lane_for(device, encoder_for(structured=False, extended=False), _LIMITS)
    assert lane is not None
    stream = b"".join(
        wire.request(CMD_TRIM, n, offset, what)
        if isinstance(what, int)
        else wire.write(n, offset, what)
        for n, (offset, what) in enumerate(changes)
    )
    received = memoryview(bytearray(stream))
    reply = memoryview(bytearray(len(stream)))
    done = lane.serve(received, 0, len(stream), reply, Turn())
    return {cookie for _, _, cookie in _REPLY.iter_unpack(done.acknowledgements)}
