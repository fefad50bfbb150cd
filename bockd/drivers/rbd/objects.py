"""What the log needs of RADOS: one object with keys that change together, and objects with bytes.

Everything here blocks, and any thread may call it. Every method that changes something may raise
NoAnswerError; the change may then have been made, may be made later, or never.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from bockd.errors import ClusterUnavailableError, NotFoundError


class NoAnswerError(ClusterUnavailableError):
    """The cluster did not answer in time. What was to be changed may be changed yet."""


class NoIndexError(NotFoundError):
    """There is no index object."""


class Seen(NamedTuple):
    """The keys of the index object at one instant."""

    values: dict[str, bytes]
    """Of the keys that were asked for, those that are there."""
    listed: list[tuple[str, bytes]]
    """Keys behind `after` that begin with `prefix`, in order."""


class Change(NamedTuple):
    """A change of the index object: all of it, or nothing if a comparison fails."""

    compare: Mapping[str, bytes]
    """What keys must hold. One that is missing holds nothing."""
    put: Mapping[str, bytes]
    remove: tuple[str, ...] = ()
    remove_range: tuple[str, str] | None = None
    """First key to remove, and the first one to keep."""


class Objects(Protocol):
    """The objects of one namespace.

    Everything may raise BockdErrors beside those that are named. After one that is no
    NoAnswerError nothing was changed, and nothing will be.
    """

    def create(self, values: Mapping[str, bytes]) -> bool:
        """Make the index object with these keys. Return False if it was there already."""
        ...

    def look(self, keys: tuple[str, ...], prefix: str, after: str, limit: int) -> Seen:
        """Look at the index object. Fewer than `limit` keys may be listed though there are more.
        Raises NoIndexError: there is no index object."""
        ...

    def change(self, change: Change) -> bool:
        """Change the index object. Return False if a comparison failed: usually nothing was
        changed, but the change may also have been made before, and this be the answer to its
        repetition. Raises NoIndexError: there is no index object."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write an object with bytes, all of it."""
        ...

    def read(self, name: str, limit: int) -> bytes | None:
        """Read the first `limit` bytes of an object. None: there is no such object."""
        ...

    def exists(self, name: str) -> bool:
        """Return whether there is an object of that name."""
        ...

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        ...
