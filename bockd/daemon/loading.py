"""The code of the HTTP frontends, imported once the daemon is ready.

FastAPI, Hypercorn and the models of the APIs take as long as all else of a start does, and NBD
clients need none of it: those that lost a daemon wait for the next one. So the sockets of the APIs
listen from the beginning, and who connects to them early waits until this is done. It is not put
off until somebody connects, because an update of the package may have replaced the files by then.
"""

from __future__ import annotations

from importlib import import_module

import trio

from bockd.daemon import heap

HTTP_FRONTENDS = "bockd.daemon.httpfrontends"


class Loading:
    """Imports `bockd.daemon.httpfrontends` and what that imports."""

    def __init__(self) -> None:
        self._done = trio.Event()

    async def run(self) -> None:
        """Import it in a thread, which is left behind if this is cancelled: the disk that has the
        files may hang. Raises what the import raises, and the daemon ends: without its APIs nobody
        could see or change anything of it."""
        await trio.to_thread.run_sync(_load, abandon_on_cancel=True)
        self._done.set()

    async def done(self) -> None:
        """Return when it can be imported without delay."""
        await self._done.wait()


def _load() -> None:
    import_module(HTTP_FRONTENDS)
    heap.settle()
