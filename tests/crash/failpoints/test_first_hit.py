"""SIGKILL at every failpoint of bockd/failpoints.py, at its first hit, and at some later ones.

A failpoint that nothing reaches is an error. A later hit of most steps is no different from the
first; test_later_hit.py tries those in `make test-kills`.

    pytest tests/crash/failpoints -k transition
"""

from __future__ import annotations

import pytest

from bockd.failpoints import Failpoint

from .run import NOT_HERE, WITHOUT_POOL, Run

LATER = {
    Failpoint.INDEX_CHANGED: (4, 30),
    Failpoint.INDEX_COMMITTED: (9, 60),
    Failpoint.WRITE_BEGUN: (70,),
    Failpoint.WRITE_DATA: (75,),
    Failpoint.WRITE_PIECE: (8,),
    Failpoint.JOURNAL_APPENDED: (6,),
}
"""Hits to die at besides the first, where it matters how much was done before."""


@pytest.mark.parametrize("point", [p for p in Failpoint if p not in WITHOUT_POOL | NOT_HERE])
def test_killed_at_the_first_hit(run: Run, point: Failpoint) -> None:
    died = run.dies(point, 1)
    run.verify()
    assert died, f"nothing comes to {point}: let tests/crash/failpoints/scenario.py do what does"


@pytest.mark.parametrize(
    ("point", "hit"), [(point, hit) for point, hits in LATER.items() for hit in hits]
)
def test_killed_at_a_later_hit(run: Run, point: Failpoint, hit: int) -> None:
    assert run.dies(point, hit)
    run.verify()
