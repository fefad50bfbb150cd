"""A client's socket: receiving that never waits longer than it should, sending in whole replies.

The socket is non-blocking and used directly; trio is asked only to wait for it.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from bockd.nbd.protocol.errors import ProtocolError
from bockd.nbd.protocol.replies import Buffer
from bockd.nbd.server import fastlane
from bockd.nbd.server.fastlane import Turn

SOCKET_BUFFER_BYTES = 4 << 20
"""Asked for on Unix sockets, whose default holds no batch of 64 replies; the kernel grants at most
twice net.core.wmem_max. TCP sizes its own."""


TRY_NS = 1_500
"""What one attempt to receive takes in Python: the fast lane tries for as long, more often."""


KEEPALIVE_PROBES = 10
"""Unanswered ones after which the kernel takes a peer for dead."""


class StalledError(ProtocolError):
    """The peer has not chosen an export in time."""

    code = "stalled"


class HungUpError(ProtocolError):
    """The peer is gone."""

    code = "hung-up"


def reading_failed(error: Exception) -> ProtocolError:
    """Return the error that ends a connection when reading failed after the client was promised the
    data."""
    return ProtocolError(f"reading failed behind a reply's header: {error}")


def find_dead_peers(
    sock: socket.socket, *, keepalive_seconds: int, user_timeout_seconds: int
) -> None:
    """Have the kernel close a TCP connection whose peer's machine does not answer: tcp(7)."""
    if sock.family == socket.AF_UNIX:
        return
    half = max(1, keepalive_seconds // 2)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, half)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, half // KEEPALIVE_PROBES))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_seconds * 1000)


class Channel:
    """One connected socket.

    Nothing here has a time limit: the caller bounds the handshake, and a client in transmission may
    stop for as long as it likes.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.broken = False
        """Nothing more is sent: the peer is gone, or a reply was broken off in its middle. Nobody
        waits for what is left to be served."""
        self._receive_into: Callable[[memoryview], int] = sock.recv_into
        self._receive_fast: Callable[[int, memoryview, int], int] | None = fastlane.receive()
        self._sending: trio.Lock | _Handed = trio.Lock()

    def close(self) -> None:
        self.sock.close()

    def try_receive(self, into: memoryview) -> int | None:
        """Receive what is there now, without waiting. Return the number of bytes, 0 when the peer
        is gone, None when there is nothing yet."""
        try:
            return self._receive_into(into)
        except BlockingIOError:
            return None
        except OSError:
            return 0  # reset: what was in flight is lost either way

    def poll(self, into: memoryview, tries: int) -> int | None:
        """Poll the socket: `try_receive`, at most `tries` times."""
        if self._receive_fast is not None:
            received = self._receive_fast(self.sock.fileno(), into, tries * TRY_NS)
            return received if received >= 0 else None
        for _ in range(tries):
            found = self.try_receive(into)
            if found is not None:
                return found
        return None

    def stop_receiving(self) -> None:
        """Stop receiving: from now on whoever receives finds the peer gone. Replies can still be
        sent."""
        self._receive_into = _end_of_stream
        self._receive_fast = None
        with suppress(OSError):  # the peer is gone indeed
            self.sock.shutdown(socket.SHUT_RD)  # wakes who waits for something to read

    def abort(self) -> None:
        """End the connection in both directions, now, whoever is sending or receiving."""
        with suppress(OSError):  # the peer is gone, or it is closed
            self.sock.shutdown(socket.SHUT_RDWR)

    async def receive(self, into: memoryview) -> int:
        """Receive at least one byte, waiting for it; 0 when the peer is gone."""
        received = self.try_receive(into)
        while received is None:
            await trio.lowlevel.wait_readable(self.sock.fileno())
            received = self.try_receive(into)
        return received

    def unread_bytes(self) -> int:
        """Return the number of bytes that have arrived and were not received yet."""
        answer = fcntl.ioctl(self.sock, termios.FIONREAD, struct.pack("i", 0))
        count: int = struct.unpack("i", answer)[0]
        return count

    def on_empty(self, report: Callable[[], None]) -> None:
        """Register `report`, to be called when all that has arrived was received. Only a channel
        whose `unread_bytes` is an upper bound calls it. This one knows the exact number, and never
        does."""

    def hung_up(self) -> bool:
        """Return whether everything was received and the peer is gone."""
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def peer_left(self) -> bool:
        """Return whether the peer sends no more, whatever of it was received."""
        poll = select.poll()
        poll.register(self.sock.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def turn(self, tries: int, turn_ns: int) -> Turn:
        """Return what the fast lane may do by itself now, where polling is for `tries` attempts."""
        if self.broken or self._sending.locked():
            return Turn()
        return Turn(
            self.sock.fileno(), 0 if self._receive_fast is None else tries * TRY_NS, turn_ns
        )

    def payload_turn(self, tries: int, turn_ns: int) -> Turn:
        """Return what the fast lane may do by itself now about a payload: receive more of it, where
        polling is for `tries` attempts."""
        if self._receive_fast is None:
            return Turn()
        return Turn(self.sock.fileno(), tries * TRY_NS, turn_ns)

    def break_off(self) -> None:
        """Send nothing more: of a reply a part may have been sent, and the rest never will be. The
        peer would take what came next for that rest."""
        self.broken = True

    async def send(self, *parts: Buffer) -> None:
        """Send whole replies, after those that are being sent. Raises HungUpError. If this, or
        whatever else sends, is cancelled in the middle, nothing more is sent: see `break_off`."""
        left: Sequence[Buffer] = parts
        if not self._sending.locked():
            left = self._try_send(parts)
            if not left:
                return
        # Nothing was awaited since the lock was seen free: no one comes between our own parts.
        try:
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            await self._send(left)
        finally:
            self._sending.release()

    def hand_on(self) -> bool:
        """Let `send_at_once` be called from now on. Return False, with nothing done, if somebody is
        sending now."""
        if self._sending.locked():
            return False
        self._sending = _Handed()
        return True

    def send_at_once(self, parts: Sequence[Buffer]) -> Sequence[Buffer] | None:
        """Send of whole replies what can be sent now. Return the rest, which `send_rest` must send:
        nobody else sends before. None: others are being sent, and nothing was done. Raises
        HungUpError."""
        if self._sending.locked():
            return None
        rest = self._try_send(parts)
        if rest:
            self._sending.acquire_nowait()
        return rest

    async def send_rest(self, rest: Sequence[Buffer]) -> None:
        """Send what `send_at_once` has left. Raises HungUpError."""
        try:
            await self._send(rest)
        finally:
            self._sending.release()

    @asynccontextmanager
    async def streaming(self) -> AsyncIterator[Stream]:
        """Hold the sending side for a reply that is sent in several pieces."""
        async with self._sending:
            try:
                yield Stream(self)
            except BaseException:
                self.break_off()  # before whoever waits is let in
                raise

    async def _send(self, parts: Sequence[Buffer]) -> None:
        """Send what may be the rest of replies that have begun."""
        try:
            left = self._try_send(parts)
            while left:
                await trio.lowlevel.wait_writable(self.sock.fileno())
                left = self._try_send(left)
        except BaseException:
            self.break_off()
            raise

    def _try_send(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        """Send what can be sent now. Return the rest."""
        if self.broken:
            raise HungUpError("nothing more can be sent")
        try:
            sent = self.sock.send(parts[0]) if len(parts) == 1 else self.sock.sendmsg(parts)
        except BlockingIOError:
            return parts
        except OSError as error:
            self.broken = True
            raise HungUpError(f"the client is gone: {error}") from None
        return _behind(parts, sent)


class _Handed:
    """A lock of which no task is the owner: who has acquired it may have another one release it."""

    def __init__(self) -> None:
        self._free = trio.Semaphore(1, max_value=1)
        self.acquire = self._free.acquire
        self.acquire_nowait = self._free.acquire_nowait
        self.release = self._free.release

    def locked(self) -> bool:
        return not self._free.value

    async def __aenter__(self) -> None:
        await self._free.acquire()

    async def __aexit__(self, *_raised: object) -> None:
        self._free.release()


class Stream:
    """The right to send pieces of one reply, one after another."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def send(self, *parts: Buffer) -> None:
        """Send one piece of the reply. Raises HungUpError, as `Channel.send` does."""
        await self._channel._send(parts)


def _end_of_stream(_: memoryview) -> int:
    return 0


def _behind(parts: Sequence[Buffer], sent: int) -> Sequence[Buffer]:
    """What is left of `parts` after `sent` bytes."""
    for index, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:], *parts[index + 1 :]]
        sent -= len(part)
    return ()
