"""Turns that several connections take together in the compiled lane, without connections: what is
served for whom is a test's affair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bockd.model import BLOCK_SIZE, MIB
from bockd.nbd.server import fastlane
from bockd.nbd.server.fastlane import LaneArguments, Served
from bockd.nbd.server.limits import MAX_LANE_THREADS, RECEIVE_BUFFER_BYTES, SHARE_NS
from tests.nbd.protocol import wire
from tests.nbd.server.sides import PLACE_BYTES, Line, Side, two_sides

VOLUMES = 2
SECOND_NS = 1_000_000_000


class Lane:
    """One connection's part, over a volume."""

    def __init__(self, side: Side, line: Line) -> None:
        self.side, self.line = side, line
        self._received = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self._position = self._end = self.received_bytes = 0
        self.goes_on = True

    def hear(self, stream: bytes, at_once: int) -> None:
        """Have the first bytes of a stream received, and the others come."""
        self._received[:at_once] = stream[:at_once]
        self._position, self._end = 0, at_once
        self.received_bytes = 0
        self.line.say(stream[at_once:])
        self.goes_on = True

    def arguments(self) -> LaneArguments:
        found = self.side.batch.lane(
            self._received, self._position, self._end, self.line.ours.fileno()
        )
        assert found is not None
        return found

    def took(self, done: Served, *, goes_on: bool) -> list[bytes]:
        """What is left to be sent."""
        self.side.batch.took(done)
        self._position, self._end = done.position, done.end
        self.received_bytes += done.received_bytes
        self.goes_on = goes_on
        assert not done.rest
        assert not done.missed
        return [bytes(part) for part in self.side.batch.finish()]

    def rest(self) -> bytes:
        """What was received and not served, and what was not received."""
        self.line.ours.setblocking(False)
        left = bytes(self._received[self._position : self._end])
        try:
            return left + self.line.ours.recv(4 * MIB)
        except BlockingIOError:
            return left


def serve_together(lanes: list[Lane], polled_ns: int = 0) -> list[list[bytes]]:
    """Take turns until none of the lanes goes on. Return what each has answered."""
    assert fastlane.compiled is not None
    replies: list[list[bytes]] = [[] for _ in lanes]
    while running := [number for number, lane in enumerate(lanes) if lane.goes_on]:
        arguments = [lanes[number].arguments() for number in running]
        results = fastlane.compiled.serve_together(
            arguments, -1, polled_ns, SECOND_NS, SHARE_NS, MAX_LANE_THREADS
        )
        for number, result in zip(running, results, strict=True):
            assert not isinstance(result, BaseException), result
            done, goes_on, _ = result
            sent = lanes[number].line.heard()
            replies[number] += [sent, *lanes[number].took(Served._make(done), goes_on=goes_on)]
    return replies


@contextmanager
def several_sides(*, structured: bool, extended: bool) -> Iterator[list[tuple[Side, Side]]]:
    """Pairs of volumes, with the fast lane and without."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(two_sides(structured=structured, extended=extended))
            for _ in range(VOLUMES)
        ]


def requests(
    count: int, *, extended: bool, first: int = 0, places: Sequence[int] = (8, 9, 10)
) -> bytes:
    """Reads and writes in place, in turns, of places that the head has; their cookies count from
    `first`."""
    parts = []
    for number in range(first, first + count):
        place = places[number % len(places)]
        offset = place * PLACE_BYTES + number % 40 * BLOCK_SIZE
        if number % 2:
            form = wire.extended_write if extended else wire.write
            parts.append(form(number, offset, bytes([1 + number % 200]) * BLOCK_SIZE))
        else:
            ask = wire.extended if extended else wire.request
            parts.append(ask(0, number, offset, BLOCK_SIZE))
    return b"".join(parts)


class LaneMember:
    """One who always has something to be served, until it was served so many times."""

    def __init__(self, lane: Lane, times: int, turns: Callable[[], int]) -> None:
        self.served_in: list[int] = []
        """Numbers of turns."""
        self.in_turns = 0
        self._lane, self._times, self._turns = lane, times, turns
        self.volume = lane.side

    def lane(self) -> LaneArguments | None:
        if len(self.served_in) == self._times:
            return None
        if len(self.served_in) + self.in_turns == 0 or self._lane.line.heard():
            self._lane.hear(b"", 0)
            self._lane.line.say(requests(4, extended=False))
        self.in_turns += 1
        return self._lane.arguments()

    def took(self, done: Served) -> None:
        self._lane.took(done, goes_on=True)
        if done.received_bytes:
            self.served_in.append(self._turns())
