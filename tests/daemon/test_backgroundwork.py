"""Background work outlives who gave cause for it."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from bockd import logcontext
from bockd.daemon.backgroundwork import BackgroundWork
from bockd.runtime.steprunner import StepRunner
from tests.nbd.server.serving import in_trio


@in_trio
async def test_its_lines_do_not_carry_the_request_that_gave_cause() -> None:
    work = BackgroundWork(StepRunner())
    seen: list[dict[str, str]] = []

    async def steps() -> None:
        seen.append(dict(logcontext.noted()))

    async def request() -> None:
        logcontext.note(logcontext.REQUEST_ID, "req-1")
        logcontext.note(logcontext.TENANT, "a")
        work.spawn(steps())
        await trio.testing.wait_all_tasks_blocked()
        # The request's own lines go on to.
        seen.append(dict(logcontext.noted()))

    async with trio.open_nursery() as work.nursery:
        work.nursery.start_soon(request)
    assert seen == [{}, {"request_id": "req-1", "tenant": "a"}]


@in_trio
async def test_its_trouble_is_logged_and_nobody_elses(caplog: pytest.LogCaptureFixture) -> None:
    work = BackgroundWork(StepRunner())
    done = trio.Event()

    async def broken() -> None:
        raise ValueError("wrong")

    async def sound() -> None:
        done.set()

    with caplog.at_level(logging.ERROR):
        async with trio.open_nursery() as work.nursery:
            work.spawn(broken())
            work.spawn(sound())
    assert done.is_set()
    assert [one.message for one in caplog.records] == ["background work failed"]
