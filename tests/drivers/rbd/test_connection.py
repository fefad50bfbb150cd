"""Connections to a cluster that many share."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import closing
from typing import TypeVar

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import UnavailableError
from tests.drivers.rbd.ceph import need_modules

need_modules()

from bockd.drivers.rbd import connection  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.connection import CommonConnection, Connected  # noqa: E402
from bockd.drivers.rbd.settings import index_options  # noqa: E402

T = TypeVar("T")


def test_a_connection_that_is_used_is_not_ended(rbd_namespace: RbdSettings) -> None:
    """What librbd has under way on a connection that ends waits for ever."""
    common = CommonConnection(rbd_namespace, index_options(rbd_namespace))
    with common.use() as (cluster, _):
        with common.use(), pytest.raises(AssertionError):
            common.close()
        with pytest.raises(AssertionError):
            common.close()
        assert cluster.get_fsid()
    with pytest.raises(ZeroDivisionError), common.use():
        raise ZeroDivisionError
    common.close()
    assert cluster.state == "shutdown"


class DoneAtTheLimit(Future[T]):
    """An outcome that comes in the moment in which one stops waiting for it."""

    def result(self, timeout: float | None = None) -> T:
        found = super().result()
        if timeout is not None:
            raise TimeoutError
        return found


def test_what_is_done_in_the_last_moment_is_done(
    rbd_namespace: RbdSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "Future", DoneAtTheLimit)
    with closing(CommonConnection(rbd_namespace, index_options(rbd_namespace))) as common:
        assert len(common.hand_over("a", lambda connected: connected.cluster.get_fsid())) == 36


def test_what_was_handed_over_has_a_limit_and_goes_on(
    rbd_namespace: RbdSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = CommonConnection(rbd_namespace, index_options(rbd_namespace))
    assert len(common.hand_over("a", lambda connected: connected.cluster.get_fsid())) == 36
    with pytest.raises(ZeroDivisionError):
        common.hand_over("b", lambda _connected: 1 // 0)
    monkeypatch.setattr(connection, "HANDED_OVER_SECONDS", 0.01)
    monkeypatch.setattr(connection, "MOST_HANDED_OVER", 2)
    go_on, done = threading.Event(), threading.Semaphore(0)

    def last_long(connected: Connected) -> None:
        go_on.wait()
        assert connected.cluster.get_fsid()
        done.release()

    for _ in range(2):
        with pytest.raises(UnavailableError, match="c: it is not done after"):
            common.hand_over("c", last_long)
    with pytest.raises(UnavailableError, match="d: 2 earlier changes"):
        common.hand_over("d", last_long)
    # Who ends does not wait for it either, and leaves it its connection.
    common.close()
    go_on.set()
    for _ in range(2):
        assert done.acquire(timeout=60)
