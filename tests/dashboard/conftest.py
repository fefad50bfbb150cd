"""The daemon that the tests of the dashboard share; each test uses names of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon.process import Bockd, serving
from tests.dashboard.visitor import Visitor, link_of, secret_of, visiting


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    with serving(tmp_path_factory.mktemp("dashboard") / "pool") as running:
        yield running


@pytest.fixture
def stranger(daemon: Bockd) -> Iterator[Visitor]:
    """Who knows where the dashboard is, and has no session."""
    with visiting(link_of(daemon)) as visitor:
        yield visitor


@pytest.fixture
def operator(daemon: Bockd) -> Iterator[Visitor]:
    """Who has a session."""
    url = link_of(daemon)
    with visiting(url) as visitor:
        assert visitor.enter(secret_of(url)).status_code == 200
        yield visitor
