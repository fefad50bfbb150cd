"""SIGKILL at every failpoint of bockd/failpoints.py that is reached again, at a later hit.

A later hit of most steps is no different from the first, and trying it takes minutes: `make
test-kills` does. All tests try those whose number matters.
"""

from __future__ import annotations

import pytest

from bockd.failpoints import Failpoint

from .run import NOT_HERE, WITHOUT_POOL, Run

LATER = {
    Failpoint.INDEX_CHANGED: (4, 9, 16, 30, 60),
    Failpoint.INDEX_COMMITTED: (4, 9, 16, 30, 60),
    Failpoint.WRITE_BEGUN: (70,),
    Failpoint.WRITE_DATA: (75,),
    Failpoint.WRITE_PIECE: (8,),
    Failpoint.JOURNAL_APPENDED: (6,),
}
"""Hits to die at besides the first, where it matters how much was done before."""

OF_A_CHANGE = frozenset(point for point in Failpoint if point.startswith("api-"))
"""Steps of one change that a client asked for: a later change is no different from the first."""

ONCE_A_START = frozenset({Failpoint.POOL_ESTABLISHED, Failpoint.SETTLED})
"""What no daemon comes to twice; it saves time to know."""


@pytest.mark.parametrize(
    ("point", "hit"), [(point, hit) for point, hits in LATER.items() for hit in hits]
)
def test_killed_at_a_later_hit(run: Run, point: Failpoint, hit: int) -> None:
    assert run.dies(point, hit)
    run.verify()


@pytest.mark.long_kills
@pytest.mark.parametrize(
    "point",
    [
        point
        for point in Failpoint
        if point not in WITHOUT_POOL | NOT_HERE | OF_A_CHANGE | LATER.keys()
    ],
)
def test_killed_at_the_second_hit(run: Run, point: Failpoint) -> None:
    """What one daemon comes to only once is killed there, and so is the next one if it comes to
    it."""
    if point in ONCE_A_START or not run.dies(point, 2):
        run.begin_again()
        assert run.dies(point, 1)
        run.dies_again(point)
    run.verify()
