"""A clean machine: a root directory of a release, made for a test and removed after it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.service.confined import REPOSITORY
from tests.walk.walker import read_until

SECONDS = 900.0
"""For one command; some install packages."""

READY_SECONDS = 120.0

PORTS = ("BOCKD_NBD_LISTEN=127.0.0.1:0", "BOCKD_API_LISTEN=127.0.0.1:0")
"""The daemons of others on this machine have the usual ones."""


@dataclass(frozen=True)
class Machine:
    """What `.setup/debian-root` has made."""

    root: Path

    def command(self, *command: str | Path) -> list[str | Path]:
        """Return what runs a command there, as root."""
        return [REPOSITORY / ".setup" / "in-root", self.root, *command]

    def run(self, *command: str | Path) -> str:
        """Run a command there; return what it printed. AssertionError unless it succeeds."""
        status, said = self.attempt(*command)
        assert status == 0, f"{' '.join(map(str, command))} ended with {status}:\n{said}"
        return said

    def attempt(self, *command: str | Path) -> tuple[int, str]:
        """Run a command there; return its status and what it printed."""
        ended = subprocess.run(
            self.command(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=SECONDS,
            cwd="/",
            env=os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )
        return ended.returncode, ended.stdout

    def shell(self, script: str) -> str:
        """Run a script there; AssertionError unless all of it succeeds."""
        return self.run("bash", "-euo", "pipefail", "-c", script)

    def install(self, *packages: str | Path) -> str:
        """Install packages, by name or by file, and nothing that they merely recommend."""
        options = ("--yes", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold")
        return self.run("apt-get", "-q", "-o", "Acquire::Retries=3", "install", *options, *packages)

    def file(self, path: str) -> Path:
        """Return where a file of the machine is, seen from here."""
        return self.root / path.lstrip("/")

    @contextmanager
    def daemon(
        self, command: Sequence[str], *, user: str, environment: Sequence[str]
    ) -> Iterator[None]:
        """Run a daemon there, which must get ready, and end well at SIGTERM."""
        become = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
        given = (*become, "env", *environment, *PORTS, *command)
        with subprocess.Popen(
            self.command(*given),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
        ) as process:
            try:
                assert read_until(process, re.compile(rb"\nNext: "), READY_SECONDS) is not None
                yield
            except BaseException:
                process.kill()
                raise
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=READY_SECONDS)
            assert process.returncode == 0, said.decode()


@contextmanager
def clean_machine(suite: str, name: str, *packages: str) -> Iterator[Machine]:
    """Make a machine with a release and packages, under a name of its own in .cache."""
    root = REPOSITORY / ".cache" / f"debian-{name}"
    _remove(root)
    subprocess.run(
        [REPOSITORY / ".setup" / "debian-root", suite, *packages],
        env=os.environ | {"BOCKD_ROOT": name},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    try:
        yield Machine(root)
    finally:
        _remove(root)


def _remove(root: Path) -> None:
    if root.exists():
        subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)
    assert not root.exists()
