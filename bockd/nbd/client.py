"""A client of one export over a Unix socket, TCP or TLS, for programs that may wait.

Requests go out as they are made; `receive` takes what comes back, in the order in which the server
is done with it. Structured replies and base:allocation are used where the server has them, as ours
does. proto.md, "Newstyle negotiation" and "Transmission".
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final, Self

from bockd.errors import BockdError, DeviceError, NoSpaceError, UnavailableError
from bockd.nbd.protocol import constants as nbd

if TYPE_CHECKING:
    import ssl

MAX_READ_BYTES: Final = 1 << 20
"""Of one read: the largest that our server sends without copying it."""

CONNECT_SECONDS: Final = 30.0
"""For a name lookup and a connection over TCP, and for TLS; longer is a host that is not there."""

SILENCE_SECONDS: Final = 60
"""Over TCP: how long the other machine may confirm nothing that was sent, nor that it is there,
until the connection ends. A daemon that takes long is no such silence."""

MAX_STATUS_BYTES: Final = (1 << 32) - (1 << 16)
"""Of one block status: its length has 32 bits."""

_OPTION: Final = struct.Struct(">QII")
_OPTION_REPLY: Final = struct.Struct(">QIII")
_SIZE: Final = struct.Struct(">HQ")
_REQUEST: Final = struct.Struct(">IHHQQI")
_SIMPLE: Final = struct.Struct(">IIQ")
_CHUNK: Final = struct.Struct(">IHHQ")
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_ERROR: Final = struct.Struct(">IH")
_GREETING_BYTES: Final = 18
_MAX_CONTROL_BYTES: Final = 1 << 20
"""Of a reply that carries no data of the export."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for. Offset and length in bytes."""

    command: int
    offset: int
    length: int
    asked_at: int = 0
    """When it was sent, as `perf_counter_ns` has it."""

    @property
    def data_bytes(self) -> int:
        """How much data is on its way for it, in one direction or the other."""
        return self.length if self.command in (nbd.CMD_READ, nbd.CMD_WRITE) else 0


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the reply to a request: all of a short one, a piece of a long one's data."""

    request: Request
    last: bool
    """Whether the request is done."""
    offset: int = 0
    length: int = 0
    """How much data has come, in bytes. It is in `Export.content` until the next `receive`."""
    extents: Sequence[tuple[int, bool]] = ()
    """Of a block status: lengths in bytes, and whether all of it reads as zeros."""


