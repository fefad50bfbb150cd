"""A guest as a host of its own, with Python and `bock`, which reaches the daemon by TCP alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.daemon.process import Bockd

from .pythondisk import BOCK, PREFIX
from .vm import HOST_ADDRESS, Finished, Guest, boot

NAME = "guest1"

MEMORY = "1G"
"""Python needs more than the shell."""


@dataclass(frozen=True)
class GuestHost:
    """What a test does in the guest."""

    guest: Guest
    daemon: Bockd

    def attempt(self, *arguments: str) -> Finished:
        """Run `bock`, which may fail."""
        environment = {
            "OS_AUTH_URL": f"http://{HOST_ADDRESS}:{urlsplit(self.daemon.api_url).port}",
            **self._credentials(),
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
    drive = f"file={python_disk},format=raw,if=virtio,readonly=on"
    with boot(initramfs, console, "-m", MEMORY, "-drive", drive) as guest:
        guest.run(f"mkdir -p {PREFIX} && mount -t ext4 -o ro /dev/vda {PREFIX}")
        guest.run(f"hostname {NAME}")
        yield GuestHost(guest, daemon)
