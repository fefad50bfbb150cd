"""The daemon that the tests of this directory share; each test has volumes of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..daemon.process import Bockd, serving


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    """A running daemon. When all is over it stops well, and its pool is in order."""
    with serving(tmp_path_factory.mktemp("interop") / "pool", nbd_listen="127.0.0.1:0") as running:
        yield running
        running.check()
        running.stop()
        running.check()
