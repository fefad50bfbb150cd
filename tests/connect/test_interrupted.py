"""`bock connect` and `disconnect` that are interrupted, or wait for what does not come."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bockd.errors import DeviceError, InUseError
from bockd.host import blockdevices, records
from bockd.host.records import Records
from tests.daemon.process import program

from .host import Host

BLOCK = 4096


def test_an_interrupt_leaves_no_device(host: Host, tmp_path: Path) -> None:
    """Ctrl-C when losetup has made the device and bock does not know that yet."""
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "losetup").write_text(
        f'#!/bin/sh\n{program("losetup")} "$@"\n[ "$1" = --find ] && kill -INT $PPID && sleep 600\n'
    )
    (tools / "losetup").chmod(0o755)
    environment = {**host.daemon.environment, "PATH": f"{tools}:{os.environ['PATH']}"}
    ended = subprocess.run(
        [program("bock"), "connect", "--loop", "v"],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert ended.returncode != 0
    assert b"Traceback" not in ended.stderr
    assert (host.devices(), host.records()) == ([], [])
    assert host.volume("v")["status"] == "available"


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing for the duration."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.filterwarnings("ignore:.*Popen.__del__")  # it waits in the kernel still
def test_a_device_that_takes_nothing_is_given_up(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for it in the kernel cannot be ended, so nobody waits for that one."""
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    device = host.connect("v")
    descriptor = os.open(device, os.O_RDWR)
    try:
        with stopped(host.daemon.pid), monkeypatch.context() as patched:
            patched.setattr(blockdevices, "FLUSH_SECONDS", 0.5)
            os.pwrite(descriptor, b"x" * BLOCK, 0)
            with pytest.raises(DeviceError, match=r"for 0\.5 seconds\); is the daemon running"):
                blockdevices.flush(device, descriptor)
        blockdevices.flush(device, descriptor)
    finally:
        os.close(descriptor)
    host.daemon.bock("disconnect", "v")
    with host.daemon.connected("v") as client:
        assert client.pread(BLOCK, 0) == b"x" * BLOCK


def test_another_bock_that_hangs_is_named(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Records(state).locked():
        monkeypatch.setattr(records, "LOCK_SECONDS", 0.1)
        with (
            pytest.raises(InUseError, match=rf"another bock \(process {os.getpid()}\)"),
            Records(state).locked(),
        ):
            pass
    with Records(state).locked():
        pass
