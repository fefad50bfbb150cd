"""Turns that several connections take together: who leads, and what becomes of those who leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import trio

from bockd.errors import DeviceError
from bockd.nbd.server import fastlane
from bockd.nbd.server.fastlane import LaneArguments, Served
from bockd.nbd.server.limits import MAX_LANES, SHARED_TURN_NS, TURN_NS
from bockd.nbd.server.pace import Pace
from bockd.nbd.server.together import LostTurnError, Together
from tests.nbd.server.serving import in_trio


def served(*, received_bytes: int = 1, polled: int = 0) -> tuple[object, ...]:
    """What one turn has done for one lane."""
    fields: dict[str, object] = dict.fromkeys(Served._fields, 0)
    fields |= {"rest": [], "acknowledgements": b"", "missed": b""}
    fields |= {"received_bytes": received_bytes, "polled": polled}
    return tuple(fields.values())


class FakeMember:
    """One who has something for some turns."""

    def __init__(self, turns: int, volume: str = "v") -> None:
        self.turns, self.taken, self.volume = turns, 0, volume

    def lane(self) -> LaneArguments | None:
        return (self,)

    def took(self, done: Served) -> None:
        self.taken += 1


class FakeLane:
    """The compiled module's part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.turns: list[list[FakeMember]] = []
        self.turn_ns: list[int] = []
        self.before: Callable[[], None] = lambda: None
        self.received_bytes = self.looks = 1
        monkeypatch.setattr(fastlane, "compiled", self)

    def serve_together(
        self, lanes: list[tuple[FakeMember]], _loop: int, _poll_ns: int, turn_ns: int, *_: int
    ) -> list[tuple[tuple[object, ...], bool, int]]:
        members = [member for (member,) in lanes]
        self.turns.append(members)
        self.turn_ns.append(turn_ns)
        self.before()
        return [
            (served(received_bytes=self.received_bytes), one.taken + 1 < one.turns, looks)
            for one, looks in zip(members, self.looks_at(members), strict=True)
        ]

    def looks_at(self, members: list[FakeMember]) -> list[int]:
        """How often it looks at each."""
        return [self.looks] * len(members)


@in_trio
async def test_each_stays_for_its_turns_whoever_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    lane, together = FakeLane(monkeypatch), Together(Pace(), 0)
    members = [FakeMember(turns) for turns in (1, 7, 3, 7, 2)]
    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(together.join, member)
    assert [member.taken for member in members] == [1, 7, 3, 7, 2]
    assert len(lane.turns) <= 9  # they have them together


@in_trio
async def test_those_beyond_what_a_turn_takes_have_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lane, together = FakeLane(monkeypatch), Together(Pace(), 0)
    members = [FakeMember(4) for _ in range(2 * MAX_LANES + 3)]
    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(together.join, member)
    assert all(member.taken == 4 for member in members)
    assert max(len(turn) for turn in lane.turns) == MAX_LANES
    for before, after in zip(lane.turns[1:3], lane.turns[2:4], strict=True):
        assert not set(before) & set(after)


