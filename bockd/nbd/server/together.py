"""Turns that several connections take together, each volume's in a thread of its own.

A connection that is alone has the fast lane to itself (`FastLane.serve`). Several that are busy at
once *join* here: in one call the lane serves what has come for all of them, with as many threads as
this process may use cores, until one needs the owner thread, or the loop has something else
to do, or the turn is over (`_fastlane_together.h`).

Invariants:
* The owner thread waits in that call, so that nothing else of the engine runs meanwhile: what holds
  between two requests of a turn of one connection holds for all. Two connections of one volume are
  served in the same thread.
* What a turn has done is noted (`Member.took`) before anything else runs.
* Those that a turn had no time to look at are the first of the next one, and of them those of
  volumes of which it has looked at nobody.
* Where several volumes have the same thread they are looked at in turn, whatever the number of
  their connections; so it is when there are more connections than a turn takes.
* Whose part fails leaves with the error, and the others go on. If the call itself fails, nobody
  knows what was done for any of them, and all of them end.
* One of those who have joined leads: its task makes the calls. When it leaves, another one leads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Protocol

import trio

from bockd.nbd.server import fastlane
from bockd.nbd.server.fastlane import LaneArguments, Served
from bockd.nbd.server.limits import (
    MAX_LANE_THREADS,
    MAX_LANES,
    SHARE_NS,
    SHARED_TURN_NS,
    TURN_NS,
)
from bockd.nbd.server.pace import Pace
from bockd.runtime.steprunner import running_loop


class Member(Protocol):
    """A connection."""

    @property
    def volume(self) -> object:
        """What it is a connection to."""
        ...

    def lane(self) -> LaneArguments | None:
        """Return what is to be served in the next turn. None if it is to have no part in it."""
        ...

    def took(self, done: Served) -> None:
        """Note what a turn has done."""
        ...


class LostTurnError(Exception):
    """Nobody knows what a turn has done: no more may be said to the client."""


_Result = tuple[tuple[Any, ...], bool, int] | BaseException
"""What has become of one in a turn: what was done, as `Served`; whether there may be more at once;
how often it was looked for some. An exception if it was refused, or nobody knows."""

_IDLE_TURNS = 3
"""One for whom nothing came in so many turns waits by itself: turns may end before they have polled
for long."""


class _Seat:
    """One who has joined."""

    __slots__ = ("done", "error", "idle_turns", "left", "member", "task")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.task = trio.lowlevel.current_task()
        self.left = False
        self.idle_turns = 0
        self.done: Served | None = None
        self.error: BaseException | None = None


class Together:
    """Shared by the connections of a server."""

    def __init__(self, pace: Pace, poll_ns: int, threads: int = MAX_LANE_THREADS) -> None:
        """`poll_ns` is how long a turn goes on when nothing comes; it has at most so many
        `threads`."""
        self.pace = pace
        self._poll_ns = poll_ns
        self._threads = threads
        self._seats: list[_Seat] = []
        self._leader: _Seat | None = None
        self._batches = 0
        """Of `pace`, at the end of the last turn."""

    async def join(self, member: Member) -> Served | None:
        """Take part in turns as long as there are plain requests of `member`. Return what the last
        one has done; None if it was not in it. Raises LostTurnError, and what its own part has
        raised."""
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
        if seat.error is not None:
            raise seat.error
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

    def _fail(self, seat: _Seat, error: BaseException) -> None:
        """Let a connection go with an error, which is raised in its own task."""
        seat.error = error
        self._leave(seat)

    def _turn(self) -> None:
        """Serve what has come for those who wait longest."""
        served, lanes = list[_Seat](), list[LaneArguments]()
        for seat in self._next():
            try:
                lane = seat.member.lane()
            except Exception as error:  # noqa: BLE001 - raised by whose it is
                self._fail(seat, error)
                continue
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
            looks = [0 if isinstance(one, BaseException) else one[2] for one in results]
            self._reorder(served, looks)
            for seat, result in zip(served, results, strict=True):
                self._note(seat, result)
        except BaseException:
            for seat in served:
                if not seat.left:
                    self._fail(seat, LostTurnError())
            raise
        self._batches = self.pace.batches

    def _next(self) -> list[_Seat]:
        """Return who takes part in the next turn: of each volume those who wait longest."""
        if len(self._seats) <= MAX_LANES:
            return self._seats.copy()
        before = Counter[object]()
        ranked = list[tuple[int, _Seat]]()
        for seat in self._seats:
            ranked.append((before[seat.member.volume], seat))
            before[seat.member.volume] += 1
        return [seat for _, seat in sorted(ranked, key=itemgetter(0))[:MAX_LANES]]

    def _reorder(self, served: list[_Seat], looks: list[int]) -> None:
        """Put those that the turn has looked at behind all others, the least often seen first; and
        of the others those to the front of whose volume it has looked at nobody."""
        looked_at = {seat: count for seat, count in zip(served, looks, strict=True) if count}
        seen = sorted(looked_at, key=looked_at.__getitem__)
        others = [seat for seat in self._seats if seat not in looked_at]
        volumes = {seat.member.volume for seat in seen}
        others.sort(key=lambda seat: seat.member.volume in volumes)
        self._seats = others + seen

    def _serve(self, lanes: list[LaneArguments], turn_ns: int) -> list[_Result]:
        """Serve one turn. Return what has become of each."""
        assert fastlane.compiled is not None
        loop = running_loop()
        watched = -1 if loop is None else loop.descriptor
        results: list[_Result] = fastlane.compiled.serve_together(
            lanes, watched, self._poll_ns, turn_ns, SHARE_NS, self._threads
        )
        return results

    def _note(self, seat: _Seat, result: _Result) -> None:
        if isinstance(result, BaseException):
            self._fail(seat, result)
            return
        served, goes_on, looks = result
        done = Served._make(served)
        try:
            seat.member.took(done)
        except Exception as error:  # noqa: BLE001 - raised by whose it is
            self._fail(seat, error)
            return
        seat.done = done
        if done.received_bytes or done.reads or done.writes:
            seat.idle_turns = 0
        elif looks:
            seat.idle_turns += 1
        if not goes_on or seat.idle_turns == _IDLE_TURNS:
            self._leave(seat)
