"""The connection that a command keeps to the daemon, which may be ended at any moment.

The daemon is killed and started again at that moment, which ends its connections as its limit on
idle ones does.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bockd import overunix
from bockd.cli import http
from bockd.cli.elsewhere import Elsewhere
from bockd.cli.storage import StorageClient
from bockd.errors import UnavailableError
from bockd.overunix import UnixConnection
from tests.daemon.process import Bockd, serving


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # the same after each restart
    data = tmp_path_factory.mktemp("kept") / "data"
    with serving(data, api_listen=f"127.0.0.1:{port}") as running:
        yield running


@pytest.fixture
def storage(daemon: Bockd) -> Iterator[StorageClient]:
    """A client that has asked before."""
    with daemon.storage() as client:
        client.list_volumes()
        yield client


@pytest.fixture
def restarts(daemon: Bockd, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Restart the daemon before the next call of a method of the connection, once."""

    def restart_before(name: str) -> None:
        call = getattr(UnixConnection, name)

        def late(*arguments: object) -> object:
            monkeypatch.undo()
            daemon.kill()
            daemon.start()
            return call(*arguments)

        monkeypatch.setattr(UnixConnection, name, late)

    return restart_before


def test_a_request_that_was_never_sent_is_sent_again(
    storage: StorageClient, restarts: Callable[[str], None]
) -> None:
    restarts("request")
    volume = storage.post("os-volumes", {"volume": {"display_name": "late", "size": 1}})["volume"]
    assert [one.id for one in storage.list_volumes("late")] == [int(volume["id"])]
    restarts("request")
    storage.delete_volume(int(volume["id"]))
    assert storage.list_volumes("late") == []


def test_what_may_have_been_carried_out_is_not_sent_again(
    storage: StorageClient, restarts: Callable[[str], None]
) -> None:
    restarts("getresponse")
    assert storage.list_volumes("once") == []
    restarts("getresponse")
    with pytest.raises(UnavailableError, match="went away during the request"):
        storage.post("os-volumes", {"volume": {"display_name": "once", "size": 1}})
    assert len(storage.list_volumes("once")) <= 1


SENDING, RECEIVING = "send_request_headers", "receive_response_headers"


@pytest.fixture
def remote(daemon: Bockd, tmp_path: Path) -> Iterator[StorageClient]:
    """A client over TCP that has asked before."""
    variables = tmp_path / "there.env"
    variables.write_text(daemon.tool("bock", "credentials", "--shell"))
    with Elsewhere(str(variables)).client as client:
        client.list_volumes()
        yield client


@pytest.fixture
def restarts_when(daemon: Bockd, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Restart the daemon when httpx begins to do something the next time."""

    def restart_when(doing: str) -> None:
        note, restarts = http._Way.note, iter([True])

        def late(way: http._Way, event: str, details: object) -> None:
            note(way, event, details)
            if event == f"http11.{doing}.started" and next(restarts, False):
                monkeypatch.undo()
                daemon.kill()
                daemon.start()

        monkeypatch.setattr(http._Way, "note", late)

    return restart_when


def test_over_tcp_a_request_is_sent_again_that_cannot_have_been_carried_out(
    remote: StorageClient, restarts_when: Callable[[str], None]
) -> None:
    restarts_when(SENDING)
    assert remote.list_volumes("far") == []
    restarts_when(SENDING)
    volume = remote.post("os-volumes", {"volume": {"display_name": "far", "size": 1}})["volume"]
    assert [one.id for one in remote.list_volumes("far")] == [int(volume["id"])]
    restarts_when(RECEIVING)
    assert [one.id for one in remote.list_volumes("far")] == [int(volume["id"])]
    remote.delete_volume(int(volume["id"]))


def test_over_tcp_what_may_have_been_carried_out_is_not_sent_again(
    remote: StorageClient, restarts_when: Callable[[str], None]
) -> None:
    restarts_when(RECEIVING)
    with pytest.raises(UnavailableError, match="went away during the request"):
        remote.post("os-volumes", {"volume": {"display_name": "once over tcp", "size": 1}})
    assert len(remote.list_volumes("once over tcp")) <= 1


def test_an_idle_connection_is_not_used_again(
    storage: StorageClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    connect = UnixConnection.connect

    def noting(connection: UnixConnection) -> None:
        opened.append(Path())
        connect(connection)

    monkeypatch.setattr(UnixConnection, "connect", noting)
    storage.list_volumes()
    assert opened == []
    monkeypatch.setattr(overunix, "KEPT_SECONDS", 0.0)
    storage.list_volumes()
    assert len(opened) == 1


def test_a_token_that_is_not_valid_any_more_is_replaced(
    storage: StorageClient, daemon: Bockd
) -> None:
    """As after a day; this ends all tokens at once."""
    old = storage.token
    daemon.tool("bock", "credentials", "rotate")
    assert storage.list_volumes() == []
    assert storage.token != old
