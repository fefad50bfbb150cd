"""SIGKILL at every failpoint of bockd/failpoints.py that is reached again, at its second hit and at
later ones of the index. `make test-kills` does it, since it takes minutes and is seldom different
from the first hit.
"""

from __future__ import annotations

import pytest

from bockd.failpoints import Failpoint

from .run import NOT_HERE, WITHOUT_POOL, Run
from .test_first_hit import LATER

OF_A_CHANGE = frozenset(point for point in Failpoint if point.startswith("api-"))
"""Steps of one change that a client asked for: a later change is no different from the first."""

ONCE_A_START = frozenset({Failpoint.POOL_ESTABLISHED, Failpoint.SETTLED})
"""What no daemon comes to twice; it saves time to know."""


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


@pytest.mark.long_kills
@pytest.mark.parametrize("hit", [4, 9, 16, 30, 60])
@pytest.mark.parametrize("point", [Failpoint.INDEX_CHANGED, Failpoint.INDEX_COMMITTED])
def test_killed_at_many_hits(run: Run, point: Failpoint, hit: int) -> None:
    """All that is done to the index comes to these."""
    assert run.dies(point, hit)
    run.verify()
