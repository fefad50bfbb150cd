"""A conversation with a peer that is dead, silent, mad or somebody else."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable
from pathlib import Path

import pytest
from qemu.qmp import QMPClient

from bockd.errors import BockdError, UnavailableError
from bockd.publictexts import discretion
from bockd.vm import monitor
from bockd.vm.monitor import Monitor, NotRunningError, RefusedError

from .peers import GREETING, Talk, greeted, peer, said, stay
from .qemu import converse, listening, qemu

REPLY = b'{"return": {"running": true}, "id": "__qmp#00000"}'
EVENT = b'{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}'


def ask(begun: Monitor) -> Awaitable[object]:
    return begun.execute("query-status")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp.sock"


def test_events_among_the_replies_are_no_replies(path: Path) -> None:
    with peer(path, greeted(EVENT, EVENT, REPLY, EVENT)):
        assert converse(path, ask) == {"running": True}


def test_a_vm_that_ends_just_after_its_greeting_is_not_running(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package asserts that the conversation lasts, which it does not now and then."""

    async def connect(_client: QMPClient, connection: socket.socket) -> None:
        connection.close()
        raise AssertionError

    monkeypatch.setattr(QMPClient, "connect", connect)
    with peer(path, greeted()), pytest.raises(NotRunningError, match="hung up at once"):
        converse(path, ask)


def test_a_refusal_has_qemus_words(path: Path) -> None:
    with qemu(path), pytest.raises(RefusedError, match=r"QEMU: .*no-such-command"):
        converse(path, lambda begun: begun.execute("no-such-command"))


def test_a_socket_of_another_user_is_an_error_that_tenants_are_told(path: Path) -> None:
    user, nobody = os.geteuid(), 65534
    with peer(path, greeted()):
        path.chmod(0)
        try:
            if user == 0:  # who may use everything
                os.seteuid(nobody)
            with pytest.raises(UnavailableError, match="bockd may not use the VM's QMP") as caught:
                converse(path, ask)
        finally:
            os.seteuid(user)
    assert discretion.text(caught.value) == str(caught.value)


@pytest.mark.parametrize(
    ("talk", "error", "reason"),
    [
        pytest.param(said(), NotRunningError, "hung up at once", id="hangs up"),
        pytest.param(said(GREETING), NotRunningError, "hung up at once", id="dies greeting"),
        pytest.param(
            said(b"QEMU 7.2.22 monitor - type 'help' for more information"),
            UnavailableError,
            "monitor for people",
            id="human monitor",
        ),
        pytest.param(said(b"{}"), UnavailableError, "does not speak QMP", id="other JSON"),
        pytest.param(said(b"\xff\x00" * 100), UnavailableError, "does not speak QMP", id="binary"),
        pytest.param(greeted(), NotRunningError, "the VM ended at query-status", id="dies at work"),
        pytest.param(greeted(EVENT), NotRunningError, "ended", id="dies after an event"),
        pytest.param(greeted(b"[1]"), UnavailableError, "query-status is not QMP", id="a list"),
        pytest.param(
            greeted(b'{"error": 1, "id": "__qmp#00000"}'),
            UnavailableError,
            "query-status is not QMP",
            id="a malformed error",
        ),
    ],
)
def test_a_peer_that_ends_or_is_something_else(
    path: Path, talk: Talk, error: type[BockdError], reason: str
) -> None:
    with peer(path, talk), pytest.raises(error, match=reason):
        converse(path, ask)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("mode=control,pretty=on", "-qmp instead of -qmp-pretty"),
        ("mode=readline", "-qmp instead of -monitor"),
    ],
)
def test_a_monitor_of_another_kind_is_named(path: Path, options: str, reason: str) -> None:
    """QEMU's own, started with the wrong option."""
    with listening(path) as listener:
        chardev = f"socket,id=other,fd={listener.fileno()},server=on,wait=off"
        with (
            qemu(
                path.with_name("qmp"),
                *("-chardev", chardev, "-mon", f"chardev=other,{options}"),
                pass_fds=[listener.fileno()],
            ),
            pytest.raises(UnavailableError, match=reason),
        ):
            converse(path, ask)


def test_a_line_without_end_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "MAX_LINE_BYTES", 4096)
    long = b'{"return": "' + b"x" * 100_000 + b'", "id": "__qmp#00000"}'
    with (
        peer(path, greeted(long, silent=True)),
        pytest.raises(UnavailableError, match="query-status is not QMP"),
    ):
        converse(path, ask)


def test_a_silent_peer_has_limits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "CONNECT_SECONDS", 0.1)
    with peer(path, stay), pytest.raises(UnavailableError, match=r"no greeting within 0\.1 s"):
        converse(path, ask)


def test_a_silent_command_has_limits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "COMMAND_SECONDS", 0.1)
    with (
        peer(path, greeted(silent=True)),
        pytest.raises(UnavailableError, match=r"did not answer query-status within 0\.1 s"),
    ):
        converse(path, ask)


def test_a_second_client_of_qemu_is_told_why_it_waits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "CONNECT_SECONDS", 0.2)
    with qemu(path), socket.socket(socket.AF_UNIX) as first:
        first.connect(str(path))
        assert b"QMP" in first.recv(4096)
        with pytest.raises(UnavailableError, match="another program uses its QMP socket"):
            converse(path, ask)


def test_a_backlog_full_of_clients_is_no_vm_that_has_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "CONNECT_SECONDS", 0.2)
    with listening(path):
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(8)]
        for client in waiting:
            client.setblocking(False)
        assert errno.EAGAIN in [client.connect_ex(str(path)) for client in waiting]
        with pytest.raises(UnavailableError, match=r"no greeting within 0\.2 s"):
            converse(path, ask)
        for client in waiting:
            client.close()


def test_what_is_no_socket_is_no_vm(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError):
        converse(tmp_path / "missing", ask)
    (tmp_path / "file").touch()
    with pytest.raises(NotRunningError):
        converse(tmp_path / "file", ask)
