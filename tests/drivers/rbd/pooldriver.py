"""A pool in the tests' cluster, for the contract suite and for tests with several gateways."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bockd.config.rbd import RbdSettings
from bockd.errors import BockdError
from bockd.runtime.steps import Background, Steps, run_inline
from tests.pool.opendriver import OpenDriver

if TYPE_CHECKING:
    from bockd.drivers.rbd.pool import RbdPool

T = TypeVar("T")


class RbdDriver(OpenDriver):
    """A pool in a namespace. What other gateways ask of it is done in the thread that asks."""

    def __init__(self, settings: RbdSettings, directory: Path) -> None:
        super().__init__(directory)
        self.settings = settings
        self._background = Background()
        self._dead: list[RbdPool] = []
        self.pool = self.rbd = self._open()

    def _open(self) -> RbdPool:
        from bockd.drivers.rbd.pool import RbdPool  # only where Ceph's modules are

        # Two runs do not have one directory at once, but here the dead one still has its own.
        replica = self._directory / f"run{len(self._dead)}"
        return RbdPool.open(self.settings, replica, self._background.spawn, self._post)

    def _post(self, function: Callable[[], object]) -> None:
        function()
        self._background.run()

    def run(self, steps: Steps[T]) -> T:
        """Run an operation to its end, and what it gave the background to do."""
        try:
            return run_inline(steps)
        finally:
            self._background.run()
            self.rbd.session.removals.wait()

    def die_and_open(self) -> None:
        """Forget the pool with all that is open, and open it anew. Its next run does not ask it."""
        self._dead.append(self.rbd)
        self.pool = self.rbd = self._open()

    def close(self) -> None:
        """End the pool in order, and then those that died."""
        super().close()
        for pool in self._dead:
            with suppress(BockdError):
                run_inline(pool.close_all())
            pool.release()
