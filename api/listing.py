"""Long lists, looked up, written as JSON and sent a few items at a time; others are served in
between."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bockd.blockstorage.contract import EVERYTHING, Page
from bockd.runtime.pace import Pace

PIECE = 20
"""Items that are looked up and shown at once: about a millisecond in which no disk is served."""

SENT_BYTES = 128 << 10
"""Of an answer that are joined and sent at once: some tenths of a millisecond."""

JSON = "application/json"


class Listed(Protocol):
    """What block storage lists."""

    @property
    def id(self) -> int: ...

    @property
    def display_name(self) -> str | None: ...


T = TypeVar("T")
L = TypeVar("L", bound=Listed)
Fetch = Callable[[Page], Awaitable[Sequence[L]]]


async def each_piece(
    fetch: Fetch[L], take: Callable[[Sequence[L]], None], page: Page = EVERYTHING
) -> None:
    """Have `take` called with what `page` names of what `fetch` finds, piece by piece.

    Each piece begins after the last id of the one before, so that what is created or deleted
    meanwhile neither repeats nor hides anything else. Names and offsets are judged here: what looks
    for one of ten thousand, or passes over them, would hold up everybody.
    """
    pace, left, offset, marker = Pace(), page.limit or None, page.offset, page.marker
    while True:
        is_all_shown = page.display_name is None and not offset
        wanted = PIECE if left is None or not is_all_shown else min(PIECE, left)
        found = await fetch(Page(limit=wanted, marker=marker))
        named = [one for one in found if page.display_name in (None, one.display_name)]
        shown = named[offset:][:left]
        take(shown)
        offset = max(0, offset - len(named))
        if left is not None:
            left -= len(shown)
        if len(found) < wanted or left == 0:
            return
        marker = found[-1].id
        await pace.step()


def items(found: Iterable[object]) -> bytes:
    """Return the items of a JSON array, without its brackets."""
    return msgspec.json.encode(list(found))[1:-1]


class JsonArray:
    """A JSON array in the making, as pieces of SENT_BYTES or a little more."""

    def __init__(self, before: bytes = b"") -> None:
        """`before` comes first."""
        self._pieces: list[bytes] = []
        self._parts = [before + b"["]
        self._bytes = 0
        self._is_empty = True

    def add(self, some: bytes) -> None:
        """Add what `items` has made, which may be nothing."""
        if not some:
            return
        self._parts += [some] if self._is_empty else [b",", some]
        self._is_empty = False
        self._bytes += len(some)
        if self._bytes >= SENT_BYTES:
            self._join()

    def _join(self) -> None:
        self._pieces.append(b"".join(self._parts))
        self._parts, self._bytes = [], 0

    def end(self, after: bytes = b"") -> list[bytes]:
        """Return all of it, with `after` behind it."""
        self._parts.append(b"]" + after)
        self._join()
        return self._pieces


async def encode_all(found: Iterable[T], show: Callable[[T], object]) -> list[bytes]:
    """Return the JSON array of what `show` makes of items that are there already, in pieces.

    Who calls this keeps no reference to them: each is freed when it was written. To free thousands
    of them at once takes milliseconds, too.
    """
    pace, made, left = Pace(), JsonArray(), deque(found)
    del found
    while left:
        made.add(items([show(left.popleft()) for _ in range(min(PIECE, len(left)))]))
        await pace.step()
    return made.end()


def with_arrays(record: object, **arrays: list[bytes]) -> list[bytes]:
    """Return the JSON object of a record, which has a field, and of arrays, in pieces."""
    pieces = [msgspec.json.encode(record)[:-1]]
    for name, array in arrays.items():
        pieces += [b',"%s":' % name.encode(), *array]
    return [*pieces, b"}"]


class PiecesResponse(Response):
    """An answer that is there as a whole, and sent in pieces: others are served in between."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        """It is JSON."""
        super().__init__(media_type=JSON)
        self._pieces = pieces
        self.headers["content-length"] = str(sum(map(len, pieces)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def answer_array(found: Iterable[object]) -> Response:
    """Return the answer that is the JSON array of records, which are freed as by `encode_all`."""
    encoding = encode_all(found, lambda one: one)
    del found
    return PiecesResponse(await encoding)


def answer_record(record: object) -> Response:
    """Return the answer that is one record, which may hold many others: faster than FastAPI's own
    way, by some hundred times."""
    return Response(msgspec.json.encode(record), media_type=JSON)
