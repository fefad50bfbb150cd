"""Turns that several connections take together, each volume's in a thread of its own.

A connection that is alone has the fast lane to itself (`FastLane.serve`). Several that are busy at
once *join* here: in one call the lane serves what has come for all of them, with as many threads as
there are cores for this process, until one needs the owner thread, or the loop has something else
to do, or the turn is over (`_fastlane_together.h`).

Invariants:
* The owner thread waits in that call, so that nothing else of the engine runs meanwhile: what holds
  between two requests of a turn of one connection holds for all. Two connections of one volume are
  served in the same thread.
* What a turn has done is noted (`Member.took`) before anything else runs.
* One of those who have joined leads: its task makes the calls. When it leaves, another one leads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from bockd.nbd.server import fastlane
from bockd.nbd.server.fastlane import LaneArguments, Served
from bockd.nbd.server.limits import MAX_LANES, SHARED_TURN_NS, TURN_NS
from bockd.nbd.server.pace import Pace
from bockd.runtime.steprunner import running_loop


class Member(Protocol):
    """A connection."""

    def lane(self) -> LaneArguments | None:
        """Return what is to be served in the next turn. None if it is to have no part in it."""
        ...

    def took(self, done: Served) -> None:
        """Note what a turn has done."""
        ...


class LostTurnError(Exception):
    """Nobody knows what a turn has done: no more may be said to the client."""


_IDLE_TURNS = 3
"""One for whom nothing came in so many turns waits by itself: turns may end before they have polled
for long."""


class _Seat:
    """One who has joined."""

    __slots__ = ("done", "idle_turns", "left", "lost", "member", "task")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.task = trio.lowlevel.current_task()
        self.left = self.lost = False
        self.idle_turns = 0
        self.done: Served | None = None


class Together:
    """Shared by the connections of a server."""

    def __init__(self, pace: Pace, poll_ns: int) -> None:
        """`poll_ns` is how long a turn goes on when nothing comes."""
        self.pace = pace
        self._poll_ns = poll_ns
        self._seats: list[_Seat] = []
        self._leader: _Seat | None = None
        self._batches = 0
        """Of `pace`, at the end of the last turn."""

    async def join(self, member: Member) -> Served | None:
        """Take part in turns as long as there are plain requests of `member`. Return what the last
        one has done; None if it was not in it. Raises LostTurnError."""
        seat = _Seat(member)
        self._seats.append(seat)
        try:
            if self._leader is None:
                self._leader = seat
            else:
                await trio.lowlevel.wait_task_rescheduled(self._aborter(seat))
            while not seat.left:  # we lead
                await trio.lowlevel.checkpoint()
                self._turn()
        finally:
            self._remove(seat)
            if self._leader is seat:
                self._leader = next(iter(self._seats), None)
                if self._leader is not None:
                    trio.lowlevel.reschedule(self._leader.task)
        if seat.lost:
            raise LostTurnError
        return seat.done

    def _aborter(self, seat: _Seat) -> Callable[[object], trio.lowlevel.Abort]:
        """What trio calls when the connection is dropped while it waits."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._remove(seat)  # at once: its task is scheduled, and must not be so twice
            return trio.lowlevel.Abort.SUCCEEDED

        return abort

    def _remove(self, seat: _Seat) -> None:
        seat.left = True
        if seat in self._seats:
            self._seats.remove(seat)

    def _leave(self, seat: _Seat) -> None:
        """Let a connection go on by itself."""
        self._remove(seat)
        if seat is not self._leader:
            trio.lowlevel.reschedule(seat.task)

    def _turn(self) -> None:
        """Serve what has come for those who wait longest."""
        served, lanes = list[_Seat](), list[LaneArguments]()
        for seat in self._seats[:MAX_LANES]:
            lane = seat.member.lane()
            if lane is None:
                self._leave(seat)
            else:
                served.append(seat)
                lanes.append(lane)
        if not lanes:
            return
        shared = self.pace.batches != self._batches
        try:
            results = self._serve(lanes, SHARED_TURN_NS if shared else TURN_NS)
            self._seats = self._seats[len(served) :] + served
            for seat, (done, goes_on) in zip(served, results, strict=True):
                self._note(seat, done, goes_on=goes_on)
        except BaseException:
            for seat in served:
                if not seat.left:
                    seat.lost = True
                    self._leave(seat)
            raise
        self._batches = self.pace.batches

    def _serve(self, lanes: list[LaneArguments], turn_ns: int) -> list[tuple[Served, bool]]:
        """Return what was done for each, and whether there may be more at once."""
        assert fastlane.compiled is not None
        loop = running_loop()
        watched = -1 if loop is None else loop.descriptor
        results = fastlane.compiled.serve_together(lanes, watched, self._poll_ns, turn_ns)
        return [(Served._make(done), goes_on) for done, goes_on in results]

    def _note(self, seat: _Seat, done: Served, *, goes_on: bool) -> None:
        seat.member.took(done)
        seat.done = done
        seat.idle_turns = 0 if done.received_bytes or done.latencies else seat.idle_turns + 1
        if not goes_on or seat.idle_turns == _IDLE_TURNS:
            self._leave(seat)
