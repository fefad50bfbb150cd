"""Answers to lists, which may be long: made piece by piece, with others served in between.

Without `limit` a list is whole, however long: the clients of 2012 know no pages. There are no links
to a next page either, as in version 1 of Cinder's API: its client would follow them to the end
whatever limit it was given, one level of recursion deeper for each page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

import msgspec
import trio
from starlette.responses import Response

from bockd.blockstorage.contract import Page

PIECE = 100
"""Items that are looked up and shown at once: some 4 ms, during which no disk is served."""

JSON = "application/json"


class Listed(Protocol):
    """What lists are made of."""

    @property
    def id(self) -> int: ...


T = TypeVar("T", bound=Listed)
Fetch = Callable[[Page], Awaitable[Sequence[T]]]
View = Callable[[T], Mapping[str, object]]


async def answer_list(key: str, page: Page, fetch: Fetch[T], view: View[T]) -> Response:
    """Return the answer `{key: [...]}` with what `page` names of what `fetch` finds.

    It comes as a whole and with its length, so that what goes wrong on the way is a fault.
    """
    pieces = _Pieces(key, page, fetch, view)
    made = [await pieces.make()]
    while not pieces.ended:
        await trio.lowlevel.checkpoint()
        made.append(await pieces.make())
    return Response(b"".join(made), media_type=JSON)


class _Pieces(Generic[T]):
    """The body of an answer, piece by piece.

    Each piece begins after the last id of the one before, so that what is created or deleted
    meanwhile neither repeats nor hides anything else.
    """

    def __init__(self, key: str, page: Page, fetch: Fetch[T], view: View[T]) -> None:
        self._page = page
        self._left = page.limit or None
        self._fetch = fetch
        self._view = view
        self._before = b'{"%s":[' % key.encode()
        self.ended = False

    async def make(self) -> bytes:
        """Return the next piece; `ended` says whether it is the last."""
        wanted = PIECE if self._left is None else min(PIECE, self._left)
        found = await self._fetch(replace(self._page, limit=wanted))
        items = msgspec.json.encode([self._view(one) for one in found])[1:-1]
        piece = self._before + items if items else self._before.removesuffix(b",")
        self._before = b","
        if self._left is not None:
            self._left -= len(found)
        self.ended = len(found) < wanted or self._left == 0
        if self.ended:
            return piece + b"]}"
        self._page = replace(self._page, marker=found[-1].id, offset=0)
        return piece
