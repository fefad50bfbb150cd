"""Background work of the engine: begun when somebody gives cause, and finished before the pool is
given up."""

from __future__ import annotations

import logging

import trio

from bockd import logcontext
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Steps

log = logging.getLogger(__name__)


class BackgroundWork:
    """Runs it in a nursery that the daemon opens. For the owner thread."""

    def __init__(self, runner: StepRunner) -> None:
        self.nursery: trio.Nursery
        """Open while the pool is."""
        self._runner = runner

    def spawn(self, steps: Steps[None]) -> None:
        """Begin a piece of work."""
        self.nursery.start_soon(self._finish, steps)

    async def _finish(self, steps: Steps[None]) -> None:
        """One piece's trouble is logged, and is nobody else's."""
        # It outlives whoever gave cause for it, and is about others, too.
        logcontext.clear()
        try:
            await self._runner.run(steps)
        except Exception:
            log.exception("background work failed")
