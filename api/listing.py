"""Long lists, looked up and written as JSON a few items at a time; others are served in between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol, TypeVar

import msgspec
from starlette.responses import Response

from bockd.blockstorage.contract import EVERYTHING, Page
from bockd.runtime.pace import Pace

PIECE = 20
"""Items that are looked up and shown at once: about a millisecond in which no disk is served."""

JSON = "application/json"


class Listed(Protocol):
    """What block storage lists."""

    @property
    def id(self) -> int: ...


T = TypeVar("T")
L = TypeVar("L", bound=Listed)
Fetch = Callable[[Page], Awaitable[Sequence[L]]]


async def each_piece(
    fetch: Fetch[L], take: Callable[[Sequence[L]], None], page: Page = EVERYTHING
) -> None:
    """Have `take` called with what `page` names of what `fetch` finds, piece by piece.

    Each piece begins after the last id of the one before, so that what is created or deleted
    meanwhile neither repeats nor hides anything else.
    """
    pace, left = Pace(), page.limit or None
    while True:
        wanted = PIECE if left is None else min(PIECE, left)
        found = await fetch(replace(page, limit=wanted))
        take(found)
        if left is not None:
            left -= len(found)
        if len(found) < wanted or left == 0:
            return
        page = replace(page, marker=found[-1].id, offset=0)
        await pace.step()


def items(found: Iterable[object]) -> bytes:
    """Return the items of a JSON array, without its brackets."""
    return msgspec.json.encode(list(found))[1:-1]


def array(pieces: Iterable[bytes]) -> bytes:
    """Return a JSON array of pieces that `items` has made; some may be empty."""
    return b"[%s]" % b",".join(piece for piece in pieces if piece)


async def encode_all(found: Iterable[T], show: Callable[[T], object]) -> bytes:
    """Return the JSON array of what `show` makes of items that are there already."""
    pace, pieces, left = Pace(), list[bytes](), iter(found)
    while piece := list(islice(left, PIECE)):
        pieces.append(items(map(show, piece)))
        await pace.step()
    return array(pieces)


async def answer_array(found: Iterable[object]) -> Response:
    """Return the answer that is the JSON array of records."""
    return Response(await encode_all(found, lambda one: one), media_type=JSON)


def answer_record(record: object) -> Response:
    """Return the answer that is one record, which may hold many others: faster than FastAPI's own
    way, by some hundred times."""
    return Response(msgspec.json.encode(record), media_type=JSON)
