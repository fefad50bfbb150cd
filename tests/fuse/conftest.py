"""Where to mount, and a daemon that does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.process import Bockd, serving

from .watchdog import watched


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """Where the view is mounted; made by whoever mounts it."""
    return tmp_path / "view"


@pytest.fixture
def daemon(tmp_path_factory: pytest.TempPathFactory, mount: Path) -> Iterator[Bockd]:
    """A running daemon with an empty pool and its view at `mount`."""
    pool = tmp_path_factory.mktemp("fuse") / "pool"
    with watched(mount), serving(pool, mount=mount) as running:
        # libfuse says so when an unmount comes in the middle of its read of /dev/fuse.
        running.expect_in_log("^fuse: reading device: Software caused connection abort$")
        yield running
