"""A public API over the real service, for each test its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..api.public import Served, serving
from .pool_service import on_pool


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(on_pool(tmp_path)) as served:
        yield served
