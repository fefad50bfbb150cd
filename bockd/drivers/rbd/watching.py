"""A watch of an object whose messages are acknowledged later, in any order and by any thread.

Ceph's Python module makes one callback after the other on a connection, and acknowledges a message
when its callback returns. Here the message is taken before the module makes that callback. Who has
dealt with it has it made, and so the acknowledgement sent.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from bockd.drivers.rbd.binding import rados
from bockd.drivers.rbd.errors import CEPH_ERRORS, named
from bockd.drivers.rbd.inquiry import boot_seconds

log = logging.getLogger(__name__)

Acknowledge = Callable[[], None]
"""Lets whoever has sent a message go on, once all others have acknowledged it, too. For any thread;
it waits for nothing, and does nothing once the watch has ended."""

OnMessage = Callable[[bytes, Acknowledge], None]
"""Called in a thread of Ceph's with each message. It must not wait."""


class Watching:
    """A watch, from when it is made to `close`."""

    def __init__(
        self,
        ioctx: rados.Ioctx,
        name: str,
        on_message: OnMessage,
        on_loss: Callable[..., None],
        seconds: int,
    ) -> None:
        """Watch an object. `seconds` is how long the watch outlives its network. Blocks. Raises
        BockdError."""
        self._lock = threading.Lock()
        self._ended = False
        acknowledge = self._acknowledge

        class Watch(rados.Watch):  # type: ignore[misc] # the module has no types
            def _callback(self, *details: Any) -> None:
                message = details[3] or b""
                on_message(message, lambda: acknowledge(super(Watch, self)._callback, details))

        with named(f"watching {name}"):
            self._watch = Watch(ioctx, name, _nothing, on_loss, seconds)
        self.made_at = boot_seconds()
        """By a clock that goes on while the machine sleeps."""

    def _acknowledge(self, callback: Callable[..., None], details: tuple[Any, ...]) -> None:
        with self._lock:
            if not self._ended:
                callback(*details)

    def silent_seconds(self) -> float | None:
        """Return how long ago the cluster has confirmed that the watch is one; some seconds are
        usual, as it is asked every five (Ceph 16.2). None: it is lost, or has ended."""
        with self._lock:
            if self._ended:
                return None
            try:
                age: timedelta = self._watch.check()
            except CEPH_ERRORS as error:
                log.debug("a watch is lost: %s", error)
                return None
        return age.total_seconds()

    def close(self) -> None:
        """End it, once `on_message` has returned where it was called. Blocks."""
        with self._lock:
            self._ended = True
        try:
            self._watch.close()
        except CEPH_ERRORS as error:
            # It may be lost; then it is ended already. The module would end it once more when it
            # drops the object, by a pointer to what librados has freed (Ceph 16.2): it never does.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._watch))
            log.debug("ending a watch: %s", error)


def _nothing(*_details: object) -> None:
    """Add nothing to an acknowledgement."""
