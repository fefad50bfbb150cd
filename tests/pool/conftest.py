"""A pool of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.drivers import DRIVERS
from tests.pool.opendriver import OpenDriver


@pytest.fixture(params=sorted(DRIVERS))
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenDriver]:
    opened = DRIVERS[request.param](request, tmp_path / "pool")
    yield opened
    opened.close()
