"""Requests that wait for the time that a device profile says (bockd.profiles).

pyfuse3 answers a request from the task that has taken it, so one that waits occupies a task of the
view, which all volumes share. At most MAX_DELAYED wait at once, fewer than there are tasks: so a
device that is stuck keeps nobody from the files of others. When more would wait, an answer goes out
early: of the volume that has most of them the one whose time is nearest.
"""

from __future__ import annotations

import trio

from bockd.fuse.limits import MAX_DELAYED
from bockd.profiles.device import Plan
from bockd.throttle.gates import Gate


class Delays:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._waiting: dict[Gate, dict[trio.CancelScope, int]] = {}
        """When which request is due."""
        self._count = 0

    async def due(self, gate: Gate, plan: Plan) -> None:
        """Wait until a request may be answered, as `Gate.due` does, or until there is no room for
        it among those that wait."""
        with trio.CancelScope() as scope:
            waiting = self._waiting.setdefault(gate, {})
            waiting[scope] = plan.due_ns
            self._count += 1
            try:
                if self._count > MAX_DELAYED:
                    self._answer_one()
                await gate.due(plan)
            finally:
                self._count -= 1
                del waiting[scope]
                if not waiting:
                    del self._waiting[gate]

    def _answer_one(self) -> None:
        """Have a request wait no more. One that was told so and did not run since counts no
        more."""
        most = max(self._waiting.values(), key=len)
        left = [scope for scope in most if not scope.cancel_called]
        if left:
            min(left, key=most.__getitem__).cancel()
