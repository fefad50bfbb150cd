"""Connections to a cluster that many share."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import UnavailableError
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.cluster import Cluster

need_modules()

from bockd.drivers.rbd import connection  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.binding import rados  # noqa: E402
from bockd.drivers.rbd.connection import CommonConnection, Connected  # noqa: E402
from bockd.drivers.rbd.errors import ShutOutError, named  # noqa: E402
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


def shut_out(ceph: Cluster, common: CommonConnection) -> rados.Rados:
    """Put a connection on Ceph's blocklist, and use it. Return it."""

    def use(cluster: rados.Rados, ioctx: rados.Ioctx) -> None:
        ceph.command("osd blocklist", blocklistop="add", addr=cluster.get_addrs().split("/v")[0])
        cluster.wait_for_latest_osdmap()
        with named("writing"):
            ioctx.write_full("object", b"")

    with pytest.raises(ShutOutError), common.use() as connected:
        use(*connected)
    return connected.cluster


def test_connections_that_were_shut_out_are_ended(
    ceph: Cluster, rbd_namespace: RbdSettings
) -> None:
    """Each has 12 threads."""
    common = CommonConnection(rbd_namespace, index_options(rbd_namespace))
    old = [shut_out(ceph, common) for _ in range(3)]
    assert [one.state for one in old] == ["shutdown"] * 3
    with common.use() as (cluster, _):
        assert cluster not in old
        assert cluster.get_fsid()
    common.close()


def test_a_connection_that_was_shut_out_stays_for_those_who_use_it(
    ceph: Cluster, rbd_namespace: RbdSettings
) -> None:
    common = CommonConnection(rbd_namespace, index_options(rbd_namespace))
    with common.use() as (cluster, _):
        assert shut_out(ceph, common) is cluster
        with common.use() as (newer, _):
            assert newer is not cluster
        assert (cluster.state, newer.state) == ("connected", "connected")
    assert (cluster.state, newer.state) == ("shutdown", "connected")
    common.close()
    assert newer.state == "shutdown"


def test_all_who_wait_for_a_connection_wait_for_one_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a monitor that says nothing."""
    waiting, attempts = threading.Semaphore(0), []
    connect, wait_for = connection.connect, CommonConnection._wait_for

    def attempt(*arguments: Any) -> rados.Rados:
        attempts.append(arguments)
        for _ in range(3):
            waiting.acquire()
        return connect(*arguments)

    def wait(common: CommonConnection, shared: Any) -> Connected:
        waiting.release()
        return wait_for(common, shared)

    def use() -> None:
        with common.use():
            pass

    monkeypatch.setattr(connection, "connect", attempt)
    monkeypatch.setattr(CommonConnection, "_wait_for", wait)
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(4) as threads:
        conf = tmp_path / "ceph.conf"
        conf.write_text(
            f"[global]\nmon_host = v2:127.0.0.1:{silent.getsockname()[1]}\n"
            "auth_client_required = none\n"
        )
        settings = RbdSettings(conf_file=conf, connect_seconds=1)
        common = CommonConnection(settings, index_options(settings))
        for one in [threads.submit(use) for _ in range(4)]:
            with pytest.raises(UnavailableError, match="no monitor of the Ceph cluster"):
                one.result()
    assert len(attempts) == 1
    common.close()


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
        assert len(common.hand_over("i", "a", lambda connected: connected.cluster.get_fsid())) == 36


def test_what_was_handed_over_has_a_limit_and_goes_on(
    rbd_namespace: RbdSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = CommonConnection(rbd_namespace, index_options(rbd_namespace))
    assert len(common.hand_over("i", "a", lambda connected: connected.cluster.get_fsid())) == 36
    with pytest.raises(ZeroDivisionError):
        common.hand_over("i", "b", lambda _connected: 1 // 0)
    monkeypatch.setattr(connection, "HANDED_OVER_SECONDS", 0.01)
    monkeypatch.setattr(connection, "MOST_HANDED_OVER", 2)
    go_on, done = threading.Event(), threading.Semaphore(0)

    def last_long(connected: Connected) -> None:
        go_on.wait()
        assert connected.cluster.get_fsid()
        done.release()

    monkeypatch.setattr(connection, "MOST_OF_ONE_IMAGE", 1)
    for image in "ij":
        with pytest.raises(UnavailableError, match="c: it is not done after"):
            common.hand_over(image, "c", last_long)
        with pytest.raises(UnavailableError, match="d: 1 earlier changes of it"):
            common.hand_over(image, "d", last_long)
    with pytest.raises(UnavailableError, match="d: 2 earlier changes of images"):
        common.hand_over("k", "d", last_long)
    # Who ends does not wait for it either, and leaves it its connection.
    common.close()
    go_on.set()
    for _ in range(2):
        assert done.acquire(timeout=60)


def test_what_is_handed_over_before_there_is_a_connection_has_the_same_limit(
    rbd_namespace: RbdSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is not done later."""
    go_on, ended = threading.Event(), threading.Semaphore(0)
    done: list[Connected] = []
    connect, end = connection.connect, CommonConnection._end_handing_over

    def late(*arguments: Any) -> rados.Rados:
        go_on.wait()
        return connect(*arguments)

    def noted(common: CommonConnection, image: str) -> None:
        end(common, image)
        ended.release()

    monkeypatch.setattr(connection, "connect", late)
    monkeypatch.setattr(connection, "HANDED_OVER_SECONDS", 0.01)
    monkeypatch.setattr(CommonConnection, "_end_handing_over", noted)
    common = CommonConnection(rbd_namespace, index_options(rbd_namespace))
    for name in "ab":
        with pytest.raises(UnavailableError, match=f"{name}: nothing is done"):
            common.hand_over("i", name, done.append)
    go_on.set()
    for _ in range(2):
        assert ended.acquire(timeout=60)
    assert done == []
    common.close()
