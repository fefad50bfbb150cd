"""A daemon, and a pool to start one on, for each test that asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .process import Bockd, serving


@pytest.fixture
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a pool may be made; its path is short enough for sockets."""
    return tmp_path_factory.mktemp("daemon") / "pool"


@pytest.fixture
def daemon(pool: Path) -> Iterator[Bockd]:
    """A running daemon with an empty pool of its own."""
    with serving(pool) as running:
        yield running


@pytest.fixture
def stopped(pool: Path) -> Iterator[Bockd]:
    """A daemon that has made its pool, with one volume of known content in it, and has ended."""
    with serving(pool) as running:
        running.bock("volume", "create", "kept", "--size", "1M")
        with running.connected("kept") as client:
            client.pwrite(b"kept" * 1024, 0)
        running.stop()
        yield running
