"""A daemon for all clients, and the programs of each release."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.daemon.process import Bockd, serving

from .releases import RELEASES, Programs, Release


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    with serving(
        tmp_path_factory.mktemp("clients") / "pool",
        nbd_listen="127.0.0.1:0",
        api_listen="127.0.0.1:0",
    ) as running:
        yield running
        running.check()


@pytest.fixture(scope="session")
def all_programs() -> dict[str, Programs]:
    """By release of a distribution."""
    return {suite: Programs.of(suite) for suite in {release.suite for release in RELEASES}}


@pytest.fixture
def programs(release: Release, all_programs: dict[str, Programs]) -> Programs:
    """Those of the release under test, which is what the table says."""
    found = all_programs[release.suite]
    version = found.version_of(release.client)
    assert re.match(rf"{re.escape(release.version)}(?!\d)", version), f"{release} is {version} now"
    return found
