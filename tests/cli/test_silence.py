"""A daemon that is stopped, as by SIGSTOP: commands say so, wait for it, and can be interrupted."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.cli import silence
from bockd.cli.silence import HTTP_QUESTION, NBD_QUESTION
from bockd.model import MIB

from .daemon import Daemon, Terminal, running_daemon
from .images import path_with_changed_bock

IMPATIENT = "from bockd.cli import http, silence\nsilence.PATIENCE_SECONDS = 0.3\n"

STOP_IN_THE_MIDDLE = (
    "import os, signal\n"
    "from bockd.nbd.client import Export\n"
    "receive, left = Export.receive, list(range(3))\n"
    "def stopping(export):\n"
    "    if left and left.pop() == 0:\n"
    "        os.kill(PID, signal.SIGSTOP)\n"
    "    return receive(export)\n"
    "Export.receive = stopping\n"
)

FORMATS = ["raw", "qcow2"]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("stopped") / "pool") as daemon:
        yield daemon


@pytest.fixture
def own(serving: Daemon) -> Iterator[Daemon]:
    """A daemon without volumes that may be stopped; it goes on afterwards."""
    yield serving
    os.kill(pid_of(serving), signal.SIGCONT)
    for name in serving.names():
        serving.run("bock", "volume", "delete", name)  # or what was pending has done it


def pid_of(daemon: Daemon) -> int:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(daemon.data_dir / "api.sock"))
        return int(
            struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        )


def image(path: Path) -> Path:
    path.write_bytes(os.urandom(12 * MIB))
    return path


def stopping_path(daemon: Daemon, tmp_path: Path, more: str = "") -> str:
    """A PATH whose `bock` stops the daemon in the middle of what it moves."""
    change = STOP_IN_THE_MIDDLE.replace("PID", str(pid_of(daemon)))
    return path_with_changed_bock(daemon, tmp_path, IMPATIENT + change + more)


def test_a_request_waits_for_a_daemon_that_is_stopped(own: Daemon, tmp_path: Path) -> None:
    own.bock("volume", "create", "v", "--size", "1M")
    path = path_with_changed_bock(own, tmp_path, IMPATIENT)
    os.kill(pid_of(own), signal.SIGSTOP)
    listing = Terminal(own, "bock", "volume", "list", PATH=path)
    listing.wait_for("api.sock does not answer; waiting for it")
    os.kill(pid_of(own), signal.SIGCONT)
    assert listing.end() == 0
    assert "1 MiB" in listing.seen
    assert listing.seen.count("does not answer") == 1


def test_a_request_to_a_daemon_that_is_stopped_is_interrupted(own: Daemon, tmp_path: Path) -> None:
    path = path_with_changed_bock(own, tmp_path, IMPATIENT)
    os.kill(pid_of(own), signal.SIGSTOP)
    listing = Terminal(own, "bock", "volume", "list", PATH=path)
    listing.wait_for("does not answer")
    listing.signal(signal.SIGINT)
    assert listing.end() == 130


def test_an_export_goes_on_when_the_daemon_does(own: Daemon, tmp_path: Path) -> None:
    content = image(tmp_path / "v.img").read_bytes()
    own.bock("volume", "import", tmp_path / "v.img")
    target = tmp_path / "out.raw"
    path = stopping_path(own, tmp_path)
    exporting = Terminal(own, "bock", "volume", "export", "v", target, PATH=path)
    exporting.wait_for("nbd.sock does not answer; waiting for it")
    os.kill(pid_of(own), signal.SIGCONT)
    assert exporting.end() == 0
    assert target.read_bytes() == content


def test_an_export_from_a_daemon_that_is_stopped_is_interrupted(
    own: Daemon, tmp_path: Path
) -> None:
    own.bock("volume", "import", image(tmp_path / "v.img"))
    target = tmp_path / "target" / "out.raw"
    target.parent.mkdir()
    path = stopping_path(own, tmp_path)
    exporting = Terminal(own, "bock", "volume", "export", "v", target, PATH=path)
    exporting.wait_for("does not answer")
    exporting.signal(signal.SIGINT)
    assert exporting.end() == 130
    assert "interrupted" in exporting.seen
    assert list(target.parent.iterdir()) == []


def test_qemu_is_waited_for_as_well(own: Daemon, tmp_path: Path) -> None:
    """It writes the other formats, and says nothing of a server that is silent."""
    own.bock("volume", "import", image(tmp_path / "v.img"))
    convert = "import os, signal\nfrom bockd.cli import export\nrun = export.run_convert\n"
    convert += "def stopped(*given):\n    os.kill(PID, signal.SIGSTOP)\n    run(*given)\n"
    convert += "export.run_convert = stopped\n"
    convert = IMPATIENT + convert.replace("PID", str(pid_of(own)))
    path = path_with_changed_bock(own, tmp_path, convert)
    target = tmp_path / "target" / "out.qcow2"
    target.parent.mkdir()
    exporting = Terminal(own, "bock", "volume", "export", "v", target, PATH=path)
    exporting.wait_for("does not answer")
    exporting.signal(signal.SIGINT)
    assert exporting.end() == 130
    assert list(target.parent.iterdir()) == []


def test_an_interrupted_import_is_undone_when_the_daemon_goes_on(
    own: Daemon, tmp_path: Path
) -> None:
    path = stopping_path(own, tmp_path)
    importing = Terminal(own, "bock", "volume", "import", image(tmp_path / "v.img"), PATH=path)
    importing.wait_for("nbd.sock does not answer")
    importing.signal(signal.SIGINT)
    importing.wait_for("api.sock does not answer")
    importing.signal(signal.SIGINT)  # which would leave half a volume
    os.kill(pid_of(own), signal.SIGCONT)
    assert importing.end() == 130
    assert own.names() == set()


def test_an_import_that_cannot_be_undone_says_what_is_left(own: Daemon, tmp_path: Path) -> None:
    path = stopping_path(own, tmp_path, "http.ANSWER_TIMEOUT_SECONDS = 1\n")
    importing = Terminal(own, "bock", "volume", "import", image(tmp_path / "v.img"), PATH=path)
    importing.wait_for("nbd.sock does not answer")
    importing.signal(signal.SIGINT)
    assert importing.end() == 130
    assert "(v) is half filled and could not be deleted" in importing.seen


@pytest.mark.parametrize(("name", "question"), [("api", HTTP_QUESTION), ("nbd", NBD_QUESTION)])
def test_who_works_for_long_is_not_silent(
    own: Daemon, monkeypatch: pytest.MonkeyPatch, name: str, question: bytes
) -> None:
    """The daemon is asked for something else than what it is at."""
    monkeypatch.setattr(silence, "PATIENCE_SECONDS", 0.3)
    socket_path = str(own.data_dir / f"{name}.sock")
    assert silence.answers(socket_path, question)
    assert silence.answers(str(own.data_dir / "absent"), question)
    os.kill(pid_of(own), signal.SIGSTOP)
    assert not silence.answers(socket_path, question)