class Export:
    """A connection to an export. Every method raises UnavailableError when the server is gone.

    One thread may ask while another one receives; `pending_bytes` is of no use then.
    """

    def __init__(
        self, place: str | tuple[str, int], name: str, tls: ssl.SSLContext | None = None
    ) -> None:
        """Connect and negotiate. `place` is the path of a Unix socket, or a host and a port. Raises
        BockdError when the server refuses, with its reason."""
        self.size_bytes = 0
        self.content = bytearray(MAX_READ_BYTES)
        self.pending: dict[int, Request] = {}
        """Requests that are not done, by their cookies."""
        self.pending_bytes = 0
        """Data that is on its way."""
        self._cookie = 0
        self._tls = tls
        self._encrypted = False
        self._place = place
        self._socket = _connected(place)
        try:
            self._negotiate(name.encode())
            self._socket.settimeout(None)
        except OSError as error:
            self._socket.close()
            raise _unreachable(place, error) from error
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def hang_up(self) -> None:
        """End the connection now: whoever waits in it, in any thread, gets UnavailableError."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def __exit__(self, kind: object, *_: object) -> None:
        with self._socket, suppress(UnavailableError):
            # All answers are there: a server that has gone meanwhile has taken nothing away.
            if kind is None and not self.pending:
                self._send(_REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_DISC, 0, 0, 0))

    # Requests.

    def read(self, offset: int, length: int) -> None:
        """Ask for at most `MAX_READ_BYTES` of data."""
        assert length <= MAX_READ_BYTES
        self.ask(nbd.CMD_READ, offset, length)

    def status(self, offset: int, length: int) -> None:
        """Ask for the extents of a range; the answer may end before it, and never is empty."""
        self.ask(nbd.CMD_BLOCK_STATUS, offset, min(length, MAX_STATUS_BYTES))

    def write(self, offset: int, content: memoryview) -> None:
        """Send data; `content` may be used again at once."""
        self.ask(nbd.CMD_WRITE, offset, len(content), content)

    def zero(self, offset: int, length: int) -> None:
        """Ask for zeros in a range, which may become a hole."""
        self.ask(nbd.CMD_WRITE_ZEROES, offset, length)

    def flush(self) -> None:
        """Ask for everything that was answered before to survive power loss."""
        self.ask(nbd.CMD_FLUSH, 0, 0)

    def ask(
        self,
        command: int,
        offset: int,
        length: int,
        payload: memoryview | None = None,
        *,
        flags: int = 0,
    ) -> None:
        """Send a request of any type, with its flags. Data that is read comes in parts of at most
        `MAX_READ_BYTES` from our server, however much is asked for."""
        self._cookie += 1
        request = Request(command, offset, length, perf_counter_ns())
        self.pending[self._cookie] = request
        self.pending_bytes += request.data_bytes
        header = _REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        if payload is None:
            self._send(header)
            return
        sent = self._sent([header, payload])
        if sent < len(header):
            self._send(header[sent:])
            sent = len(header)
        self._send(payload[sent - len(header) :])

    @property
    def asks_status(self) -> bool:
        """Whether a block status is not answered yet."""
        return self._waits_for(nbd.CMD_BLOCK_STATUS)

    @property
    def flushes(self) -> bool:
        """Whether a flush is not answered yet."""
        return self._waits_for(nbd.CMD_FLUSH)

    def _waits_for(self, command: int) -> bool:
        return any(request.command == command for request in self.pending.values())

    # Replies.

    def drain(self) -> None:
        """Wait until every request is done. Data that comes is dropped."""
        while self.pending:
            self.receive()

    def receive(self) -> Part:
        """Wait for a part of a reply, and return it. Raises NoSpaceError or DeviceError, with the
        server's words, for a request that has failed."""
        magic, flags, kind, cookie = _CHUNK.unpack(self._received(_CHUNK.size))
        if magic == nbd.SIMPLE_REPLY_MAGIC:
            code = flags << 16 | kind
            request = self._done(cookie)
            if code:
                raise _failure(request, code, "")
            length = request.length if request.command == nbd.CMD_READ else 0
            self._take(length)
            return Part(request, last=True, offset=request.offset, length=length)
        if magic != nbd.STRUCTURED_REPLY_MAGIC or cookie not in self.pending:
            raise UnavailableError("the server does not keep to the NBD protocol")
        (length,) = _U32.unpack(self._received(_U32.size))
        last = bool(flags & nbd.REPLY_FLAG_DONE)
        request = self._done(cookie) if last else self.pending[cookie]
        if kind == nbd.REPLY_OFFSET_DATA:
            (offset,) = _U64.unpack(self._received(_U64.size))
            self._take(length - _U64.size)
            return Part(request, last, offset, length - _U64.size)
        return self._control(request, last=last, kind=kind, payload=self._received(length))

    def _control(self, request: Request, *, last: bool, kind: int, payload: bytes) -> Part:
        if kind & 1 << 15:
            code, length = _ERROR.unpack_from(payload)
            text = payload[_ERROR.size : _ERROR.size + length].decode(errors="replace")
            raise _failure(request, code, text)
        if kind == nbd.REPLY_BLOCK_STATUS:
            fields = struct.unpack(f">{len(payload) // 4}I", payload)[1:]
            pairs = zip(fields[0::2], fields[1::2], strict=True)
            extents = [(length, bool(state & nbd.STATE_ZERO)) for length, state in pairs]
            return Part(request, last, request.offset, 0, extents)
        if kind != nbd.REPLY_NONE:
            raise UnavailableError(f"the server sends a reply of an unknown kind, {kind}")
        return Part(request, last)

    def _done(self, cookie: int) -> Request:
        request = self.pending.pop(cookie, None)
        if request is None:
            raise UnavailableError("the server answers what was not asked")
        self.pending_bytes -= request.data_bytes
        return request

    # Negotiation.

    def _negotiate(self, name: bytes) -> None:
        magic, option_magic, _ = struct.unpack(">QQH", self._received(_GREETING_BYTES))
        if (magic, option_magic) != (nbd.INIT_MAGIC, nbd.OPTION_MAGIC):
            raise UnavailableError("what answers there is no NBD server")
        self._send(_U32.pack(nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES))
        if self._tls is not None:
            self._option(nbd.OPT_STARTTLS, b"")
            self._encrypt(self._tls)
        named = _U32.pack(len(name)) + name
        context = nbd.BASE_ALLOCATION.encode()
        self._option(nbd.OPT_STRUCTURED_REPLY, b"")
        self._option(
            nbd.OPT_SET_META_CONTEXT, named + _U32.pack(1) + _U32.pack(len(context)) + context
        )
        for information in self._option(nbd.OPT_GO, named + _U16.pack(0)):
            if _U16.unpack_from(information) == (nbd.INFO_EXPORT,):
                _, self.size_bytes = _SIZE.unpack_from(information)

    def _encrypt(self, tls: ssl.SSLContext) -> None:
        assert not isinstance(self._place, str)
        self._socket = tls.wrap_socket(self._socket, server_hostname=self._place[0])
        self._encrypted = True

    def _option(self, option: int, content: bytes) -> list[bytes]:
        """What the server answers to an option that it accepts."""
        self._send(_OPTION.pack(nbd.OPTION_MAGIC, option, len(content)) + content)
        answers: list[bytes] = []
        while True:
            _, _, kind, length = _OPTION_REPLY.unpack(self._received(_OPTION_REPLY.size))
            answer = self._received(length)
            if kind == nbd.REP_ACK:
                return answers
            if kind & 1 << 31:
                raise UnavailableError(answer.decode(errors="replace") or "the server refuses")
            answers.append(answer)

    # The socket.

    def _send(self, content: bytes | memoryview) -> None:
        try:
            self._socket.sendall(content)
        except OSError as error:
            raise _gone() from error

    def _sent(self, parts: list[bytes | memoryview]) -> int:
        try:
            if self._encrypted:
                for part in parts:
                    self._socket.sendall(part)
                return sum(map(len, parts))
            return self._socket.sendmsg(parts)
        except OSError as error:
            raise _gone() from error

    def _take(self, length: int) -> None:
        """Receive data into `content`."""
        if length > MAX_READ_BYTES:
            raise UnavailableError("the server sends more than was asked for")
        self._fill(memoryview(self.content)[:length])

    def _received(self, length: int) -> bytes:
        if length > _MAX_CONTROL_BYTES:
            raise UnavailableError(f"the server sends a reply of {length} bytes")
        buffer = bytearray(length)
        self._fill(memoryview(buffer))
        return bytes(buffer)

    def _fill(self, room: memoryview) -> None:
        flags = 0 if self._encrypted else socket.MSG_WAITALL
        while room:
            try:
                count = self._socket.recv_into(room, len(room), flags)
            except OSError as error:
                raise _gone() from error
            if not count:
                raise _gone()
            room = room[count:]


