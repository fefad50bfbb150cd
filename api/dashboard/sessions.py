"""Who may use the dashboard: whoever had a one-time link, for as long as a session lasts.

A link's secret admits one browser once and becomes a session, whose secret is the browser's cookie.
Both are random, end by themselves and are kept in memory only, as hashes; a restart ends all.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

import trio

LINK_SECONDS = 120
"""From the command that prints a link to the browser that opens it: a copy and a paste."""

SESSION_SECONDS = 12 * 3600
"""A working day, however busy the browser is."""

MAX_LINKS = 8
MAX_SESSIONS = 16
"""Operators and their devices. One more replaces the oldest, so memory is bounded."""

SECRET_BYTES = 32

NAME_CHARACTERS = 8
"""Enough to tell sessions apart, and of a hash: it leads to no secret."""


class Sessions:
    """The links that nobody has used yet, and the sessions."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._links: dict[bytes, float] = {}
        self._sessions: dict[bytes, float] = {}
        """Each with the time when it ends, the oldest first."""
        self._changed = trio.Event()

    def new_link(self) -> str:
        """Return the secret of a new link."""
        return self._add(self._links, MAX_LINKS, LINK_SECONDS)

    def enter(self, link: str) -> str | None:
        """Use up a link. Return the secret of a new session, or None if there is no such link."""
        self._forget_ended()
        if self._links.pop(_hash(link), None) is None:
            return None
        return self._add(self._sessions, MAX_SESSIONS, SESSION_SECONDS)

    def knows(self, session: str) -> bool:
        """Return whether a session with this secret lasts."""
        self._forget_ended()
        return _hash(session) in self._sessions

    def name_of(self, session: str) -> str:
        """Return the name of a session, for the log: it tells it from others, and is no secret."""
        return _hash(session).hex()[:NAME_CHARACTERS]

    def leave(self, session: str) -> None:
        """End a session, if it lasts."""
        self._sessions.pop(_hash(session), None)
        self._announce()

    async def until_none(self) -> None:
        """Return when there is neither a link nor a session."""
        while True:
            self._forget_ended()
            ends = [*self._links.values(), *self._sessions.values()]
            if not ends:
                return
            with trio.move_on_after(max(0.0, min(ends) - self._clock())):
                await self._changed.wait()

    def _add(self, into: dict[bytes, float], most: int, seconds: float) -> str:
        self._forget_ended()
        while len(into) >= most:
            del into[next(iter(into))]
        secret = secrets.token_urlsafe(SECRET_BYTES)
        into[_hash(secret)] = self._clock() + seconds
        self._announce()
        return secret

    def _forget_ended(self) -> None:
        now = self._clock()
        for kept in (self._links, self._sessions):
            for one in [one for one, end in kept.items() if end <= now]:
                del kept[one]

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _hash(secret: str) -> bytes:
    """How long the search for a hash takes says nothing of the secrets that exist."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
