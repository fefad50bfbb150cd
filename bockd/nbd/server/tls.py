"""TLS on a client's socket: a `Channel` whose bytes are encrypted, and what a listener offers.

OpenSSL works on memory, and the socket is read and written here, as the plain channel does it: one
call takes all records that have arrived, one sends those of a batch. (OpenSSL on the socket itself
makes two calls for each record that it reads and one for each that it writes.)

    socket -> _incoming -> OpenSSL -> the caller's buffer
    parts -> OpenSSL -> _outgoing -> _unsent -> socket

Records leave in the order in which they were made. A part counts as sent when it is encrypted; a
send returns when the last record is with the kernel.

proto.md, "TLS support".
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, cast

import trio

from bockd.model import TlsMode
from bockd.nbd.protocol.errors import ProtocolError
from bockd.nbd.protocol.replies import Buffer
from bockd.nbd.server.channel import Channel, HungUpError
from bockd.nbd.server.fastlane import Turn
from bockd.nbd.server.limits import (
    TLS_CIPHER_RECORD_BYTES,
    TLS_RECEIVE_BYTES,
    TLS_RECORD_BYTES,
    TLS_SEND_BYTES,
    TLS_UNASKED_BYTES,
)

_STAGE = memoryview(bytearray(TLS_RECEIVE_BYTES))
"""Between the socket and OpenSSL. Nothing is awaited while something is in it, so one is enough."""

_NOTHING: Final = memoryview(b"")

_ONLY_RECORDS: Final[Sequence[Buffer]] = (b"",)
"""What is left to send when everything is encrypted and not all of it is with the kernel."""


class TlsError(ProtocolError):
    """TLS could not be agreed on, or somebody has tampered with it."""

    code = "tls"


@dataclass(frozen=True, slots=True)
class FrontendTls:
    """What a listener offers. `context` gives the one for a client that is there now."""

    mode: TlsMode
    context: Callable[[], ssl.SSLContext]


def _no_context() -> ssl.SSLContext:
    raise AssertionError("STARTTLS is refused here")


NO_TLS: Final = FrontendTls(TlsMode.OFF, _no_context)


class TlsChannel(Channel):
    """See the module's docstring; its methods promise what `Channel`'s do."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self._receive_fast = None  # what comes is not what is received
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        # With a buffer to read into, `read` returns a length.
        self._read = cast(Callable[[int, memoryview], int], self._tls.read)
        self._unsent = _NOTHING
        self._empty = True
        """Whether what was taken from the socket is received, but for an unfinished record."""
        self._ended = False
        """Whether nothing more is received."""
        self._failure: TlsError | None = None
        self._report_empty: Callable[[], None] | None = None

    @classmethod
    async def accept(cls, plain: Channel, context: ssl.SSLContext) -> TlsChannel:
        """Accept TLS over a channel. Returns once the client has done its part. Raises TlsError,
        HungUpError."""
        channel = cls(plain.sock, context)
        await channel._handshake()
        return channel

    async def _handshake(self) -> None:
        while not self._advance():
            await self.send()
            while (taken := self._take()) is None:
                await trio.lowlevel.wait_readable(self.sock.fileno())
            if not taken:
                raise HungUpError("the client left during the TLS handshake")
        self._empty = False  # the first option may have come with the last record
        await self.send()

    def _advance(self) -> bool:
        """Whether the handshake is done."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            self._send_alert()
            raise TlsError(f"the TLS handshake failed: {_reason(error)}") from None
        return True

    def close(self) -> None:
        """Close the channel. Send TLS's closing alert if that can be done at once."""
        if self._failure is None and self.sock.fileno() >= 0:
            with suppress(OSError, ValueError):  # it may be gone, or never have come so far
                self._tls.unwrap()
            self._send_alert()
        super().close()

    def _send_alert(self) -> None:
        """Send what OpenSSL still has to say, as far as the kernel takes it."""
        with suppress(HungUpError):
            self._flush()

    # Receiving.

    def try_receive(self, into: memoryview) -> int | None:
        """Receive as `Channel.try_receive` does. Raises TlsError when the peer does not keep to
        TLS."""
        while not self._ended:
            if self._failure is not None:
                raise self._failure
            if not self._empty:
                received = self._decrypt(into)
                if received:
                    return received
                continue
            taken = self._take()
            if taken is None:
                if self._report_empty is not None:
                    self._report_empty()
                return None
            if not taken:
                self._ended = True
        return 0

    def _take(self) -> int | None:
        """Take what the socket has; the number of bytes, 0 when the peer is gone."""
        try:
            taken = self.sock.recv_into(_STAGE)
        except BlockingIOError:
            return None
        except OSError:
            return 0  # reset: what was in flight is lost either way
        self._incoming.write(_STAGE[:taken])
        self._empty = False
        return taken

    def _decrypt(self, into: memoryview) -> int:
        """The content of whole records, as far as there are some and there is room."""
        read, received, room = self._read, 0, len(into)
        try:
            while received < room:
                length = read(room - received, into[received:])
                if not length:
                    self._ended = True  # the peer has said goodbye
                    break
                received += length
        except ssl.SSLWantReadError:
            self._empty = True
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLError as error:
            self._fail(f"TLS failed: {_reason(error)}")
        if self._outgoing.pending > TLS_UNASKED_BYTES:
            self._fail("the client asked for too many new keys")
        return received

    def _fail(self, reason: str) -> None:
        self._send_alert()
        self._failure = TlsError(reason)

    def stop_receiving(self) -> None:
        """See `Channel`."""
        self._ended = True
        super().stop_receiving()

    def unread_bytes(self) -> int:
        """Return an upper bound: how much the records hold is known only when they are
        decrypted."""
        waiting = super().unread_bytes()
        if self._empty and not waiting:
            return 0
        return waiting + self._incoming.pending + self._tls.pending() + TLS_CIPHER_RECORD_BYTES

    def on_empty(self, report: Callable[[], None]) -> None:
        """See `Channel`."""
        self._report_empty = report

    def turn(self, tries: int, turn_ns: int) -> Turn:
        return Turn()

    def hung_up(self) -> bool:
        """See `Channel`."""
        return self._ended or (self._empty and super().hung_up())

    # Sending.

    def _try_send(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        if self.broken:
            raise HungUpError("nothing more can be sent")
        left = parts
        while self._flush():
            if not left:
                return ()
            left = self._encrypt(left)
        return left or _ONLY_RECORDS

    def _flush(self) -> bool:
        """Whether the kernel has taken all records. Raises HungUpError."""
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            try:
                sent = self.sock.send(self._unsent)
            except BlockingIOError:
                return False
            except OSError as error:
                self.broken = True
                raise HungUpError(f"the client is gone: {error}") from None
            self._unsent = self._unsent[sent:]
        self._unsent = _NOTHING  # an empty view would keep what it was cut from
        return True

    def _encrypt(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        """Encrypt until there are `TLS_SEND_BYTES` to send; the rest."""
        for index, part in enumerate(parts):
            view = memoryview(part)
            while view:
                if self._outgoing.pending >= TLS_SEND_BYTES:
                    return [view, *parts[index + 1 :]]
                view = view[self._write(view[:TLS_RECORD_BYTES]) :]
        return ()

    def _write(self, content: memoryview) -> int:
        try:
            return self._tls.write(content)
        except ssl.SSLError as error:
            self.broken = True
            raise HungUpError(f"nothing more can be sent: {_reason(error)}") from None


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's own words, without where in its source they come from."""
    return (error.reason or str(error)).replace("_", " ").lower()
