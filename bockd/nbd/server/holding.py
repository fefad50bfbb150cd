"""Requests of one connection that wait for their volume's limits (bockd.throttle).

A request that may not pass is taken out of the receive buffer and *held*, so that those behind it
are still seen: a read passes writes whose limit is used up. What is held is bounded in number and
in bytes, which each connection has reserved (limits.CONNECTION_BYTES); beyond that the connection
reads no more from its socket, nor while it waits for a payload that is too large to be held.
Requests that may pass again are *ready*; a task of the connection serves them, batch by batch, in
turn with its loop.

What is held has not begun: a snapshot, a drain or the end of the daemon does not wait for it. A
fence and the end of a connection that the daemon closes in order do not wait for tokens either: all
that was held passes at once, and those who come later pay (`pass_all`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby

import trio

from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol.limits import MAX_PAYLOAD_BYTES
from bockd.nbd.protocol.transmission import Request
from bockd.nbd.server.channel import Channel, HungUpError
from bockd.nbd.server.limits import MAX_HELD_BYTES, PEER_LOOK_SECONDS
from bockd.pool.device import CACHE_AHEAD_BYTES, BlockDevice
from bockd.throttle.gates import Gate, Waiting

ServeBatch = Callable[[list[Request], int, int, memoryview], Awaitable[int]]
"""Serves a batch: the requests, the index of the first one, when they were parsed, and where their
payloads are. Returns the index of the first not served."""


def _nothing() -> None:
    """Stand in for a callback."""


class _Held:
    """A request that waits. One without a request is a payload that waits in the socket."""

    __slots__ = ("passed", "payload", "place", "request", "started", "waiting")

    def __init__(self, request: Request | None, started: int, place: int) -> None:
        """It was parsed at `started`, as the request of that number."""
        self.request = request
        self.payload = b""
        self.started = started
        self.place = place
        self.waiting: Waiting
        self.passed: Callable[[], None] = _nothing


class Holding:
    """See the module's docstring."""

    def __init__(
        self,
        gate: Gate,
        device: BlockDevice,
        channel: Channel,
        max_requests: int,
        nursery: trio.Nursery,
        serve_batch: ServeBatch,
        forcing: Callable[[], bool],
    ) -> None:
        """A task in the `nursery` serves what may pass after it has waited. While `forcing` returns
        True nothing is held."""
        self._gate = gate
        self._device = device
        self._channel = channel
        self._max_requests = max_requests
        self._nursery = nursery
        self._serve_batch = serve_batch
        self._forcing = forcing
        self._turn = trio.Lock()
        """Of whoever serves a batch."""
        self._held: dict[_Held, None] = {}
        self._ready: list[_Held] = []
        self._serving = False
        """Whether there is a task."""
        self._bytes = 0
        self._requests = 0
        """Held, ready, or being served."""
        self._changed = trio.Event()

    # -- requests ----------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing is held, nor ready, nor being served."""
        return not self._requests and not self._serving

    async def serve(self, requests: list[Request], started: int, received: memoryview) -> None:
        """Serve the requests that may pass, and hold the others. Wait while there is no room for
        them. Raises HungUpError when the client has left meanwhile."""
        index = 0
        while index < len(requests):
            passing, index = self._sort(requests, index, started, received)
            if passing:
                async with self._turn:
                    await self._serve_all(passing, started, received)
            elif index < len(requests):  # nothing was awaited since it was full
                await self._room()

    async def _serve_all(self, requests: list[Request], started: int, received: memoryview) -> None:
        index = 0
        while index < len(requests):
            index = await self._serve_batch(requests, index, started, received)

    def _sort(
        self, requests: Sequence[Request], index: int, started: int, received: memoryview
    ) -> tuple[list[Request], int]:
        """Divide requests from `index` on: those that may pass now are returned, the others held.
        Also return the index of the first that could not be held."""
        passing: list[Request] = []
        size_bytes = self._device.size_bytes
        while index < len(requests):
            request = requests[index]
            if (cost := _cost(request, size_bytes)) is None:
                passing.append(request)
                index += 1
                continue
            reads, length, payload_bytes = cost
            if self._is_full(payload_bytes):
                break
            held = _Held(request, started, index)
            if self._asked(held, reads, length):
                passing.append(request)
            else:
                self._hold(held, received, payload_bytes)
            index += 1
        return passing, index

    def _asked(self, held: _Held, reads: bool, length: int) -> bool:
        """Whether a request may pass now. It waits if not."""
        if self._forcing():
            self._gate.charge(reads=reads, length_bytes=length)
            return True
        waiting = self._gate.ask(
            reads=reads, length_bytes=length, granted=lambda: self._let_pass(held)
        )
        if waiting is None:
            return True
        held.waiting = waiting
        self._held[held] = None
        return False

    def _hold(self, held: _Held, received: memoryview, payload_bytes: int) -> None:
        self._requests += 1
        if payload_bytes and held.request is not None:
            body = held.request[5]
            held.payload = bytes(received[body : body + payload_bytes])
            self._bytes += payload_bytes
        held.passed = lambda: self._is_ready(held)

    def _is_full(self, payload_bytes: int) -> bool:
        return self._requests >= self._max_requests or (
            payload_bytes > 0 and self._bytes + payload_bytes > MAX_HELD_BYTES
        )

    async def _room(self) -> None:
        """Wait until more can be held."""
        before = self._requests, self._bytes
        await self._until(lambda: (self._requests, self._bytes) != before)

    async def payload_passed(self, request: Request) -> None:
        """Wait until a write may pass whose payload is still in the socket. Raises HungUpError when
        the client has left meanwhile."""
        cost = _cost(request, self._device.size_bytes)
        if cost is None:
            return
        held = _Held(None, 0, 0)
        if self._asked(held, cost[0], cost[1]):
            return
        held.passed = self._note
        try:
            await self._until(lambda: held not in self._held)
        finally:
            if held in self._held:
                self._give_up([held])

    async def _until(self, done: Callable[[], bool]) -> None:
        """Wait until `done`. Raises HungUpError when the client has left."""
        while not done():
            with trio.move_on_after(PEER_LOOK_SECONDS) as scope:
                await self._changed.wait()
            # Once the daemon has ended the receiving it looks as if the client had.
            if scope.cancelled_caught and not self._forcing() and self._channel.peer_left():
                raise HungUpError("the client left while its requests waited for the limits")

    # -- what is ready -----------------------------------------------------------------------------

    def _let_pass(self, held: _Held) -> None:
        if held in self._held:  # else it has been given up
            del self._held[held]
            held.passed()

    def _is_ready(self, held: _Held) -> None:
        self._ready.append(held)
        if not self._serving:
            self._serving = True
            self._nursery.start_soon(self._serve_ready)

    async def _serve_ready(self) -> None:
        """Serve what is ready until nothing is."""
        try:
            while self._ready:
                async with self._turn:
                    await self._serve_some()
        finally:
            self._serving = False
            self._note()

    async def _serve_some(self) -> None:
        """Serve what is ready: as it came, not as it passed, and what came together in one run,
        because the requests of a batch have one time from which it is told how long they took."""
        ready = sorted(self._ready, key=lambda held: (held.started, held.place))
        self._ready = []  # nothing, if they were given up while we waited for our turn
        try:
            for started, together in groupby(ready, key=lambda held: held.started):
                run = list(together)
                requests, payloads = _joined(run)
                # Behind those that passed at once, and by place, or a recording could not tell the
                # order: bodies lie elsewhere now.
                await self._serve_all(requests, started + 1 + run[0].place, payloads)
        finally:
            self._forget(ready)

    def _forget(self, ended: Sequence[_Held]) -> None:
        """Give back what requests have taken up."""
        self._requests -= len(ended)
        self._bytes -= sum(len(held.payload) for held in ended)
        self._note()

    def _note(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # -- ends --------------------------------------------------------------------------------------

    def pass_all(self) -> None:
        """Let pass all that is held."""
        for held in list(self._held):
            held.waiting.force()
            self._let_pass(held)

    async def begun(self) -> None:
        """Wait until all that may pass has been handed to the engine."""
        while self._ready or self._serving:
            await self._changed.wait()

    async def finished(self) -> None:
        """Wait until nothing is held any more. If the client leaves meanwhile, the rest is given
        up."""
        try:
            await self._until(lambda: self.idle)
        except HungUpError:
            self.drop()

    def drop(self) -> None:
        """Give up all that is held or ready."""
        self._give_up(list(self._held))
        ready, self._ready = self._ready, []
        self._forget(ready)

    def _give_up(self, given_up: list[_Held]) -> None:
        for held in given_up:
            del self._held[held]
        Waiting.drop(held.waiting for held in given_up)
        self._forget([held for held in given_up if held.request is not None])


def _joined(ready: Sequence[_Held]) -> tuple[list[Request], memoryview]:
    """Return requests, and the memory where their payloads are. Between these lies a byte, so that
    the places of the bodies tell the order of all requests (tracering.py)."""
    requests: list[Request] = []
    body = 0
    for held in ready:
        assert held.request is not None
        flags, command, cookie, offset, length, _ = held.request
        requests.append((flags, command, cookie, offset, length, body))
        body += len(held.payload) + 1
    return requests, memoryview(bytearray(1).join([held.payload for held in ready]))


def _cost(request: Request, size_bytes: int) -> tuple[bool, int, int] | None:
    """Return whether a request reads, how many bytes count, and how many of payload it brings with
    it. None for one that costs nothing: a flush, a question, and what will be refused."""
    flags, command, _, offset, length, _ = request
    if not length or offset + length > size_bytes:
        return None
    if command == nbd.CMD_TRIM:
        return False, 0, 0
    if command == nbd.CMD_WRITE_ZEROES:  # those that may leave no hole are written
        return False, length if flags & nbd.CMD_FLAG_NO_HOLE else 0, 0
    if command == nbd.CMD_CACHE:
        return True, min(length, CACHE_AHEAD_BYTES), 0
    if length > MAX_PAYLOAD_BYTES:
        return None
    if command == nbd.CMD_READ:
        return True, length, 0
    return (False, length, length) if command == nbd.CMD_WRITE else None
