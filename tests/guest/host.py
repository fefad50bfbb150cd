"""A guest as a host of its own, with Python and `bock`, which reaches the daemon by TCP alone.

The emulated processor takes seconds to import `bock`: so its commands are processes forked from one
that has imported it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.daemon.process import Bockd

from .booted import Booted
from .pythondisk import PREFIX, PYTHON
from .vm import HOST_ADDRESS, Finished, Guest

NAME = "guest1"

MEMORY = "1G"
"""Python needs more than the shell."""

RESIDENT = """
import importlib, json, os, signal, sys

for name in ("bock", "connect", "storage", "volume"):
    importlib.import_module(f"bockd.cli.{name}")
import encodings.idna, httpx
# The shell has it ignored in what runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
while True:
    with open("/run/asked") as asked:
        arguments, variables = json.load(asked)
    if os.fork() == 0:
        break
    status = os.waitstatus_to_exitcode(os.wait()[1])
    with open("/run/ended", "w") as ended:
        ended.write(f"{status if status >= 0 else 128 - status}\\n")

printed = os.open("/run/printed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(printed, 1)
os.dup2(printed, 2)
os.environ.update(variables)
sys.argv = ["bock", *arguments]
sys.modules["bockd.cli.bock"].main(prog_name="bock")
"""
"""What commands are forked from: each is asked for by a pipe, and its status comes by another."""

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
        return self.guest.attempt(_asking(arguments, environment))

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
def guest_host(booted_host: Booted, console: Path, daemon: Bockd) -> Iterator[GuestHost]:
    """A guest that is a host, for the duration."""
    with booted_host.guest(console) as guest:
        yield GuestHost(guest, daemon)


def with_python(python_disk: Path) -> tuple[str, ...]:
    """What else a guest is started with, that shall be a host."""
    drive = f"file={python_disk},format=raw,if=virtio,readonly=on"
    return ("-m", MEMORY, "-drive", drive)


def become_host(guest: Guest) -> None:
    """Make a host of a guest that was started `with_python`: `GuestHost` finds all it needs."""
    guest.run(f"mkdir -p {PREFIX} && mount -t ext4 -o ro /dev/vda {PREFIX}")
    guest.run(f"hostname {NAME}")
    guest.run(
        f"mkfifo /run/asked /run/ended && cat >/run/resident.py <<'END'{RESIDENT}END\n"
        f"{PYTHON} /run/resident.py >/run/resident.log 2>&1 &"
    )
    # It answers once it has imported everything.
    guest.run(_asking(("--version",), {}))


def _asking(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """The guest's command that lets the resident run `bock`."""
    asked = json.dumps([arguments, environment])
    return (
        f"cat >/run/asked <<'END'\n{asked}\nEND\n"
        "read -r status </run/ended; cat /run/printed; exit $status"
    )
