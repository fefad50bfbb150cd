"""Sets of numbers that come in ranges."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bockd.drivers.local.format.ranges import RangeSet

ranges = st.tuples(st.integers(0, 60), st.integers(1, 20))


@given(st.lists(st.tuples(st.booleans(), ranges), max_size=60))
def test_ranges_are_a_set_of_numbers(actions: list[tuple[bool, tuple[int, int]]]) -> None:
    found, model = RangeSet(), set[int]()
    for adding, (first, count) in actions:
        numbers = set(range(first, first + count))
        if adding:
            found.add(first, first + count)
            model |= numbers
        else:
            taken = found.remove(first, first + count)
            assert {n for start, end in taken for n in range(start, end)} == model & numbers
            assert sum(end - start for start, end in taken) == len(model & numbers)
            model -= numbers
        assert bool(found) == bool(model)
        listed = list(found)
        assert {n for start, end in listed for n in range(start, end)} == model
        assert all(end < start for (_, end), (start, _) in pairwise(listed))
        assert found.first() == (listed[0] if listed else None)
        assert {n for n in range(100) if n in found} == model
