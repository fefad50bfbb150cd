"""The compiled part of the hot path, and what takes its place where it was not compiled.

`_fastlane.c` serves *plain* requests in one call for a whole receive buffer: reads, and writes in
place, whose blocks lie in one piece of a file and whose map is in memory; writes of whole blocks
that are new to the head, within one leaf; and trims. Of the last two the journal is told once for
each round.
While a client asks for nothing else and has the loop to itself, it answers and receives, too, until
the loop's turn is over. It hands back what it does not serve, in order, for `Batch.serve`: there is
nothing that only it can do. Of large writes it writes the payload as it comes (`PayloadLane`).

It is built when bockd is installed and a C compiler is there, and left out otherwise.
`BOCKD_FASTLANE=off` in the environment of the daemon leaves it out, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from enum import IntEnum
from functools import partial
from struct import Struct
from types import ModuleType
from typing import NamedTuple, cast

from bockd.nbd.protocol.constants import CMD_READ
from bockd.nbd.protocol.replies import (
    ExtendedReplies,
    ReplyEncoder,
    SimpleReplies,
    StructuredReplies,
)
from bockd.nbd.protocol.transmission import MAX_INLINE_PAYLOAD_BYTES, Request, RequestLimits
from bockd.nbd.server.durations import Durations
from bockd.nbd.server.limits import MAX_INLINE_READ_BYTES
from bockd.nbd.server.tracering import Ring
from bockd.pool.device import BlockDevice, FastDevice, FilePart
from bockd.runtime.steps import CompiledCall, Running, Steps

VARIABLE = "BOCKD_FASTLANE"

_STYLES: dict[type[ReplyEncoder], int] = {
    SimpleReplies: 0,
    StructuredReplies: 1,
    ExtendedReplies: 2,
}


def load(environ: Mapping[str, str]) -> ModuleType | None:
    """Import the compiled module. None where it was not built, or is not wanted."""
    if environ.get(VARIABLE) == "off":
        return None
    try:
        from bockd.nbd.server import _fastlane
    except ImportError:
        return None
    return _fastlane


compiled = load(os.environ)


def lane(environ: Mapping[str, str]) -> str:
    """Describe for people which lane serves plain requests here, and why if it is not the compiled
    one.

    Neither pip nor anything else shows that a compiler was missing when bockd was installed.
    """
    if environ.get(VARIABLE) == "off":
        return f"Python only ({VARIABLE}=off)"
    try:
        from bockd.nbd.server import _fastlane  # noqa: F401
    except ModuleNotFoundError:
        return (
            "Python only: it was not compiled. For full speed install gcc and Python's headers "
            "(python3-dev), then install bockd again"
        )
    except ImportError as error:
        return f"Python only: it cannot be loaded ({error})"
    return "compiled"


class Turn(NamedTuple):
    """What the fast lane may do in addition to serving."""

    sock: int = -1
    """The descriptor to which replies may be sent at once; -1 for none."""
    poll_ns: int = 0
    """How long it may poll for more requests; 0 when it must not receive."""
    turn_ns: int = 0
    """How long until the loop must turn."""


class Served(NamedTuple):
    """What one call has done. A *round* goes from receiving to sending. All rounds but the last are
    finished. The last is finished if it left nothing to serve or send."""

    position: int
    """Where the first request begins that was not looked at."""
    end: int
    """Where the bytes end that have been received."""
    received_bytes: int
    """In further rounds."""
    polled: int
    """Whether it polled for more requests in vain."""
    rest: list[Request]
    """Requests before `position` that were not served."""
    served: int
    """Requests that the last round has served, if it is unfinished."""
    sent: int
    filled: int
    """What is to be sent of the reply buffer: its part from `sent` to `filled`."""
    acknowledgements: bytes
    """Replies to writes, to be sent after that."""
    started: int
    """When the last round began, as `perf_counter_ns` has it."""
    reads: int
    read_bytes: int
    writes: int
    written_bytes: int
    unflagged: int
    """1 if there was a write whose flags do not mention its payload; see RequestParser."""
    missed: bytes
    """Reads before `position` that wait for the disk; see `FastLane.missed`."""
    trims: int
    """With writes of zeroes that were made holes."""
    written_back: int
    """1 if what was written is on its way to the disk already; see `FastLane.serve`."""


class MissedReads(NamedTuple):
    """Reads of one round whose data is not in the page cache: one thread does all of them, and one
    buffer takes their replies."""

    requests: list[Request]
    reply: memoryview
    steps: Steps[None]
    """Fills `reply`. To be begun before anything else is called or awaited."""


_PARTS = Struct("=I4xQQII16x")
"""Slot, offset, byte in the file, length, place of the data in the reply: Missed in
_fastlane_missed.h."""

_REQUESTS = Struct("=8xQ8xI4xQQ")
"""Offset, length, cookie and the body's place, in the same."""


class _ReadingMissed(CompiledCall):
    """Reads what was missed, and fills the replies."""

    __slots__ = ("_arguments", "_module")

    def __init__(self, module: ModuleType, *arguments: object) -> None:
        super().__init__(partial(module.read_missed, *arguments))
        self._module, self._arguments = module, arguments

    def _start(self) -> Running | None:
        return cast(Running | None, self._module.begin_missed(*self._arguments))