def _connected(place: str | tuple[str, int]) -> socket.socket:
    """Connect to a Unix socket, or over TCP. Raises UnavailableError."""
    try:
        if isinstance(place, str):
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.connect(place)
            except OSError:
                made.close()
                raise
            return made
        made = socket.create_connection(place, CONNECT_SECONDS)
    except OSError as error:
        raise _unreachable(place, error) from error
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_SECONDS // 4)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE_SECONDS // 4)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_SECONDS * 1000)
    return made


def _unreachable(place: str | tuple[str, int], error: OSError) -> UnavailableError:
    # Not the export's name: that of an attachment is a secret.
    where = place if isinstance(place, str) else f"{place[0]}:{place[1]}"
    return UnavailableError(f"cannot reach the NBD server at {where}: {error.strerror or error}")


def _gone() -> UnavailableError:
    return UnavailableError("the daemon has closed the connection; its log may say why")


def _failure(request: Request, code: int, text: str) -> BockdError:
    """The error of a request that the server could not do."""
    doing = {
        nbd.CMD_READ: "reading",
        nbd.CMD_WRITE: "writing",
        nbd.CMD_WRITE_ZEROES: "writing zeros",
        nbd.CMD_FLUSH: "flushing",
        nbd.CMD_TRIM: "trimming",
        nbd.CMD_CACHE: "reading ahead",
    }
    reason = text or os.strerror(code)
    if code == nbd.ENOSPC:
        return NoSpaceError(reason)
    what = doing.get(request.command, "looking for extents")
    return DeviceError(f"{what} at byte {request.offset} failed: {reason}")
