"""A host with a daemon, its file view, and a state directory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.process import Bockd, serving
from tests.fuse.watchdog import watched

from .host import Host


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `bock` keeps its records; for the programs that the test starts, too."""
    directory = tmp_path / "state" / "connections"
    monkeypatch.setenv("BOCK_STATE", str(directory))
    return directory


@pytest.fixture
def daemon(tmp_path: Path, state: Path) -> Iterator[Bockd]:
    """A running daemon with an empty pool and a file view."""
    mount = tmp_path / "view"
    with watched(mount), serving(tmp_path / "pool", mount=mount) as running:
        yield running


@pytest.fixture
def host(daemon: Bockd, state: Path, tmp_path: Path) -> Iterator[Host]:
    """This machine, without the devices of the test afterwards."""
    host = Host(daemon, state, tmp_path / "view", tmp_path / "inside")
    try:
        yield host
    finally:
        host.clean()
