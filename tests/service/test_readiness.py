"""What a service manager is told, and when."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.daemon.readiness import NOTIFY_VARIABLE, READY, notify
from tests.daemon.process import READY_SECONDS, Bockd


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Somebody who wants to know."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"{tmp_path}/notify")
        listener.settimeout(READY_SECONDS)
        yield listener


def test_ready_when_it_serves_and_stopping_when_it_stops(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(NOTIFY_VARIABLE, manager.getsockname())
    daemon = Bockd(tmp_path / "data", tmp_path / "log", is_forked=False).start()
    try:
        assert manager.recv(100) == b"READY=1"
        daemon.stop()
        assert manager.recv(100) == b"STOPPING=1"
    finally:
        daemon.end()


def test_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("")  # the kernel chooses an abstract one
        listener.settimeout(READY_SECONDS)
        monkeypatch.setenv(NOTIFY_VARIABLE, "@" + listener.getsockname()[1:].decode())
        notify(READY)
        assert listener.recv(100) == b"READY=1"


def test_a_manager_that_is_gone_is_no_reason_to_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv(NOTIFY_VARIABLE, str(tmp_path / "nobody"))
    notify(READY)
    assert "READY=1 did not reach NOTIFY_SOCKET" in caplog.text