@in_trio
async def test_volumes_have_turns_alike_when_there_is_time_for_one_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many connections each has, and the connections of one volume have as many, too."""

    class FirstOnly(FakeLane):
        def looks_at(self, members: list[FakeMember]) -> list[int]:
            seen[members[0]] += 1
            return [1] + [0] * (len(members) - 1)

    FirstOnly(monkeypatch)
    together, seen = Together(Pace(), 0), Counter[FakeMember]()
    members = [FakeMember(120, volume) for volume in "aaaabcc"]
    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(together.join, member)
    assert seen.total() == 120
    for volume in "abc":
        counts = [seen[one] for one in members if one.volume == volume]
        assert abs(sum(counts) - 40) <= 1
        assert max(counts) - min(counts) <= 1


@in_trio
async def test_one_has_part_in_each_turn_beside_a_volume_with_more_than_a_turn_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lane, together = FakeLane(monkeypatch), Together(Pace(), 0)
    alone = FakeMember(30, "few")
    members = [FakeMember(10, "many") for _ in range(2 * MAX_LANES + 5)] + [alone]
    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(together.join, member)
    full = [turn for turn in lane.turns[1:] if len(turn) == MAX_LANES][:20]
    assert len(full) == 20
    assert all(alone in turn for turn in full)
    assert all(member.taken == member.turns for member in members)


@pytest.mark.parametrize("dropped", range(3))
@in_trio
async def test_one_who_is_dropped_leaves_at_once(
    monkeypatch: pytest.MonkeyPatch, dropped: int
) -> None:
    """The leader or not: no turn after that has it."""
    lane, together = FakeLane(monkeypatch), Together(Pace(), 0)
    members = [FakeMember(20) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def join(number: int) -> None:
            with scope if number == dropped else trio.CancelScope():
                await together.join(members[number])

        for number in range(3):
            nursery.start_soon(join, number)
        while len(lane.turns) < 5:
            await trio.lowlevel.checkpoint()
        scope.cancel()
        turns = len(lane.turns)
    assert members[dropped].taken < 20
    assert all(one.taken == 20 for one in members if one is not members[dropped])
    assert all(members[dropped] not in turn for turn in lane.turns[turns:])


@in_trio
async def test_when_a_turn_fails_nobody_in_it_is_told_anything_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody knows what it has served. Those who come later go on."""
    lane, together = FakeLane(monkeypatch), Together(Pace(), 0)
    raised = list[type[Exception]]()

    def fail() -> None:
        if len(lane.turns) == 3:
            raise DeviceError("a test")

    async def join(member: FakeMember) -> None:
        try:
            await together.join(member)
        except (DeviceError, LostTurnError) as error:
            raised.append(type(error))

    lane.before = fail
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(join, FakeMember(5))
    assert sorted(error.__name__ for error in raised) == [
        "DeviceError",
        "LostTurnError",
        "LostTurnError",
    ]
    later = FakeMember(2)
    await together.join(later)
    assert later.taken == 2


@pytest.mark.parametrize("broken", ["lane", "took"])
@pytest.mark.parametrize("number", range(3))
@in_trio
async def test_one_whose_own_part_fails_leaves_alone(
    monkeypatch: pytest.MonkeyPatch, number: int, broken: str
) -> None:
    """The leader or not, before the turn or after it. The error is its own."""

    class Broken(FakeMember):
        def lane(self) -> LaneArguments | None:
            self._fail("lane")
            return super().lane()

        def took(self, done: Served) -> None:
            super().took(done)
            self._fail("took")

        def _fail(self, where: str) -> None:
            if where == broken and self.taken == 2:
                raise MemoryError("its own")

    async def join(member: FakeMember) -> None:
        try:
            await together.join(member)
        except MemoryError:
            raised.append(member)

    FakeLane(monkeypatch)
    together, raised = Together(Pace(), 0), list[FakeMember]()
    members = [Broken(6) if one == number else FakeMember(6) for one in range(3)]
    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(join, member)
    assert raised == [members[number]]
    assert [one.taken for one in members] == [2 if one == number else 6 for one in range(3)]


@in_trio
async def test_one_that_no_turn_has_looked_at_does_not_count_as_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lane, together = FakeLane(monkeypatch), Together(Pace(), 0)
    lane.received_bytes = lane.looks = 0
    member = FakeMember(20)
    await together.join(member)
    assert member.taken == 20


@in_trio
async def test_one_for_whom_nothing_comes_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    lane, together = FakeLane(monkeypatch), Together(Pace(), 0)
    lane.received_bytes = 0
    member = FakeMember(1000)
    await together.join(member)
    assert member.taken < 10


@in_trio
async def test_turns_are_short_while_others_are_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others who have a batch of their own between two turns."""
    pace = Pace()
    lane, together = FakeLane(monkeypatch), Together(pace, 0)
    works = iter([False, True, True, False, False])

    class Member(FakeMember):
        def lane(self) -> LaneArguments | None:
            if next(works):
                pace.works(lane, 0)
            return super().lane()

    await together.join(Member(5))
    assert lane.turn_ns == [TURN_NS, SHARED_TURN_NS, SHARED_TURN_NS, TURN_NS, TURN_NS]


@in_trio
async def test_one_that_has_nothing_for_a_lane_goes_on_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Member(FakeMember):
        def lane(self) -> LaneArguments | None:
            return None

    lane, together = FakeLane(monkeypatch), Together(Pace(), 0)
    assert await together.join(Member(1)) is None
    assert lane.turns == []
