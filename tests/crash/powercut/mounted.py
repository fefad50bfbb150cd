"""The file system of `filesystem.py` in use: its process, and the orders it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REPOSITORY = Path(__file__).parents[3]


class PowerCutDisk:
    """Pools live in directories of it, each of which is one life of a pool."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount

    def path(self, life: str) -> Path:
        return self.mount / life

    def new(self) -> str:
        """An empty life."""
        life = self._name()
        self._order(f"new {life}")
        return life

    def arm(self, life: str, after: int, beyond: int | None = None) -> None:
        """Let the power fail at change number `after` (with 0, never); or, with `beyond`, so many
        changes beyond the first sync that follows."""
        self._order(f"arm {life} {after}" + ("" if beyond is None else f" {beyond}"))

    def restore(self, life: str, seed: str) -> str:
        """What may be left of a life after the cut (or, if there was none, a cut now)."""
        name = self._name()
        self._order(f"restore {life} {name} {seed}")
        return name

    def drop(self, life: str) -> None:
        self._order(f"drop {life}")

    @property
    def cut(self) -> bool:
        """The power has failed."""
        return os.getxattr(self.mount, "user.power").startswith(b"1")

    @property
    def changes(self) -> int:
        """Changes since `arm`."""
        return int(os.getxattr(self.mount, "user.power").split()[1])

    def _name(self) -> str:
        # The kernel remembers names, and histories in several processes make them.
        return f"life-{time.monotonic_ns()}"

    def _order(self, text: str) -> None:
        os.setxattr(self.mount, "user.power", text.encode())


@contextmanager
def power_cut_disk(mount: Path) -> Iterator[PowerCutDisk]:
    """Mount one at an empty directory."""
    with mounted_by("tests.crash.powercut.filesystem", mount):
        yield PowerCutDisk(mount)


@contextmanager
def mounted_by(module: str, mount: Path) -> Iterator[None]:
    """Let a process that runs `module` serve `mount`, for the duration."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(mount)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_REPOSITORY,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"mounted\n", "the file system was not mounted"
        yield
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
