"""Links and sessions: once, for some time, and not too many."""

from __future__ import annotations

import trio
import trio.testing

from api.dashboard.sessions import (
    LINK_SECONDS,
    MAX_LINKS,
    MAX_SESSIONS,
    SESSION_SECONDS,
    Sessions,
)


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def entered(sessions: Sessions) -> str:
    """A new session."""
    session = sessions.enter(sessions.new_link())
    assert session is not None
    return session


def test_a_link_works_once() -> None:
    sessions = Sessions(Clock())
    link = sessions.new_link()
    session = sessions.enter(link)
    assert session is not None
    assert sessions.knows(session)
    assert sessions.enter(link) is None
    assert not sessions.knows(link)
    assert sessions.enter(session) is None
    for guess in ("", "\0", "\ud800", session[:-1], session + "x"):
        assert sessions.enter(guess) is None
        assert not sessions.knows(guess)


def test_a_link_and_a_session_end_by_themselves() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    link, session = sessions.new_link(), entered(sessions)
    clock.now = LINK_SECONDS
    assert sessions.enter(link) is None
    clock.now = SESSION_SECONDS - 1
    # Being used makes it no longer.
    assert sessions.knows(session)
    clock.now = SESSION_SECONDS
    assert not sessions.knows(session)


def test_whoever_leaves_is_out_alone() -> None:
    sessions = Sessions(Clock())
    one, other = entered(sessions), entered(sessions)
    sessions.leave(one)
    sessions.leave("nobody")
    assert (sessions.knows(one), sessions.knows(other)) == (False, True)


def test_the_oldest_makes_room() -> None:
    sessions = Sessions(Clock())
    links = [sessions.new_link() for _ in range(MAX_LINKS + 1)]
    assert [sessions.enter(link) is not None for link in links] == [False] + [True] * MAX_LINKS
    before = [entered(sessions) for _ in range(MAX_SESSIONS + 1)]
    assert [sessions.knows(one) for one in before] == [False] + [True] * MAX_SESSIONS


def test_who_waits_for_the_end_of_all_is_told() -> None:
    async def run() -> None:
        sessions = Sessions(trio.current_time)
        session = entered(sessions)
        sessions.new_link()
        await sessions.until_none()
        assert trio.current_time() - began >= SESSION_SECONDS
        assert not sessions.knows(session)
        # One that is ended earlier.
        session = entered(sessions)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sessions.until_none)
            await trio.testing.wait_all_tasks_blocked()
            sessions.leave(session)

    clock = trio.testing.MockClock(autojump_threshold=0)
    began = clock.current_time()
    trio.run(run, clock=clock)
