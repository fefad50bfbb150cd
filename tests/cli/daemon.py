"""A running daemon for the tests, and the programs run against it.

What a test asks of the daemon goes through `Daemon`.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bockd.cli.storage import StorageClient
from bockd.config.load import load

from .. import forked
from ..daemon.driver import configured
from ..daemon.process import (
    PROGRAM_SECONDS,
    READY_SECONDS,
    environment_without_a_cloud,
    lines_of,
)

READ_BY_BOCK = ("BOCKD_DATA", "COLUMNS", "OS_")
"""How variables begin that `bock` itself reads: neither Python at its start, nor the search for a
program."""


@dataclass(frozen=True)
class Result:
    """How a program ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Daemon:
    """A data directory and whoever serves it."""

    data_dir: Path

    @property
    def environment(self) -> dict[str, str]:
        """What points programs at it."""
        return {
            **environment_without_a_cloud(),
            "BOCKD_CONFIG": str(configured(self.data_dir, Path("/dev/null"))),
            "BOCKD_DATA": str(self.data_dir),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def run(self, *arguments: str | Path, **more: str) -> Result:
        """Run a program to its end, without a terminal. `more` are environment variables."""
        if arguments[0] == "bock" and all(name.startswith(READ_BY_BOCK) for name in more):
            environment = {**self.environment, **more}
            return Result(*forked.run("bock", arguments[1:], environment, PROGRAM_SECONDS))
        ended = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**self.environment, **more},
            check=False,
        )
        return Result(ended.returncode, ended.stdout, ended.stderr)

    def bock(self, *arguments: str | Path) -> str:
        """Run `bock`, which must succeed and print no errors; returns what it prints."""
        result = self.run("bock", *arguments)
        assert (result.status, result.err) == (0, ""), result
        return result.out

    def bock_json(self, *arguments: str | Path) -> Any:
        """Run `bock ... --json` and return the document."""
        return json.loads(self.bock(*arguments, "--json"))

    def refusal(self, *arguments: str | Path, **more: str) -> str:
        """Run `bock`, which must fail with one line on standard error; returns the line. `more` are
        environment variables."""
        result = self.run("bock", *arguments, **more)
        assert (result.status, result.out) == (1, ""), result
        assert result.err.startswith("bock: "), result
        assert result.err.count("\n") == 1, result
        return result.err.strip()

    def misuse(self, *arguments: str | Path) -> str:
        """Run `bock`, which must say that it was called wrongly; returns what it says, without the
        line breaks."""
        result = self.run("bock", *arguments)
        assert (result.status, result.out) == (2, ""), result
        assert result.err.startswith("Usage: bock "), result
        return " ".join(result.err.split())

    @contextmanager
    def storage(self) -> Iterator[StorageClient]:
        """What is behind `bock`, for what `bock` does not do."""
        with StorageClient(load(None, self.environment).settings, {}) as client:
            yield client

    def names(self) -> set[str]:
        """The volumes that exist."""
        return {volume["name"] for volume in self.bock_json("volume", "list")}

    @contextmanager
    def connected(self, uri: str, volume: str) -> Iterator[None]:
        """Within, a client is connected to an export; after it, the daemon has seen it go."""
        client = subprocess.Popen(
            ["qemu-io", "-f", "raw", "-r", uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"read 0 512\n")
            client.stdin.flush()
            client.stdout.readline()  # it has connected and read
            yield
            client.communicate(b"quit\n")
        while self.bock_json("volume", "show", volume)["connections"]:
            pass


def acting(daemon: Daemon, username: str, password: str, tenant: str) -> dict[str, str]:
    """Variables that make `bock` act for somebody."""
    lines = daemon.bock("credentials", "--shell").splitlines()
    found = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    mine = {"OS_USERNAME": username, "OS_PASSWORD": password, "OS_TENANT_NAME": tenant}
    return {**found, **mine}


def _control() -> None:
    """Make standard input the terminal of our session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A program at a terminal of its own."""

    def __init__(
        self,
        daemon: Daemon,
        *arguments: str | Path,
        rows: int | None = None,
        controls: bool = False,
        **more: str,
    ) -> None:
        """`rows`: how many the terminal has, of 200 columns. The environment says so, too: what a
        program at a terminal believes more, and readline, once imported, sets for its process. One
        that `controls` makes signals of keys (Ctrl-C), as a person's does."""
        self._main, other = pty.openpty()
        rows = rows or 24
        termios.tcsetwinsize(other, (rows, 200))
        self._process = subprocess.Popen(
            arguments,
            stdin=other,
            stdout=other,
            stderr=other,
            env={
                **daemon.environment,
                "TERM": "xterm",
                "COLUMNS": "200",
                "LINES": str(rows),
                **more,
            },
            start_new_session=True,
            preexec_fn=_control if controls else None,
        )
        os.close(other)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        """Read until `text` has appeared."""
        until = time.monotonic() + PROGRAM_SECONDS
        while text not in self.seen:
            assert self._read(), f"ended without {text!r}: {self.seen!r}"
            assert time.monotonic() < until, f"goes on without {text!r}: {self.seen[-9999:]!r}"

    def type(self, text: str) -> None:
        """What a person types."""
        os.write(self._main, text.encode())

    @property
    def echoes(self) -> bool:
        """Whether it shows what is typed, and hands it over line by line."""
        local: int = termios.tcgetattr(self._main)[3]
        echoing = termios.ECHO | termios.ICANON
        assert local & echoing in (0, echoing)
        return bool(local & echoing)

    def signal(self, number: int) -> None:
        """Send a signal to the program, and not to its children."""
        self._process.send_signal(number)

    def end(self) -> int:
        """Read what is left and return the exit status."""
        while self._read():
            pass
        os.close(self._main)
        return self._process.wait(PROGRAM_SECONDS)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._main], [], [], PROGRAM_SECONDS)
        assert ready, f"it hangs after {self.seen!r}"
        try:
            chunk = os.read(self._main, 65536)
        except OSError:  # EIO: the last process at this terminal has gone
            return False
        self.seen += chunk.decode(errors="replace")
        return bool(chunk)


@contextmanager
def running_daemon(
    data_dir: Path, *, api_listen: str = "127.0.0.1:0", **more: str
) -> Iterator[Daemon]:
    """`bockd serve` on `data_dir`, for as long as the context lasts; it must end well, and logs to
    our standard error. `more` are environment variables."""
    daemon = Daemon(data_dir)
    environment = {**daemon.environment, "BOCKD_NBD_LISTEN": "none", "BOCKD_API_LISTEN": api_listen}
    environment |= more
    process = forked.Program("bockd", ["serve"], environment, Path("/dev/stderr"))
    try:
        deadline = time.monotonic() + READY_SECONDS
        assert any(line.startswith("Next: ") for line in lines_of(process, deadline))
        yield daemon
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(PROGRAM_SECONDS)
        process.stdout.close()
    assert status == 0
