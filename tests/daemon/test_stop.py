"""Stopping: SIGTERM, SIGINT and SIGHUP are clean ends, whatever goes on."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbd
import pytest

from bockd.drivers.local.format.layout import Layout
from bockd.fuse.mountpoint import mounted_at
from tests.fuse.watchdog import watched

from .process import READY_SECONDS, Bockd, program, serving

MIB = 1 << 20
BLOCK = 4096


@pytest.fixture(autouse=True)
def hangups_count() -> Iterator[None]:
    """Even where the tests were started with nohup, whose children ignore SIGHUP like it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def daemon(pool: Path) -> Iterator[Bockd]:
    """The program itself: what it does at signals is not what Python set up for a forked one."""
    with serving(pool, is_forked=False) as running:
        yield running


class Writer(threading.Thread):
    """Writes block after block of its own until the daemon goes; knows what was acknowledged."""

    def __init__(self, client: Any, first: int, blocks: int, enough: threading.Event) -> None:
        super().__init__()
        self.acknowledged = 0
        self._client = client
        self._first = first
        self._blocks = blocks
        self._enough = enough

    def offset(self, number: int) -> int:
        return (self._first + number % self._blocks) * BLOCK

    def run(self) -> None:
        with suppress(nbd.Error):  # the daemon has gone
            while True:
                self._write()

    def _write(self) -> None:
        number = self.acknowledged
        self._client.pwrite(number.to_bytes(8) * (BLOCK // 8), self.offset(number))
        self.acknowledged += 1
        if self.acknowledged == 500:
            self._enough.set()

    def verify(self, client: Any) -> None:
        """Each block holds its last acknowledged value, or the one that was under way."""
        for number in range(max(0, self.acknowledged - self._blocks), self.acknowledged):
            value = int.from_bytes(client.pread(BLOCK, self.offset(number))[:8])
            assert value in (number, number + self._blocks)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_under_load_is_clean(daemon: Bockd, number: signal.Signals) -> None:
    """Eight clients write to two volumes, one of them over a snapshot, when the signal comes. The
    daemon ends with status 0 and says nothing but that, every journal is applied and removed, the
    pool is in order as it lies there, and all that was acknowledged is served by the next."""
    writers = []
    events = []
    for name in ("one", "two"):
        daemon.bock("volume", "create", name, "--size", "16M")
        for index in range(4):
            events.append(threading.Event())
            writers.append((name, Writer(daemon.connect(name), index * 600, 600, events[-1])))
    for _, writer in writers:
        writer.start()
    for event in events:
        assert event.wait(60)
    daemon.bock("snapshot", "create", "one", "one-1")
    daemon.stop_by(number)
    for _, writer in writers:
        writer.join()

    assert Layout(daemon.data_dir).journal_segments() == []
    report = daemon.check()
    assert report["volumes"] == 2
    daemon.start()
    for name, writer in writers:
        with daemon.connected(name) as client:
            writer.verify(client)
    daemon.check()


def test_a_stop_while_idle(daemon: Bockd) -> None:
    """An empty pool, and one whose clients are connected and silent, or half way into the
    handshake."""
    daemon.restart()
    daemon.bock("volume", "create", "v", "--size", "1M")
    silent = daemon.connect("v")
    half = nbd.NBD()
    half.set_opt_mode(True)
    half.connect_unix(str(daemon.nbd_socket))
    daemon.stop()
    assert not os.path.exists(daemon.data_dir / "journal" / "1.1.0")
    with pytest.raises(nbd.Error):
        silent.pread(512, 0)
    daemon.start()
    with daemon.connected("v") as client:
        assert client.pread(512, 0) == bytes(512)


def test_a_terminal_that_is_closed_ends_the_daemon_and_its_view(tmp_path: Path) -> None:
    """The kernel sends SIGHUP, and what is written to the terminal fails; nothing stays mounted."""
    data, view = tmp_path / "pool", tmp_path / "view"
    ours, terminal = pty.openpty()
    command = ["setsid", "--ctty", program("bockd"), "serve", "--mount", str(view)]
    with watched(view):
        process = subprocess.Popen(
            command,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=Bockd(data, tmp_path / "log").environment,
        )
        os.close(terminal)
        try:
            said = b""
            while b"Next: " not in said:
                said += os.read(ours, 4096)
            assert mounted_at(view) is not None
            os.close(ours)
            assert process.wait(READY_SECONDS) == 0
            assert mounted_at(view) is None
        finally:
            process.kill()
            process.wait()
    assert Layout(data).journal_segments() == []


def test_a_daemon_that_nobody_reads_serves(tmp_path: Path) -> None:
    """As in `bockd serve | head -1`, or at a terminal that is closed while it says that it is
    ready."""
    log = tmp_path / "log"
    daemon = Bockd(tmp_path / "pool", log)
    reading, writing = os.pipe()
    os.close(reading)
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [program("bockd"), "serve"],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=stderr,
            env=daemon.environment,
        )
    os.close(writing)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not (tmp_path / "pool" / "api.sock").exists() and time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        daemon.bock("volume", "create", "v", "--size", "1M")
        process.terminate()
        assert process.wait(READY_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
    assert Layout(tmp_path / "pool").journal_segments() == []


@pytest.mark.parametrize("launcher", [("nohup",), ("env", "NOTIFY_SOCKET=/nowhere")])
def test_a_hangup_does_not_end_what_outlives_its_terminal(
    tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    """Started with nohup, or by a service manager: it serves on, and stops when it is told to."""
    with serving(tmp_path / "pool", launcher=launcher) as daemon:
        daemon.expect_in_log("did not reach NOTIFY_SOCKET|^nohup: ")
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.bock("volume", "create", "v", "--size", "1M")
        assert [volume["name"] for volume in daemon.bock("volume", "list")] == ["v"]
        daemon.stop()
        said = daemon.log.read_text()
        assert ("SIGHUP is ignored" in said) == (launcher[0] == "env")


def test_sockets_of_a_dead_daemon_are_no_hindrance(daemon: Bockd) -> None:
    """After SIGKILL the sockets are still there; the next daemon takes their place."""
    daemon.bock("volume", "create", "v", "--size", "1M")
    daemon.kill()
    assert daemon.nbd_socket.exists()
    daemon.start()
    assert [volume["name"] for volume in daemon.bock("volume", "list")] == ["v"]
