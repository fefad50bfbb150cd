"""The kinds of pools that the contract suite runs over: a driver is a line of `DRIVERS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from bockd.config.rbd import RbdSettings
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.memory.pool import MemoryPool
from bockd.runtime.steps import Background, Steps, run_inline
from tests.drivers.local.process import die
from tests.drivers.rbd.pooldriver import RbdDriver
from tests.pool.opendriver import OpenDriver

T = TypeVar("T")


class LocalDriver(OpenDriver):
    """The local pool in a directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._background = Background()
        self.pool = self._local = LocalPool.open(directory, self._background.spawn)

    def run(self, steps: Steps[T]) -> T:
        """Run an operation to its end, and what it gave the background to do."""
        try:
            return run_inline(steps)
        finally:
            self._background.run()

    def die_and_open(self) -> None:
        """Drop all descriptors and locks without finishing anything."""
        die(self._local)
        self._background = Background()
        self.pool = self._local = LocalPool.open(self._directory, self._background.spawn)


class MemoryDriver(OpenDriver):
    """The pool in memory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.pool = MemoryPool()


def _in_ceph(request: pytest.FixtureRequest, directory: Path) -> OpenDriver:
    settings: RbdSettings = request.getfixturevalue("rbd_namespace")
    return RbdDriver(settings, directory)


DRIVERS: dict[str, Callable[[pytest.FixtureRequest, Path], OpenDriver]] = {
    "local": lambda _request, directory: LocalDriver(directory),
    "memory": lambda _request, directory: MemoryDriver(directory),
    "rbd": _in_ceph,
}
