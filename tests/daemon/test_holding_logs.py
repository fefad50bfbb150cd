"""A gateway that does not hear of the index, or of others' questions, holds its logs: these may
give them up."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from bockd.errors import UnavailableError
from bockd.runtime.steps import Signal, run_inline
from tests.drivers.rbd.ceph import need_modules

need_modules()

from bockd.daemon import gatewaywork  # noqa: E402 - where there are the modules
from bockd.daemon.gatewaywork import FOLLOW_SECONDS, GatewayWork  # noqa: E402
from bockd.daemon.rbdbackend import (  # noqa: E402
    RELEASE_LOOKS,
    UNCONFIRMED_SECONDS,
    RbdBackend,
)
from bockd.drivers.rbd.inquiry import (  # noqa: E402
    CERTAIN_SECONDS,
    GAP_SECONDS,
    LATE_SECONDS,
)
from bockd.drivers.rbd.settings import INDEX_TIMEOUT_SECONDS  # noqa: E402


def test_it_ends_to_answer_before_others_give_up_what_it_has() -> None:
    assert UNCONFIRMED_SECONDS + 2 * FOLLOW_SECONDS < CERTAIN_SECONDS
    assert LATE_SECONDS < GAP_SECONDS
    assert (RELEASE_LOOKS - 1) * FOLLOW_SECONDS >= LATE_SECONDS
    assert UNCONFIRMED_SECONDS > INDEX_TIMEOUT_SECONDS, "one lost OSD is no reason"


def test_logs_are_held_while_the_index_is_not_heard_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(gatewaywork, "_now", lambda: now[0])
    silent = [False]

    def refresh() -> None:
        now[0] += 1.0
        if silent[0]:
            raise UnavailableError("the cluster does not answer")

    index = SimpleNamespace(refresh=refresh, dump_due=False)
    work: Any = GatewayWork.__new__(GatewayWork)
    work._index, work.followed_at = index, now[0]
    deaf_since: list[float] = []
    """When the bus was watched last, if it is not."""

    def unwatched() -> float | None:
        return now[0] - deaf_since[0] if deaf_since else 1.0

    work._bus, work.heard_at = SimpleNamespace(silent_seconds=unwatched), now[0]
    held = list[bool]()
    came = list[str]()
    """Of the end of what is held."""
    confirmed = list[bool]()

    async def confirm() -> bool:
        came.append("committed")
        return confirmed.pop(0)

    work.confirm = confirm
    volumes = {
        1: SimpleNamespace(
            front=SimpleNamespace(log=SimpleNamespace(hold=lambda *, held: noted(held)))
        ),
        2: SimpleNamespace(front=SimpleNamespace(log=None)),
    }

    def noted(is_held: bool) -> None:
        held.append(is_held)
        if not is_held:
            came.append("answers")

    backend: Any = RbdBackend.__new__(RbdBackend)
    backend._work, backend._held, backend._good_looks = work, False, RELEASE_LOOKS
    backend._confirmed, backend._confirming, backend._silences = True, False, 0
    fronts = SimpleNamespace(held=False)
    nodes = SimpleNamespace(
        volumes=volumes, fronts=fronts, drop_taken=lambda: came.append("looked")
    )
    backend.pool = SimpleNamespace(open_nodes=nodes)

    def look(seconds: float) -> bool:
        now[0] += seconds
        try:
            work._follow()
        except UnavailableError:
            assert silent[0]
        if backend._look():
            run_inline(backend._confirm())
        assert fronts.held == held[-1], "what is opened now"
        return held[-1]

    go_on = [True] * RELEASE_LOOKS + [False]
    with caplog.at_level(logging.WARNING):
        assert not look(1000.0), "it was asked for just now"
        silent[0] = True
        assert not look(UNCONFIRMED_SECONDS - 3.0)
        assert look(3.0)
        assert look(3.0)
        silent[0] = False
        deaf_since.append(now[0] - UNCONFIRMED_SECONDS)
        assert look(1.0), "others' questions do not come here yet"
        deaf_since.clear()
        confirmed[:] = [True]
        assert [look(1.0) for _ in go_on] == go_on
        assert came[-3:] == ["committed", "looked", "answers"]
        work._bus = SimpleNamespace(silent_seconds=lambda: None)
        assert not look(UNCONFIRMED_SECONDS - 4.0)
        assert look(4.0), "the index answers, and the bus is not watched"
        work._bus = SimpleNamespace(silent_seconds=unwatched)
        confirmed[:] = [False, False, True]
        assert [look(1.0) for _ in range(RELEASE_LOOKS + 3)] == [True] * (RELEASE_LOOKS + 2) + [
            False
        ]
    assert caplog.text.count("the cluster has not answered for some time") == 2
    assert caplog.text.count("write-back goes on") == 2


def test_looks_go_on_while_a_commit_lasts() -> None:
    """It may last as long as the cluster hangs. When it has ended after all, what was found
    meanwhile counts: others may have given up what is dirty since."""
    silent, hangs = [100.0], [True]

    async def confirm() -> bool:
        if hangs[0]:
            await Signal()
        return True

    work = SimpleNamespace(silent_seconds=lambda: silent[0], confirm=confirm)
    backend: Any = RbdBackend.__new__(RbdBackend)
    backend._work, backend._held, backend._good_looks = work, False, RELEASE_LOOKS
    backend._confirmed, backend._confirming, backend._silences = True, False, 0
    fronts = SimpleNamespace(held=False)
    nodes = SimpleNamespace(volumes={}, fronts=fronts, drop_taken=lambda: None)
    backend.pool = SimpleNamespace(open_nodes=nodes)
    assert not backend._look()
    silent[0] = 0.0
    assert [backend._look() for _ in range(RELEASE_LOOKS)][-1]
    confirming = backend._confirm()
    confirming.send(None)
    assert not backend._look(), "it goes on"
    silent[0] = 100.0
    backend._look()
    silent[0] = 0.0
    for _ in range(RELEASE_LOOKS + 1):
        assert not backend._look()
    with pytest.raises(StopIteration):
        confirming.send(None)
    assert backend._look(), "once more"
    assert fronts.held
    hangs[0] = False
    run_inline(backend._confirm())
    assert not backend._look()
    assert not fronts.held
