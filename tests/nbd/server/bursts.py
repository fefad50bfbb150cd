"""A device elsewhere: whatever it is asked ends later, in bursts, in other threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from bockd.drivers.memory.device import MemoryDevice
from bockd.runtime.steps import Completion, blocking


class BurstDevice(MemoryDevice):
    """Each operation waits for a completion before it takes effect."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.immediate = False
        self.pending: list[Completion[None]] = []
        """In the order in which they came."""
        self.then_blocking = False
        """Switch: True has operations make a blocking call behind their completion."""

    async def read(self, offset: int, into: memoryview) -> None:
        await self._wait()
        await super().read(offset, into)

    async def write(self, offset: int, data: memoryview) -> None:
        await self._wait()
        await super().write(offset, data)

    async def flush(self) -> None:
        await self._wait()
        await super().flush()

    async def _wait(self) -> None:
        completion = Completion[None]()
        self.pending.append(completion)
        await completion
        if self.then_blocking:
            await blocking(int)

    def end(self, places: Sequence[int] | None = None) -> None:
        """End what is pending, or some of it, in another thread. Returns when it has ended; the
        loop has not run meanwhile."""
        chosen = range(len(self.pending)) if places is None else places
        ending = [self.pending[place] for place in chosen]
        self.pending = [one for one in self.pending if one not in ending]

        def run() -> None:
            for one in ending:
                one.finish(None)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