LaneArguments = tuple[object, ...]
"""What `serve_together` is told of one connection."""


class FastLane:
    """Serves plain requests of one connection."""

    def __init__(
        self,
        module: ModuleType,
        device: FastDevice,
        encoder: ReplyEncoder,
        limits: RequestLimits,
        durations: Durations | None = None,
    ) -> None:
        """How long requests took is entered in `durations`."""
        self._durations = (durations or Durations()).counts
        self._serve = module.serve
        self._module = module
        self._device = device
        self._view = device.fast_view
        self._style = _STYLES[type(encoder)]
        self._read_only = limits.read_only

    def serve(
        self,
        received: memoryview,
        start: int,
        end: int,
        reply: memoryview,
        turn: Turn,
        max_missed: int = 0,
        *,
        write_back: bool = False,
        trace: Ring | None = None,
    ) -> Served:
        """Serve what can be served of received[start:end], and what comes after it, for as long as
        no other connection has work. Gather up to `max_missed` reads that wait for the disk. With
        `write_back`, have the kernel begin to write the first write to the disk, if it was one in
        place and its reply was sent: a flush is expected. Note in `trace` what is served. Raises
        OSError when data could not be read whose reply has begun."""
        size = self._device.size_bytes
        return Served._make(
            self._serve(
                received,
                start,
                end,
                reply,
                self._style,
                self._view(),
                size,
                0 if self._read_only else size,
                MAX_INLINE_READ_BYTES,
                MAX_INLINE_PAYLOAD_BYTES,
                max_missed,
                *turn,
                write_back,
                self._durations,
                None if trace is None else trace.memory,
            )
        )

    def arguments(
        self,
        received: memoryview,
        start: int,
        end: int,
        reply: memoryview,
        sock: int,
        trace: Ring | None = None,
    ) -> LaneArguments:
        """Return what `serve_together` is to be told: the same as `serve`."""
        size = self._device.size_bytes
        return (
            received,
            start,
            end,
            reply,
            self._style,
            self._view(),
            size,
            0 if self._read_only else size,
            MAX_INLINE_READ_BYTES,
            MAX_INLINE_PAYLOAD_BYTES,
            sock,
            self._durations,
            None if trace is None else trace.memory,
        )

    def missed(self, missed: bytes) -> MissedReads:
        """Return what is to be done about `Served.missed`."""
        parts: list[FilePart] = list(_PARTS.iter_unpack(missed))
        requests: list[Request] = [
            (0, CMD_READ, cookie, offset, length, body)
            for offset, length, cookie, body in _REQUESTS.iter_unpack(missed)
        ]
        *_, length, at = parts[-1]
        reply = memoryview(bytearray(at + length))
        read = _ReadingMissed(self._module, missed, reply, self._style)
        return MissedReads(requests, reply, self._device.read_files(parts, reply, read))


class Why(IntEnum):
    """Why no more of a payload was taken."""

    WRITTEN = 0
    """All of it is written."""
    FOR_PYTHON = 1
    """What comes next is there, and is to be written by `try_write`."""
    NOTHING_CAME = 2
    """Less than a part is there, and no more came."""
    TURN_IS_OVER = 3
    """The same, and the loop must turn."""


class Taken(NamedTuple):
    """How far a payload was taken."""

    position: int
    """Where that of it begins which was not written."""
    end: int
    """Where the bytes end that have been received."""
    received_bytes: int
    """How many of them were received meanwhile."""
    written_bytes: int
    why: Why


class PayloadLane:
    """Writes the payloads of large writes to one device as they come."""

    def __init__(self, module: ModuleType, device: FastDevice) -> None:
        self._take = module.take
        self._device = device
        self._view = device.fast_view

    def take(
        self, received: memoryview, start: int, end: int, offset: int, length: int, turn: Turn
    ) -> Taken:
        """Write at `offset` in the device a payload of `length` bytes, of which received[start:end]
        has come, and receive more of it into the buffer, for as long as there is some.

        What was written is as if `try_write` had done so, part by part: `commit` must follow before
        anything is awaited.
        """
        position, end, received_bytes, written_bytes, why = self._take(
            received,
            start,
            end,
            offset,
            length,
            self._view(),
            self._device.size_bytes,
            *self._device.part_sizes,
            *turn,
        )
        return Taken(position, end, received_bytes, written_bytes, Why(why))


def payload_lane_for(device: BlockDevice) -> PayloadLane | None:
    """Return what writes the payloads of one connection. None where it was not compiled."""
    if compiled is None or not isinstance(device, FastDevice):
        return None
    return PayloadLane(compiled, device)


def lane_for(
    device: BlockDevice,
    encoder: ReplyEncoder,
    limits: RequestLimits,
    durations: Durations | None = None,
) -> FastLane | None:
    """Return a connection's fast lane. None where there is none."""
    if compiled is None or not isinstance(device, FastDevice):
        return None
    return FastLane(compiled, device, encoder, limits, durations)


def receive() -> Callable[[int, memoryview, int], int] | None:
    """Receive from a descriptor into a buffer, looking again and again for some nanoseconds: the
    number of bytes, 0 when the peer is gone, -1 when nothing came."""
    return None if compiled is None else compiled.receive
