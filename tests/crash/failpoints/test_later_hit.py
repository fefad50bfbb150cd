"""SIGKILL at every failpoint of bockd/failpoints.py that is reached again, at a later hit."""

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
"""Hits to die at besides the first; two of most."""

OF_A_CHANGE = frozenset(point for point in Failpoint if point.startswith("api-"))
"""Steps of one change that a client asked for: a later change is no different from the first."""

ONCE_A_START = frozenset({Failpoint.POOL_ESTABLISHED, Failpoint.SETTLED})
"""What no daemon comes to twice; it saves time to know."""


@pytest.mark.parametrize(
    ("point", "hit"),
    [
        (point, hit)
        for point in Failpoint
        if point not in WITHOUT_POOL | NOT_HERE | OF_A_CHANGE
        for hit in LATER.get(point, (2,))
    ],
)
def test_killed_at_a_later_hit(run: Run, point: Failpoint, hit: int) -> None:
    """What one daemon comes to only once is killed there, and so is the next one if it comes to
    it."""
    if point in ONCE_A_START or not run.dies(point, hit):
        run.begin_again()
        assert run.dies(point, 1)
        run.dies_again(point)
    run.verify()
