"""This machine as a host: its loop devices on a daemon's volumes, and what is mounted there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.daemon.process import Bockd


@dataclass(frozen=True)
class Host:
    """What a test does on this machine with one daemon."""

    daemon: Bockd
    state: Path
    view: Path
    mount_point: Path
    made: list[str] = field(default_factory=list)
    """Devices that there were at some time."""

    def connect(self, volume: str, *options: str) -> str:
        """The device of a volume that is connected now."""
        device: str = self.daemon.bock("connect", "--loop", "--server", "host1", volume, *options)[
            "device"
        ]
        self.made.append(device)
        return device

    def records(self) -> list[dict[str, Any]]:
        """`bock connections`."""
        listed: list[dict[str, Any]] = self.daemon.bock("connections")
        return listed

    def volume(self, name: str) -> dict[str, Any]:
        """What the API says of a volume."""
        shown: dict[str, Any] = self.daemon.bock("volume", "show", name)
        return shown

    def devices(self) -> list[str]:
        """The loop devices on files of the view."""
        return [
            f"/dev/{entry.parents[1].name}"
            for entry in Path("/sys/block").glob("loop*/loop/backing_file")
            if entry.read_text(errors="surrogateescape").startswith(f"{self.view}/")
        ]

    def dead_devices(self) -> list[str]:
        """Those of `connect` that are on a view that is gone: the kernel tells their paths below
        it."""
        backing = {
            device: Path(f"/sys/block/{device[5:]}/loop/backing_file") for device in self.made
        }
        return [
            device
            for device, file in backing.items()
            if file.exists() and file.read_text(errors="surrogateescape").startswith("/volumes/")
        ]

    @contextmanager
    def mounted(self, device: str) -> Iterator[Path]:
        self.mount_point.mkdir(exist_ok=True)
        self.daemon.tool("mount", device, self.mount_point)
        try:
            yield self.mount_point
        finally:
            self.daemon.tool("umount", self.mount_point)

    def clean(self) -> None:
        """However the test ended."""
        for device in [*self.devices(), *self.dead_devices()]:
            subprocess.run(["losetup", "--detach", device], check=False)
