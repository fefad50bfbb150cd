"""Runs the engine's steps (bockd.runtime.steps) on nbdkit's threads.

Whoever holds the lock is the owner thread. It is given up for as long as a blocking call or a
signal takes, so requests overlap exactly where the engine allows it, and every request runs on the
thread that nbdkit gave it. Background work has threads of its own: one each, because it may wait
for something else that is going on in the background.
"""

from __future__ import annotations

import logging
import threading
from typing import TypeVar

from bockd.runtime.steps import Blocking, Step, Steps, Within

log = logging.getLogger(__name__)
T = TypeVar("T")


class Owner:
    """The lock, and what runs in the background."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._background: set[threading.Thread] = set()

    def run(self, steps: Steps[T]) -> T:
        """Run an operation to its end; raises what it raises. Without the lock."""
        with self.lock:
            return self.finish(steps)

    def finish(self, steps: Steps[T]) -> T:
        """Run an operation as `run` does, for a caller that holds the lock and holds it again at
        the end."""
        try:
            step = steps.send(None)
            while True:
                try:
                    result = self._do(step)
                except Exception as error:  # noqa: BLE001 - handed to its rightful owner
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            value: T = done.value
            return value

    def _do(self, step: Step) -> object:
        fired = threading.Event()
        signal = step.signal if isinstance(step, Within) else step
        if not isinstance(signal, Blocking):
            signal.subscribe(fired.set)
        self.lock.release()
        try:
            if not isinstance(step, Blocking):
                fired.wait(step.seconds if isinstance(step, Within) else None)
                return None
            result: object = step.call()
            return result
        finally:
            self.lock.acquire()
            if isinstance(step, Within):
                step.signal.unsubscribe(fired.set)

    def spawn(self, steps: Steps[None]) -> None:
        """Run an operation in the background: what the engine is given. With the lock."""
        thread = threading.Thread(target=self._work, args=(steps,), name="bockd", daemon=True)
        try:
            thread.start()  # it waits for the lock before it ends
        except RuntimeError:  # there can be no more threads
            steps.close()
            raise
        self._background.add(thread)

    def _work(self, steps: Steps[None]) -> None:
        try:
            self.run(steps)
        except Exception:
            log.exception("background work failed")
        finally:
            with self.lock:
                self._background.discard(threading.current_thread())

    def wait_for_background(self) -> None:
        """Return when nothing runs in the background. Without the lock."""
        while True:
            with self.lock:
                threads = list(self._background)
            if not threads:
                return
            for thread in threads:
                thread.join()
