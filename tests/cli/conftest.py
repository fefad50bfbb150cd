"""The daemon that the tests of the command lines share; each test uses names of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .daemon import Daemon, running_daemon


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running daemon with an empty pool in a directory whose name is awkward on purpose."""
    with running_daemon(tmp_path_factory.mktemp("a pool") / "a pool") as running:
        yield running
