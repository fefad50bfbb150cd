"""Long lists: piece by piece, whole and in order, with others served in between."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pytest
from starlette.types import Message

from api.listing import PIECE, SENT_BYTES, answer_array, each_piece, encode_all
from bockd.blockstorage import rules
from bockd.blockstorage.contract import Page
from tests.nbd.server.serving import in_trio
from tests.runtime.turns import counting_turns

MANY = 10 * PIECE + 3


@dataclass(frozen=True)
class Item:
    """What is listed."""

    id: int
    display_name: str = "same"


ITEMS = [Item(2 * number) for number in range(1, MANY + 1)]


async def fetch(page: Page) -> Sequence[Item]:
    """As block storage does."""
    return rules.cut_page(ITEMS, page)


@pytest.mark.parametrize(
    "page",
    [
        Page(),
        Page(limit=0),
        Page(limit=1),
        Page(limit=PIECE),
        Page(limit=PIECE + 1),
        Page(limit=MANY),
        Page(limit=3 * PIECE, marker=5, offset=7),
        Page(offset=MANY - 1),
        Page(offset=MANY),
        Page(marker=2 * MANY),
        Page(display_name="same", offset=PIECE),
        Page(display_name="same", offset=PIECE + 3, limit=PIECE + 2),
        Page(display_name="other"),
    ],
    ids=str,
)
@in_trio
async def test_pieces_are_what_the_page_names(page: Page) -> None:
    found: list[Item] = []
    await each_piece(fetch, found.extend, page)
    assert found == await fetch(page)


@pytest.mark.parametrize("page", [Page(display_name="other"), Page(offset=MANY), Page(limit=1)])
@in_trio
async def test_no_more_is_looked_at_in_one_go_than_is_shown(page: Page) -> None:
    """However many are passed over before the first that is shown."""
    asked: list[Page] = []

    async def noted(part: Page) -> Sequence[Item]:
        asked.append(part)
        return await fetch(part)

    await each_piece(noted, lambda _: None, page)
    assert all(part == Page(limit=part.limit, marker=part.marker) for part in asked)
    assert {part.limit for part in asked} == {1 if page.limit else PIECE}


@pytest.mark.parametrize("count", [0, 1, PIECE, PIECE + 1, MANY])
@in_trio
async def test_an_array_is_whole(count: int) -> None:
    encoded = b"".join(await encode_all(ITEMS[:count], lambda one: {"id": one.id}))
    assert msgspec.json.decode(encoded) == [{"id": one.id} for one in ITEMS[:count]]


@in_trio
async def test_what_is_written_is_freed_meanwhile() -> None:
    """To free thousands of records at once holds the loop, too."""
    alive: weakref.WeakSet[Item] = weakref.WeakSet()
    most = 0

    def show(one: Item) -> int:
        nonlocal most
        alive.add(one)
        most = max(most, len(alive))
        return one.id

    await encode_all((Item(number) for number in range(MANY)), show)
    assert most == 1
    await encode_all([Item(number) for number in range(MANY)], show)
    assert (most, len(alive)) == (1, 0)


@in_trio
async def test_an_answer_is_sent_in_pieces() -> None:
    """A server lets others have their turn after each."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is to be received")

    text = "x" * 1000
    count = 5 * SENT_BYTES // len(text)
    answer = await answer_array([text] * count)
    await answer({"type": "http"}, receive, send)
    start, *body = sent
    bodies = [one["body"] for one in body]
    assert [one["more_body"] for one in body] == [True] * (len(body) - 1) + [False]
    assert len(bodies) >= 5
    assert max(map(len, bodies)) <= SENT_BYTES + 2 * PIECE * len(text)
    assert msgspec.json.decode(b"".join(bodies)) == [text] * count
    assert dict(start["headers"])[b"content-length"] == b"%d" % sum(map(len, bodies))


@in_trio
async def test_the_loop_turns_after_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    async with counting_turns(monkeypatch) as turns:
        await each_piece(fetch, lambda _: None)
        after_looking = turns.count
        await encode_all(ITEMS, lambda one: one)
        assert after_looking >= MANY // PIECE - 1
        assert turns.count - after_looking >= MANY // PIECE - 1
