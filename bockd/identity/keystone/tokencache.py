"""What Keystone said about tokens a moment ago, cached for a short time.

Only that a token is valid is cached, and never for longer than it is valid: a token that becomes
valid is accepted at once, and one that is revoked is accepted for no longer than the time that the
configuration names. Only the SHA-256 of a token is kept, so nobody who sees the cache can use it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from bockd.identity.contract import Principal

MAX_ENTRIES = 10_000
"""Tokens: some 10 MB. Beyond, the one that was not used for longest is asked about again."""


@dataclass(frozen=True, slots=True)
class _Entry:
    principal: Principal
    until: float
    """In the time of `elapsed`."""


class TokenCache:
    """A cache of valid tokens, bounded in number and in time."""

    def __init__(self, seconds: float, elapsed: Callable[[], float]) -> None:
        """`elapsed` is a clock that never jumps."""
        self._seconds = seconds
        self._elapsed = elapsed
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def find(self, token: str) -> Principal | None:
        """Return the principal of a token, or None when the token is not cached."""
        digest = _digest(token)
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if entry.until <= self._elapsed():
            del self._entries[digest]
            return None
        self._entries.move_to_end(digest)
        return entry.principal

    def keep(self, token: str, principal: Principal) -> None:
        """Cache that the token is this principal's."""
        if self._seconds <= 0:
            return
        digest = _digest(token)
        self._entries[digest] = _Entry(principal, self._elapsed() + self._seconds)
        self._entries.move_to_end(digest)
        if len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)

    def forget(self, token: str) -> None:
        """Remove a token from the cache."""
        self._entries.pop(_digest(token), None)

    def __len__(self) -> int:
        return len(self._entries)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
