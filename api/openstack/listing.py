"""Answers to lists, which may be long: made piece by piece, with others served in between.

Without `limit` a list is whole, however long: the clients of 2012 know no pages. There are no links
to a next page either, as in version 1 of Cinder's API: its client would follow them to the end
whatever limit it was given, one level of recursion deeper for each page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from starlette.responses import Response

from api.listing import Fetch, JsonArray, Listed, PiecesResponse, each_piece, items
from bockd.blockstorage.contract import Page

L = TypeVar("L", bound=Listed)
View = Callable[[L], Mapping[str, object]]


async def answer_list(key: str, page: Page, fetch: Fetch[L], view: View[L]) -> Response:
    """Return the answer `{key: [...]}` with what `page` names of what `fetch` finds.

    It comes as a whole and with its length, so that what goes wrong on the way is a fault.
    """
    made = JsonArray(b'{"%s":' % key.encode())

    def take(found: Sequence[L]) -> None:
        made.add(items(map(view, found)))

    await each_piece(fetch, take, page)
    return PiecesResponse(made.end(b"}"))
