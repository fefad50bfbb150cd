"""The background work of a gateway, in a real cluster: it sweeps, dumps, and waits for trouble to
pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from bockd.config.rbd import RbdSettings
from bockd.index.keys import id_key
from bockd.model import MIB
from bockd.pool.index import Transaction
from bockd.pool.nodes import VOLUMES
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.pooldriver import RbdDriver

need_modules()

from bockd.daemon.gatewaywork import GatewayWork  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.images import create_image, new_name  # noqa: E402
from bockd.drivers.rbd.sweep import Patience  # noqa: E402

SECONDS = 60.0


@pytest.fixture
def driver(rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[RbdDriver]:
    one = RbdDriver(rbd_namespace, tmp_path / "here")
    yield one
    one.close()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(SECONDS):
        while not condition():
            await trio.sleep(0.05)


def test_it_sweeps_dumps_and_waits_for_trouble_to_pass(
    driver: RbdDriver, ceph: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    session = driver.rbd.session
    session.index._dump_every = 10
    work = GatewayWork(session, Patience(0.0, 0.0), sweep_seconds=0.1, flatten_seconds=0.1)

    def images() -> list[str]:
        return work.sweep._store.names()

    def commit(txn: Transaction) -> None:
        txn.put(VOLUMES, id_key(1), b"")
        txn.delete(VOLUMES, id_key(1))

    async def main() -> None:
        await work.enter()
        assert [one.name for one in driver.pool.gateways()] == ["tested"]
        with session.images.use() as (_, ioctx):
            create_image(ioctx, new_name(), MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work.run)
            await until(lambda: images() == [])
            for _ in range(10):
                await trio.to_thread.run_sync(session.index.update, commit)
            before = session.index._base_version
            await until(lambda: session.index._base_version > 0)
            assert before == 0
            assert work.waiting() == ()
            with ceph.hanging():
                await until(lambda: len(work.waiting()) == 3)
            await until(lambda: work.waiting() == ())
            nursery.cancel_scope.cancel()
        await work.leave()
        assert driver.pool.gateways() == []

    trio.run(main)
    told = [one.getMessage() for one in caplog.records if "is put off" in one.getMessage()]
    assert len(told) == len(set(told))
    assert any("following the index is put off" in one for one in told)


def test_the_end_waits_for_no_long_removal(
    driver: RbdDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bockd.daemon.gatewaywork.END_SECONDS", 0.1)
    work = GatewayWork(driver.rbd.session, Patience(0.0, 0.0), sweep_seconds=0.1)

    async def main() -> None:
        begun, go_on = trio.Event(), threading.Event()
        token = trio.lowlevel.current_trio_token()
        look = work.sweep.look

        def last_long() -> bool:
            token.run_sync_soon(begun.set)
            go_on.wait()
            return look()

        monkeypatch.setattr(work.sweep, "look", last_long)
        await work.enter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work.run)
            await begun.wait()
            nursery.cancel_scope.cancel()
        await work.leave()
        assert driver.pool.gateways() == []
        go_on.set()
        await until(lambda: work._at_work == 0)
        await work.leave()

    trio.run(main)
