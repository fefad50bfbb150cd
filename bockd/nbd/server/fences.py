"""How far one connection has come with what its client has sent, and the fences that wait for it.

A fence is passed when all bytes have been served that had come when it was set up: by then the
requests among them have begun.
"""

from __future__ import annotations

import trio

_ALL = 1 << 63
"""More bytes than any connection receives."""


class Fences:
    """See the module's docstring. Whoever receives adds to `received_bytes`."""

    __slots__ = ("_served_bytes", "_waiting", "received_bytes")

    def __init__(self) -> None:
        self.received_bytes = 0
        self._served_bytes = 0
        self._waiting: list[tuple[int, trio.Event]] = []
        """At which byte, and who."""

    def served(self, but: int = 0) -> None:
        """Note that all is served that was received, `but` so many bytes."""
        self._served_bytes = self.received_bytes - but
        if self._waiting:
            self._pass()

    def _pass(self) -> None:
        for target, event in self._waiting:
            if target <= self._served_bytes:
                event.set()
        self._waiting = [fence for fence in self._waiting if not fence[1].is_set()]

    def all_served(self, unread_bytes: int) -> bool:
        """Return whether all is served that was received, and the bytes that are still unread."""
        return self._served_bytes >= self.received_bytes + unread_bytes

    async def reached(self, unread_bytes: int) -> None:
        """Wait until all is served that was received by now, and the bytes that are still
        unread."""
        if not self.all_served(unread_bytes):
            event = trio.Event()
            self._waiting.append((self.received_bytes + unread_bytes, event))
            await event.wait()

    def pass_all(self) -> None:
        """Let those pass who wait: there is nothing for them to wait for."""
        for _, event in self._waiting:
            event.set()
        self._waiting.clear()

    def end(self) -> None:
        """Let everybody pass from now on: nothing more is served."""
        self._served_bytes = _ALL
        self.pass_all()
