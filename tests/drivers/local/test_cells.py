"""Cells of a packed head: given out one behind the other, and again only by the rule."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bockd.drivers.local.volume import cells
from bockd.drivers.local.volume.cells import MIN_FREE_RUN, FreeRuns, HeadCells
from bockd.errors import NoSpaceError
from tests.amounts import amount

MAX_CELLS = 400


def punch_all(head: HeadCells) -> None:
    while taken := head.take_emptied(7):
        head.note_punched(taken)


def make_free(head: HeadCells, first: int, end: int) -> None:
    head.empty(first, end)
    punch_all(head)
    head.begin_seal()
    head.end_seal()


def test_new_cells_follow_each_other_from_the_tail_on() -> None:
    head = HeadCells(5)
    assert [head.take(3), head.take(1), head.take(4)] == [5, 8, 9]
    assert head.tail == 13


def test_emptied_cell_is_not_used_again_before_it_is_punched() -> None:
    head = HeadCells(100)
    head.empty(0, 50)
    head.begin_seal()
    head.end_seal()
    assert (head.free, head.take(1)) == (0, 100)
    assert list(head.emptied) == [(0, 50)]


def test_cell_punched_after_the_seal_began_waits_for_the_next_one() -> None:
    head = HeadCells(100)
    head.empty(0, 20)
    head.begin_seal()
    punch_all(head)
    head.end_seal()
    assert head.free == 0
    head.begin_seal()
    assert head.free == 0
    head.end_seal()
    assert (head.free, head.take(20)) == (20, 0)


def test_cells_of_a_seal_that_was_not_completed_come_free_with_the_next_one() -> None:
    head = HeadCells(100)
    head.empty(0, 20)
    punch_all(head)
    head.begin_seal()
    head.empty(20, 40)
    punch_all(head)
    head.begin_seal()
    head.end_seal()
    assert (head.free, head.take(40)) == (40, 0)


def test_cells_whose_punch_failed_are_never_used_again() -> None:
    head = HeadCells(100)
    head.empty(0, 40)
    assert head.take_emptied(16) == range(16)
    make_free(head, 50, 60)
    assert (head.free, head.take(24)) == (24, 16)
    assert head.take(1) == 100


def test_short_free_run_is_left_until_its_neighbours_make_it_longer() -> None:
    head = HeadCells(100)
    make_free(head, 10, 10 + MIN_FREE_RUN - 1)
    assert (head.free, head.take(1)) == (0, 100)
    make_free(head, 0, 10)
    assert (head.free, head.take(1)) == (25, 0)


def test_free_run_is_used_to_its_end_by_single_cells() -> None:
    head = HeadCells(100)
    make_free(head, 0, MIN_FREE_RUN)
    assert [head.take(1) for _ in range(MIN_FREE_RUN + 1)] == [*range(MIN_FREE_RUN), 100]


def test_longer_run_is_taken_from_the_tail_when_no_free_one_holds_it() -> None:
    head = HeadCells(100)
    make_free(head, 0, 20)
    assert [head.take(21), head.take(20)] == [100, 0]


def test_rest_of_a_run_that_is_too_short_comes_back_when_a_neighbour_is_free() -> None:
    head = HeadCells(200)
    make_free(head, 0, 20)
    make_free(head, 50, 90)
    assert [head.take(30), head.take(15), head.take(10)] == [50, 0, 200]
    make_free(head, 90, 100)
    assert head.take(20) == 80


def test_head_without_cells_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "MAX_CELLS", 130)
    monkeypatch.setattr(cells, "ROTATION_CELLS", 20)
    head = HeadCells(100)
    head.take(10)
    assert not head.is_short
    head.take(1)
    assert head.is_short
    assert head.has_room(19)
    assert not head.has_room(20)
    with pytest.raises(NoSpaceError, match="full"):
        head.take(20)
    make_free(head, 0, 20)
    assert head.has_room(20)
    assert [head.take(20), head.take(19)] == [0, 111]


def test_forgotten_cells_are_neither_punched_nor_used_again() -> None:
    head = HeadCells(100)
    head.empty(0, 50)
    head.forget_emptied()
    make_free(head, 60, 60)
    assert (head.free, head.take_emptied(1)) == (0, range(0))


def test_runs_that_touch_become_one() -> None:
    runs = FreeRuns()
    for first, end in ((0, 9), (20, 40), (9, 20), (50, 50)):
        runs.add(first, end)
    assert (runs.usable, runs.longest(), runs.take_longest()) == (40, 40, range(40))
    assert (runs.usable, runs.longest()) == (0, 0)


class CellMachine(RuleBasedStateMachine):
    """The rule for using a cell again, cell by cell, with a file beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = HeadCells(0)
        self.given: set[int] = set()
        self.emptied: set[int] = set()
        self.punching: set[int] = set()
        self.punched: set[int] = set()
        self.sealed: set[int] = set()
        """Punched when the last seal began."""
        self.free: set[int] = set()

    @rule(count=st.one_of(st.integers(1, 4), st.integers(1, 64)))
    def take(self, count: int) -> None:
        tail = self.head.tail
        usable = any(len(run) >= max(count, MIN_FREE_RUN) for run in runs_of(self.free))
        first = self.head.take(count)
        cells = set(range(first, first + count))
        if first == tail:
            assert not usable, "a free run is long enough"
            assert self.head.tail == tail + count
        else:
            assert cells <= self.free
            assert self.head.tail == tail
        self.free -= cells
        self.given |= cells

    @rule(data=st.data(), count=st.integers(1, 64))
    def trim(self, data: st.DataObject, count: int) -> None:
        runs = runs_of(self.given)
        if runs:
            run = data.draw(st.sampled_from(runs))
            at = data.draw(st.integers(0, len(run) - 1))
            cells = run[at : at + count]
            self.head.empty(cells.start, cells.stop)
            self.given -= set(cells)
            self.emptied |= set(cells)

    @rule(count=st.integers(1, 40), fails=st.booleans())
    def punch(self, count: int, fails: bool) -> None:
        cells = self.head.take_emptied(count)
        assert bool(cells) == bool(self.emptied)
        assert set(cells) <= self.emptied
        self.emptied -= set(cells)
        if not fails:
            self.head.note_punched(cells)
            self.punched |= set(cells)

    @rule()
    def begin_seal(self) -> None:
        self.head.begin_seal()
        self.sealed |= self.punched
        self.punched.clear()

    @rule()
    def end_seal(self) -> None:
        self.head.end_seal()
        self.free |= self.sealed
        self.sealed.clear()

    @invariant()
    def what_is_free_is_counted(self) -> None:
        long = sum(len(run) for run in runs_of(self.free) if len(run) >= MIN_FREE_RUN)
        # The rest of the run in use counts, however short.
        assert long <= self.head.free < long + MIN_FREE_RUN
        assert {cell for run in self.head.emptied for cell in range(*run)} == self.emptied


def runs_of(cells: set[int]) -> list[range]:
    found: list[range] = []
    for cell in sorted(cells):
        if found and found[-1].stop == cell:
            found[-1] = range(found[-1].start, cell + 1)
        else:
            found.append(range(cell, cell + 1))
    return found


CellMachine.TestCase.settings = settings(
    max_examples=amount(40), stateful_step_count=60, deadline=None
)
TestCells = CellMachine.TestCase
