"""QEMU moves a disk that is in use to a volume of another daemon by itself (docs/moving.md).

It is qemu-storage-daemon, which has QEMU's block layer and monitor; its clients stand for a guest.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Self

import nbd

from tests.daemon.migrating import read
from tests.daemon.process import Bockd, program, serving

SIZE = 64 << 20
BLOCK = 4096
SECONDS = 60


@contextmanager
def storage_daemon(source: Bockd, work: Path) -> Iterator[Path]:
    """QEMU's block layer with the volume `disk` of a daemon as a disk, for the duration."""
    monitor, export = work / "qmp.sock", work / "guest.sock"
    command = [
        program("qemu-storage-daemon"),
        f"--chardev=socket,id=qmp,path={monitor},server=on,wait=off",
        "--monitor=chardev=qmp",
        f"--blockdev=nbd,node-name=disk,server.type=unix,server.path={source.nbd_socket},export=disk",
        f"--nbd-server=addr.type=unix,addr.path={export}",
        "--export=nbd,id=guest,node-name=disk,name=guest,writable=on",
        f"--pidfile={work / 'pid'}",
    ]
    with subprocess.Popen(command) as running:
        try:
            while not (work / "pid").exists():
                assert running.poll() is None
            yield monitor
        finally:
            running.terminate()


class Guest:
    """Writes blocks at random until it is ended. An error of the disk ends it, too."""

    def __init__(self, socket: Path) -> None:
        self.content = bytearray(SIZE)
        self._wrote = threading.Condition()
        self._count = 0
        self._handle = nbd.NBD()
        self._handle.connect_uri(f"nbd+unix:///guest?socket={socket}")
        self._ended = threading.Event()
        self._error: nbd.Error | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait_for_more_writes(self) -> None:
        """Wait for a hundred more from now on."""
        with self._wrote:
            goal = self._count + 100
            assert self._wrote.wait_for(lambda: self._count >= goal, SECONDS)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        self._handle.shutdown()
        assert self._error is None

    def _run(self) -> None:
        chosen = Random(1)
        while not self._ended.is_set():
            offset, data = chosen.randrange(SIZE // BLOCK) * BLOCK, chosen.randbytes(BLOCK)
            try:
                self._handle.pwrite(data, offset)
            except nbd.Error as error:
                self._error = error
                return
            self.content[offset : offset + BLOCK] = data
            with self._wrote:
                self._count += 1
                self._wrote.notify()


class Monitor:
    """QEMU's monitor: commands, and waiting for events."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rw")
        assert "QMP" in self._read()
        self._events: list[str] = []
        self.execute("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def execute(self, command: str, **arguments: object) -> None:
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._lines.flush()
        while "return" not in (answer := self._read()):
            assert "event" in answer, answer
            self._events.append(answer["event"])

    def wait_for(self, event: str) -> None:
        while event not in self._events:
            self._events.append(self._read().get("event", ""))

    def _read(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._lines.readline())
        return answer


def mirror(monitor: Path, target: Bockd) -> None:
    """What docs/moving.md says."""
    there = {"type": "unix", "path": str(target.nbd_socket)}
    target_node = {"driver": "nbd", "node-name": "moved", "server": there, "export": "disk"}
    how = {"sync": "full", "copy-mode": "write-blocking"}
    with Monitor(monitor) as qmp:
        qmp.execute("blockdev-add", **target_node)
        qmp.execute(
            "blockdev-mirror", **{"job-id": "move", "device": "disk", "target": "moved"}, **how
        )
        qmp.wait_for("BLOCK_JOB_READY")
        qmp.execute("block-job-complete", device="move")
        qmp.wait_for("BLOCK_JOB_COMPLETED")
        qmp.execute("blockdev-del", **{"node-name": "disk"})


def test_a_disk_in_use_moves_without_interruption(tmp_path: Path) -> None:
    with serving(tmp_path / "here") as here, serving(tmp_path / "there") as there:
        for one in (here, there):
            one.bock("volume", "create", "disk", "--size", "64MiB")
        with storage_daemon(here, tmp_path) as monitor:
            guest = Guest(tmp_path / "guest.sock")
            guest.wait_for_more_writes()
            mirror(monitor, there)
            here.wait_until_unused("disk")
            here.bock("volume", "delete", "disk")
            guest.wait_for_more_writes()
            guest.end()
        there.wait_until_unused("disk")
        assert read(there, "disk") == guest.content
