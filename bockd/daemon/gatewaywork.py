"""The background work of a gateway of a pool in Ceph (bockd.drivers.rbd): it follows the index and
dumps it, sweeps, and flattens.

Each kind of work has one thread at a time. What fails is logged once and tried again. At the end
nobody waits for long: removing or flattening a large image may take hours, and can be cut off
anywhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

import trio

from bockd.drivers.rbd.imagestore import RbdImageStore
from bockd.drivers.rbd.session import Session
from bockd.drivers.rbd.sweep import PATIENCE, Patience, Sweep
from bockd.errors import BockdError

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 2.0
"""Between two looks at the index, which cost a tenth of a millisecond: what no client asks for, and
the file view, is not older; and a dump that is due begins."""

SWEEP_SECONDS = 600.0
FLATTEN_SECONDS = 60.0

END_SECONDS = 5.0
"""For threads that are at work at the end."""


def _now() -> float:
    """Return a time that no clock's change moves, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class GatewayWork:
    """The table of gateways and the background work of one gateway."""

    def __init__(
        self,
        session: Session,
        patience: Patience = PATIENCE,
        sweep_seconds: float = SWEEP_SECONDS,
        flatten_seconds: float = FLATTEN_SECONDS,
    ) -> None:
        self._index = session.index
        self.gateways = session.table
        self._store = RbdImageStore(session.settings)
        self.sweep = Sweep(session.index, self._store, session.settings.max_clone_depth, patience)
        self._sweep_seconds = sweep_seconds
        self._flatten_seconds = flatten_seconds
        self._put_off: dict[str, str] = {}
        self.followed_at = _now()
        """When what the index said was asked for that came last."""
        self._bus = session.bus
        self.heard_at = self.followed_at
        """When it was certain last that other gateways' questions come here."""
        self._at_work = 0
        self._idle = trio.Event()

    async def enter(self) -> None:
        """Write this gateway down in the table. Raises InUseError: another one with its name lives;
        BockdError."""
        await trio.to_thread.run_sync(self.gateways.enter)

    async def run(self) -> None:
        """Follow, sweep and flatten until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    self._repeat, "following the index", self._follow, FOLLOW_SECONDS
                )
                nursery.start_soon(self._repeat, "dumping the index", self._dump, FOLLOW_SECONDS)
                nursery.start_soon(
                    self._repeat, "removing leftovers", self.sweep.look, self._sweep_seconds
                )
                nursery.start_soon(
                    self._repeat, "flattening clones", self.sweep.flatten, self._flatten_seconds
                )
        finally:
            self.sweep.stopping = True

    async def leave(self) -> None:
        """Leave the table, and end what was begun. Errors are logged: the others find out."""
        self.sweep.stopping = True
        try:
            await trio.to_thread.run_sync(self.gateways.leave)
        except BockdError as error:
            log.warning("the other gateways were not told that this one ends: %s", error)
        with trio.move_on_after(END_SECONDS):
            while self._at_work:
                self._idle = trio.Event()
                await self._idle.wait()
        if not self._at_work:
            await trio.to_thread.run_sync(self._store.close)

    async def confirm(self) -> bool:
        """Commit a version of the index (`Gateways.confirm`), which is followed up to that then.
        Return False: that is not known."""
        try:
            await self._call(self.gateways.confirm)
        except BockdError as error:
            log.debug("no version of the index was committed: %s", error)
            return False
        return True

    def waiting(self) -> tuple[str, ...]:
        """Return what is under way or was put off, in words."""
        found = tuple(f"{what}: {why}" for what, why in self._put_off.items())
        if (flattening := self.sweep.flattening) is not None:
            return (*found, f"flattening {flattening}")
        return found

    def silent_seconds(self) -> float:
        """Return for how long the cluster has not told this gateway what the index says, or what
        other gateways ask, whichever is longer."""
        return _now() - min(self.followed_at, self.heard_at)

    def _follow(self) -> None:
        asked_at = _now()
        self._index.refresh()
        self.followed_at = asked_at
        asked_at = _now()
        if (silent := self._bus.silent_seconds()) is not None:
            self.heard_at = max(self.heard_at, asked_at - silent)

    def _dump(self) -> None:
        """Not while following: it may take long, and `silent_seconds` is to tell of silence."""
        if self._index.dump_due:
            self._index.dump()

    async def _repeat(self, what: str, work: Callable[[], object], pause_seconds: float) -> None:
        while True:
            try:
                await self._call(work)
            except BockdError as error:
                if self._put_off.get(what) != str(error):
                    log.warning("%s is put off: %s", what, error)
                self._put_off[what] = str(error)
            except Exception:
                # It is nobody else's trouble: volumes are served.
                log.exception("%s failed", what)
            else:
                if self._put_off.pop(what, None) is not None:
                    log.info("%s: it was put off, and goes on", what)
            await trio.sleep(pause_seconds)

    async def _call(self, work: Callable[[], object]) -> None:
        """Run work in a thread. It is left alone when this is cancelled; `leave` waits for it."""
        token = trio.lowlevel.current_trio_token()

        def ended() -> None:
            self._at_work -= 1
            if not self._at_work:
                self._idle.set()

        def call() -> None:
            try:
                work()
            finally:
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(ended)

        self._at_work += 1
        await trio.to_thread.run_sync(call, abandon_on_cancel=True)
