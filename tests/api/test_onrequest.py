"""Applications that are built when they are asked."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing
from starlette.types import ASGIApp, Receive, Scope, Send

from api.onrequest import OnRequest


class Asked:
    """An application, how often it was built and asked, and what its building waits for."""

    def __init__(self) -> None:
        self.built = 0
        self.paths: list[str] = []
        self.failures: list[Exception] = []
        self.may_be_built = threading.Event()

    def build(self) -> ASGIApp:
        assert self.may_be_built.wait(60)
        self.built += 1
        if self.failures:
            raise self.failures.pop()
        return self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])


async def ask(app: ASGIApp, path: str) -> None:
    async def receive() -> dict[str, object]:
        raise AssertionError

    async def send(message: object) -> None:
        raise AssertionError

    await app({"type": "http", "path": path}, receive, send)


def test_it_is_built_once_and_while_others_are_served() -> None:
    asked = Asked()
    app = OnRequest(asked.build)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, app, "/a")
            nursery.start_soon(ask, app, "/b")
            await trio.testing.wait_all_tasks_blocked()
            asked.may_be_built.set()
        await ask(app, "/c")

    assert asked.built == 0
    trio.run(run)

    assert asked.built == 1
    assert sorted(asked.paths) == ["/a", "/b", "/c"]


def test_what_could_not_be_built_is_built_by_the_next_request() -> None:
    asked = Asked()
    asked.may_be_built.set()
    asked.failures.append(OSError("no memory"))
    app = OnRequest(asked.build)

    with pytest.raises(OSError, match="no memory"):
        trio.run(ask, app, "/a")
    trio.run(ask, app, "/b")

    assert asked.built == 2
    assert asked.paths == ["/b"]
