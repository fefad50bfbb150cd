"""Requests as engine operations: what a request does when it cannot be served on the spot.

Each function here is an operation that ends with the reply's bytes. Requests are valid: the batch
has judged them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bockd.errors import VolumeTakenError
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol.errors import answer
from bockd.nbd.protocol.replies import MAX_STATUS_EXTENTS, Buffer, ReplyEncoder
from bockd.nbd.protocol.transmission import Request
from bockd.nbd.server.fastlane import MissedReads
from bockd.nbd.server.statistics import ExportStatistics
from bockd.pool.device import BlockDevice
from bockd.runtime.steps import Step, Steps

CHANGES = frozenset({nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES, nbd.CMD_FLUSH})
"""Commands that a fence or a drain has to wait for."""


OPERATIONS = {
    nbd.CMD_READ: "read",
    nbd.CMD_WRITE: "write",
    nbd.CMD_FLUSH: "flush",
    nbd.CMD_TRIM: "trim",
    nbd.CMD_CACHE: "read-ahead",
    nbd.CMD_WRITE_ZEROES: "write of zeroes",
    nbd.CMD_BLOCK_STATUS: "block status request",
}
"""Commands as the operator's log names them."""


@dataclass(slots=True, eq=False)
class Work:
    """An operation that has begun and waits for `step`. Nobody changes it. (Not `frozen`: there is
    one for each request that waits, and it takes half as long to make.)"""

    requests: Sequence[Request]
    """Those it answers: one, or all the flushes and FUA changes of a batch."""
    steps: Steps[Buffer]
    step: Step
    charged_bytes: int = 0
    """Memory the connection's account was charged with for it."""
    in_flight: int = 1
    """As how many requests it counts; see ServerLimits.max_in_flight."""


async def read(device: BlockDevice, encoder: ReplyEncoder, request: Request) -> Buffer:
    """Serve a read that fits one reply: header and data in one buffer."""
    offset, length = request[3], request[4]
    header = encoder.data_header_bytes
    reply = memoryview(bytearray(header + length))
    await device.read(offset, reply[header:])
    encoder.pack_read(reply, 0, request)
    return reply


async def read_missed(
    device: BlockDevice, encoder: ReplyEncoder, statistics: ExportStatistics, missed: MissedReads
) -> Buffer:
    """Serve what the fast lane has missed. If one fails, each is read by itself, and gets an answer
    of its own."""
    try:
        await missed.steps
    except Exception:  # noqa: BLE001 - met again by whichever read it belongs to
        return b"".join(
            [await _read_alone(device, encoder, statistics, one) for one in missed.requests]
        )
    return missed.reply


async def _read_alone(
    device: BlockDevice, encoder: ReplyEncoder, statistics: ExportStatistics, request: Request
) -> Buffer:
    try:
        return await read(device, encoder, request)
    except Exception as error:  # noqa: BLE001 - becomes the request's answer
        return failed(encoder, statistics, [request], error)


async def write(
    device: BlockDevice, encoder: ReplyEncoder, request: Request, payload: bytes
) -> Buffer:
    """Serve a write whose payload is in memory of its own."""
    await device.write(request[3], memoryview(payload))
    return await _durably(device, encoder, request)


async def change(device: BlockDevice, encoder: ReplyEncoder, request: Request) -> Buffer:
    """Serve TRIM and WRITE_ZEROES."""
    flags, command, _, offset, length, _ = request
    if command == nbd.CMD_TRIM:
        await device.trim(offset, length)
    else:
        await device.zero(offset, length, allocate=bool(flags & nbd.CMD_FLAG_NO_HOLE))
    return await _durably(device, encoder, request)


async def cache(device: BlockDevice, encoder: ReplyEncoder, request: Request) -> Buffer:
    """Serve CACHE, which is a hint."""
    await device.cache(request[3], request[4])
    return encoder.done(request)


async def status(device: BlockDevice, encoder: ReplyEncoder, request: Request) -> Buffer:
    """Serve BLOCK_STATUS of base:allocation."""
    extents = await device.extents(request[3], request[4], extents_wanted(request))
    return encoder.status(request, extents)


def extents_wanted(request: Request) -> int:
    """Return how many extents the reply to a BLOCK_STATUS may have."""
    return 1 if request[0] & nbd.CMD_FLAG_REQ_ONE else MAX_STATUS_EXTENTS


async def flush(device: BlockDevice, encoder: ReplyEncoder, requests: Sequence[Request]) -> Buffer:
    """Serve several requests by one flush. All of them were received before it begins."""
    await device.flush()
    return encoder.all_done(requests)


async def _durably(device: BlockDevice, encoder: ReplyEncoder, request: Request) -> Buffer:
    if request[0] & nbd.CMD_FLAG_FUA:
        await device.flush()
    return encoder.done(request)


def failed(
    encoder: ReplyEncoder,
    statistics: ExportStatistics,
    requests: Sequence[Request],
    error: Exception,
) -> bytes:
    """Count requests that failed, and report them to the operator. Return the answer to them.

    Raises VolumeTakenError if that is the error: there is no answer then, and the connection ends.
    """
    if isinstance(error, VolumeTakenError):
        raise error
    for command, count in Counter([request[1] for request in requests]).items():
        statistics.failed(OPERATIONS[command], error, count)
    number, message = answer(error)
    return b"".join([encoder.error(request, number, message) for request in requests])
