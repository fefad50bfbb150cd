"""SIGKILL at every failpoint of bockd/failpoints.py, at its first hit.

A failpoint that nothing reaches is an error.

    pytest tests/crash/failpoints -k transition
"""

from __future__ import annotations

import pytest

from bockd.failpoints import Failpoint

from .run import NOT_HERE, WITHOUT_POOL, Run


@pytest.mark.parametrize("point", [p for p in Failpoint if p not in WITHOUT_POOL | NOT_HERE])
def test_killed_at_the_first_hit(run: Run, point: Failpoint) -> None:
    died = run.dies(point, 1)
    run.verify()
    assert died, f"nothing comes to {point}: let tests/crash/failpoints/scenario.py do what does"
