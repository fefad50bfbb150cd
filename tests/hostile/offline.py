"""A server without sockets and without a device: the sans-I/O protocol, from bytes to bytes.

It does with `bockd.nbd.protocol` what `bockd.nbd.server` does, in the simplest way: each request is
answered on the spot, reads with zeros. So whole sessions can be played in microseconds, and what
the protocol's code keeps in memory can be looked at after each piece.
"""

from __future__ import annotations

from bockd.errors import NotFoundError
from bockd.model import Extent
from bockd.nbd.protocol.errors import ProtocolError
from bockd.nbd.protocol.handshake import (
    GREETING,
    MAX_OPTION_BYTES,
    Abort,
    ChooseExport,
    DescribeExport,
    Handshake,
    ListExports,
    Reply,
)
from bockd.nbd.protocol.limits import MAX_PAYLOAD_BYTES
from bockd.nbd.protocol.options import ExportInfo
from bockd.nbd.protocol.replies import ReplyEncoder, encoder_for
from bockd.nbd.protocol.transmission import (
    MAX_INLINE_PAYLOAD_BYTES,
    Request,
    RequestLimits,
    RequestParser,
    refusal,
)
from tests.hostile.sessions import (
    BLOCK_STATUS,
    DISC,
    FLUSH,
    READ,
    Target,
)

HEADER_BYTES = 32
"""The longest header of a request; an option's is shorter."""


class OfflineServer:
    """One conversation. `replies` is what the server has said."""

    def __init__(self, target: Target) -> None:
        self.replies = bytearray(GREETING)
        self.closed = False
        self.kept_bytes = 0
        """The most that was kept of an incomplete message."""
        self._info = ExportInfo(target.name, "", target.size, read_only=False)
        self._handshake: Handshake | None = Handshake()
        self._buffer = bytearray()
        self._large: Request | None = None
        self._skip_bytes = 0

    def receive(self, data: bytes) -> None:
        """Take a piece of what the client sends; closes where a server closes."""
        if self.closed:
            return
        try:
            if self._handshake is not None:
                self._handshake.receive(data)
                self._negotiate(self._handshake)
            else:
                self._buffer += data
            if self._handshake is None and not self.closed:
                self._serve()
        except ProtocolError:
            self.closed = True
        if self.closed:
            return
        kept = self._buffer if self._handshake is None else self._handshake.leftover()
        self.kept_bytes = max(self.kept_bytes, len(kept))
        limit = MAX_INLINE_PAYLOAD_BYTES if self._handshake is None else MAX_OPTION_BYTES
        assert len(kept) < limit + HEADER_BYTES, "more is kept than one message may need"

    def _negotiate(self, handshake: Handshake) -> None:
        while (event := handshake.next_event()) is not None:
            match event:
                case Reply(data):
                    self.replies += data
                case Abort(data):
                    self.replies += data
                    self.closed = True
                    return
                case ListExports():
                    self.replies += handshake.listed([self._info])
                case DescribeExport() as question:
                    if question.name == self._info.name:
                        self.replies += handshake.described(question, self._info)
                    else:
                        self.replies += handshake.refused(question, NotFoundError("no"))
                case ChooseExport() as question:
                    if question.name != self._info.name:
                        self.replies += handshake.refused(question, NotFoundError("no"))
                        continue
                    reply, negotiated = handshake.accepted(question, self._info)
                    self.replies += reply
                    self._buffer += handshake.leftover()
                    self._handshake = None
                    self._encoder = encoder_for(
                        structured=negotiated.structured, extended=negotiated.extended
                    )
                    self._limits = RequestLimits(
                        read_only=False,
                        extended=negotiated.extended,
                        chunked=self._encoder.chunked,
                        allocation=negotiated.allocation,
                    )
                    self._parser = RequestParser(extended=negotiated.extended)
                    return

    def _serve(self) -> None:
        while not self.closed:
            if self._large is not None and not self._skip_payload(self._large):
                return
            view = memoryview(bytes(self._buffer))
            requests, position = self._parser.parse(view, 0, len(view))
            del self._buffer[:position]
            for request in requests:
                self._answer(request)
            self._large = large = self._parser.large
            if large is not None:
                if (
                    refusal(large, self._limits, self._info.size_bytes)
                    and large[4] > 2 * MAX_PAYLOAD_BYTES
                ):
                    raise ProtocolError("too much")
                self._skip_bytes = large[4]
            elif not requests:
                return

    def _skip_payload(self, large: Request) -> bool:
        """Forget what has come of a large payload; True when it was all, and is answered."""
        skipped = min(self._skip_bytes, len(self._buffer))
        del self._buffer[:skipped]
        self._skip_bytes -= skipped
        if self._skip_bytes:
            return False
        self._answer(large)
        return True

    def _answer(self, request: Request) -> None:
        if request[1] == DISC:
            self.closed = True
        elif not self.closed:
            self.replies += answer(request, self._encoder, self._limits, self._info.size_bytes)


def answer(
    request: Request, encoder: ReplyEncoder, limits: RequestLimits, size_bytes: int
) -> bytes:
    """The reply to one request; what a device would read is zeros, all of it holes."""
    _, command, _, offset, length, _ = request
    if refused := refusal(request, limits, size_bytes):
        return encoder.error(request, *refused)
    if command == BLOCK_STATUS:
        return encoder.status(request, [Extent(offset, length, hole=True)])
    if command != READ or not length:
        assert command == FLUSH or offset + length <= size_bytes
        return encoder.done(request)
    reply = bytearray(encoder.data_header_bytes + length)
    encoder.pack_read(memoryview(reply), 0, request)
    return bytes(reply)
