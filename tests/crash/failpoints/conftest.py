"""A pool to begin with, made once by each process that runs tests; each test has a copy of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .run import Ground, Run, make_ground


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failpoints")


@pytest.fixture(scope="session")
def ground(work: Path) -> Ground:
    return make_ground(work)


@pytest.fixture
def run(work: Path, ground: Ground) -> Iterator[Run]:
    pool = work / "pool"
    yield Run(pool, work / "pool.log", ground)
    shutil.rmtree(pool)
    (work / "pool.log").unlink()
