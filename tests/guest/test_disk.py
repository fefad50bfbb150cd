"""The guest's kernel client against nbdkit: what the daemon's tests in this directory rest on."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from .booted import Booted
from .disk import attached
from .forward import forward_to
from .initramfs import find_tool
from .scenario import clone_holds_the_state_of_its_snapshot
from .vm import Guest


@pytest.fixture(scope="module")
def guest(booted: Booted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One for all tests here: each lets go of its disks."""
    with booted.guest(tmp_path_factory.mktemp("guest") / "console.log") as running:
        yield running


@contextmanager
def nbdkit(listener: socket.socket, *plugin: str) -> Iterator[None]:
    """nbdkit on a listening socket (socket activation): clients wait in its backlog, not we."""
    command = [find_tool("nbdkit"), "--foreground", "--exit-with-parent", *plugin]
    # The protocol wants descriptor 3 and the server's own process id.
    activate = f'exec 3<&{listener.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
    with subprocess.Popen(
        ["bash", "-c", activate, "bash", *command], pass_fds=[listener.fileno()]
    ) as process:
        try:
            yield
        finally:
            process.terminate()


def test_a_file_system_over_tcp(guest: Guest) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        nbdkit(listener, "memory", "256M"),
        attached(guest, listener.getsockname()[1], "") as disk,
    ):
        disk.make_file_system()
        with disk.mounted():
            disk.write_file("data", 16)
            written = disk.checksums()
        disk.check_file_system()
        with disk.mounted(read_only=True):
            assert disk.checksums() == written


@dataclass(frozen=True, slots=True)
class CopiedFiles:
    """Volumes that are files; a snapshot or clone is a copy, made while nothing is in flight."""

    directory: Path
    port: int

    def create_volume(self, name: str, size_bytes: int) -> None:
        with (self.directory / name).open("xb") as file:
            file.truncate(size_bytes)

    def create_snapshot(self, volume: str, name: str) -> None:
        shutil.copyfile(self.directory / volume, self.directory / name)

    def clone_snapshot(self, snapshot: str, name: str) -> None:
        shutil.copyfile(self.directory / snapshot, self.directory / name)


def test_the_snapshot_scenario_holds_with_copied_files(guest: Guest, tmp_path: Path) -> None:
    directory = tmp_path / "volumes"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "nbd.sock"))
        listener.listen()
        with (
            nbdkit(listener, "file", f"dir={directory}"),
            forward_to(tmp_path / "nbd.sock") as port,
        ):
            clone_holds_the_state_of_its_snapshot(guest, CopiedFiles(directory, port))


def test_a_forwarded_port_without_a_server_hangs_up(tmp_path: Path) -> None:
    with (
        forward_to(tmp_path / "absent.sock") as port,
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        client.settimeout(10)
        assert client.recv(1) == b""


def test_forwarded_connections_are_independent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "echo.sock"))
        listener.listen()
        with forward_to(tmp_path / "echo.sock") as port:
            pairs = []
            for _ in range(3):
                client = socket.create_connection(("127.0.0.1", port), timeout=10)
                pairs.append((client, listener.accept()[0]))
            for number, (client, server) in enumerate(pairs):
                client.sendall(b"to server %d" % number)
                assert server.recv(100) == b"to server %d" % number
                server.sendall(b"to client %d" % number)
                assert client.recv(100) == b"to client %d" % number
            pairs[1][0].shutdown(socket.SHUT_WR)
            assert pairs[1][1].recv(1) == b""
            pairs[2][1].sendall(b"still here")
            assert pairs[2][0].recv(100) == b"still here"
            for pair in pairs:
                for end in pair:
                    end.close()


def test_a_missing_tool_says_what_to_run() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-tool is not installed; run: make setup"):
        find_tool("no-such-tool")
