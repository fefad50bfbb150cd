"""How long somebody waits for an operation, parts of which hang while the cluster does not answer.

A call that hangs cannot be ended. So the operation runs in the background, and whoever asked for it
is told after a while that nothing is done; it ends, with nothing decided, when that call is over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from bockd.errors import ClusterUnavailableError, UnavailableError
from bockd.runtime.steps import Signal, Spawn, Steps, Within, try_spawn
from bockd.runtime.waiting import Mutex

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 40.0
"""For one part of an operation, or for the turn of a volume. Whoever asked waits for an answer."""

_LOOK_SECONDS = 0.2
"""Between two looks how long the part lasts that is done now."""

WaitingFor = Callable[[str], AbstractContextManager[object]]
"""`Patience.waiting_for`; or `nullcontext`, for what nobody waits for."""


async def wait_for_turn(mutex: Mutex, turn: Signal, name: str) -> None:
    """Wait for a mutex, which the caller has joined, as long as it passes from one to the next.
    Raises ClusterUnavailableError: one has it for too long. `name` says what it is of."""
    passed = mutex.passed
    while not await Within(turn, PATIENCE_SECONDS):
        if mutex.passed == passed:
            raise ClusterUnavailableError(
                f"nothing is done, for an earlier operation on {name} is not done after "
                f"{PATIENCE_SECONDS:g} s; 'ceph -s' says how the Ceph cluster is. Try again in a "
                "while"
            )
        passed = mutex.passed


class Patience:
    """That of whoever waits for one operation."""

    def __init__(self, nothing_done: str) -> None:
        """`nothing_done` says what was not done, for the error."""
        self._nothing_done = nothing_done
        self._lock = threading.Lock()
        self._doing = ""
        self._since: float | None = None
        """By `time.monotonic`. None: what is done now has its own limit."""
        self._is_over = False

    @contextmanager
    def waiting_for(self, doing: str) -> Iterator[None]:
        """Limit how long is waited for the `with` block: only then may it be over. For any
        thread."""
        with self._lock:
            self._doing, self._since = doing, time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._since = None

    def check(self) -> None:
        """Raise ClusterUnavailableError if whoever asked was told that nothing is done: so it must
        not be done now. For any thread."""
        with self._lock:
            if self._is_over:
                raise self._error()

    async def answer(self, operation: Callable[[], Steps[None]], spawn: Spawn) -> None:
        """Run an operation in the background. Return when it has ended, or raise what it has
        raised. Raises ClusterUnavailableError: a part of it lasts too long; UnavailableError: it
        cannot be begun."""
        ended, is_done, errors = Signal(), False, list[Exception]()

        async def run() -> None:
            nonlocal is_done
            try:
                await operation()
                is_done = True
            except Exception as error:  # noqa: BLE001 - for whoever waits
                errors.append(error)
                if self._is_over:
                    log.warning("nobody waits any more: %s", error)
            finally:
                ended.fire()

        if not try_spawn(spawn, run()):
            raise UnavailableError(
                f"{self._nothing_done}: no thread can be started now, or bockd is about to end"
            )
        while not await Within(ended, _LOOK_SECONDS):
            self._look()
        if errors:
            raise errors[0]
        if not is_done:
            raise UnavailableError("bockd ends")

    def _look(self) -> None:
        with self._lock:
            if self._since is None or time.monotonic() - self._since < PATIENCE_SECONDS:
                return
            self._is_over = True
            raise self._error()

    def _error(self) -> ClusterUnavailableError:
        return ClusterUnavailableError(
            f"{self._nothing_done}, for {self._doing} is not done after {PATIENCE_SECONDS:g} s; it "
            "goes on, and 'ceph -s' says how the Ceph cluster is. Look again in a while"
        )
