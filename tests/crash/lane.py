"""Writes to an open volume through the compiled fast lane, as the server gives them to it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from bockd.drivers.local.volume.volume import Volume
from bockd.nbd.protocol.replies import encoder_for
from bockd.nbd.protocol.transmission import RequestLimits
from bockd.nbd.server.fastlane import Turn, lane_for
from tests.nbd.protocol import wire

_LIMITS = RequestLimits(read_only=False, extended=False, chunked=False, allocation=False)
_REPLY = struct.Struct(">IIQ")


def write_in_lane(device: Volume, writes: Sequence[tuple[int, bytes]]) -> set[int]:
    """Write at offsets. Return which writes are acknowledged, by their place in the list; the
    others were handed back, or not looked at because they are too large."""
    lane = lane_for(device, encoder_for(structured=False, extended=False), _LIMITS)
    assert lane is not None
    stream = b"".join(wire.write(n, offset, data) for n, (offset, data) in enumerate(writes))
    received = memoryview(bytearray(stream))
    reply = memoryview(bytearray(len(stream)))
    done = lane.serve(received, 0, len(stream), reply, Turn())
    return {cookie for _, _, cookie in _REPLY.iter_unpack(done.acknowledgements)}
