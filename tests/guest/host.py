"""A guest as a host of its own, with Python and `bock`, which reaches the daemon by TCP alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.daemon.process import Bockd

from .pythondisk import BOCK, PREFIX, PYTHON
from .vm import HOST_ADDRESS, Finished, Guest, boot

NAME = "guest1"

MEMORY = "1G"
"""Python needs more than the shell."""

RELAY = """
import os, socket, sys, threading

def pump(source, target):
    while data := source.recv(1 << 16):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1] + ".new")
listener.listen()
os.rename(sys.argv[1] + ".new", sys.argv[1])
while True:
    near, _ = listener.accept()
    far = socket.create_connection((sys.argv[2], int(sys.argv[3])))
    for pair in ((near, far), (far, near)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""
"""What listens on a Unix socket for a port elsewhere."""


@dataclass(frozen=True)
class GuestHost:
    """What a test does in the guest."""

    guest: Guest
    daemon: Bockd
    variables: Mapping[str, str] = field(default_factory=dict)
    """What else `bock` finds in its environment."""

    def attempt(self, *arguments: str) -> Finished:
        """Run `bock`, which may fail."""
        api = urlsplit(self.daemon.api_url)
        environment = {
            "OS_AUTH_URL": f"{api.scheme}://{HOST_ADDRESS}:{api.port}",
            **self._credentials(),
            **self.variables,
        }
        settings = " ".join(f"{name}='{value}'" for name, value in environment.items())
        return self.guest.attempt(f"env {settings} {BOCK} {' '.join(arguments)}")

    def bock(self, *arguments: str) -> str:
        """Run `bock`, which must succeed; returns what it prints."""
        finished = self.attempt(*arguments)
        assert finished.status == 0, finished
        return finished.output.strip()

    def refusal(self, *arguments: str) -> str:
        """Run `bock`, which must fail with one line."""
        finished = self.attempt(*arguments)
        assert finished.status == 1, finished
        assert finished.output.startswith("bock: "), finished
        return finished.output.strip()

    def relay(self, path: str, port: int) -> None:
        """Let a Unix socket in the guest lead to a port of ours."""
        self.guest.run(
            f"cat >/tmp/relay.py <<'END'{RELAY}END\n"
            f"{PYTHON} /tmp/relay.py '{path}' {HOST_ADDRESS} {port} >/dev/null 2>&1 & "
            f"for try in $(seq 600); do [ -S '{path}' ] && exit; usleep 100000; done; exit 1"
        )

    def python(self, code: str) -> str:
        """What a line of Python prints, with bock's packages."""
        return self.guest.run(f"{PYTHON} -c '{code}'").strip()

    def connections(self) -> list[dict[str, Any]]:
        """`bock connections`."""
        listed: list[dict[str, Any]] = json.loads(self.bock("connections", "--json"))
        return listed

    def _credentials(self) -> dict[str, str]:
        stored = json.loads((self.daemon.data_dir / "credentials.json").read_text())
        return {
            "OS_USERNAME": stored["username"],
            "OS_PASSWORD": stored["password"],
            "OS_TENANT_NAME": stored["tenant"],
        }


@contextmanager
def guest_host(
    initramfs: Path, python_disk: Path, console: Path, daemon: Bockd
) -> Iterator[GuestHost]:
    """A guest that is up and has its Python, for the duration."""
    with boot(initramfs, console, *with_python(python_disk)) as guest:
        yield host_in(guest, daemon)


def with_python(python_disk: Path) -> tuple[str, ...]:
    """What else a guest is started with, that shall be a host."""
    drive = f"file={python_disk},format=raw,if=virtio,readonly=on"
    return ("-m", MEMORY, "-drive", drive)


def host_in(guest: Guest, daemon: Bockd) -> GuestHost:
    """The host that a guest is that was started `with_python`."""
    guest.run(f"mkdir -p {PREFIX} && mount -t ext4 -o ro /dev/vda {PREFIX}")
    guest.run(f"hostname {NAME}")
    return GuestHost(guest, daemon)
