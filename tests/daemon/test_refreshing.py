"""Where several daemons share an index, a client is shown what was committed anywhere before."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import nbd
import pytest
import trio

from bockd.daemon.attached import AttachedExports
from bockd.daemon.exports import PoolExports
from bockd.daemon.refreshing import DiscreetExports, FreshExports, Refreshing, fresh, refreshing
from bockd.drivers.memory import pool as memory
from bockd.drivers.memory.index import MemoryIndex, MemoryTransaction
from bockd.drivers.memory.pool import MemoryPool
from bockd.errors import (
    BockdError,
    ClusterUnavailableError,
    DamagedError,
    DeviceError,
    NotFoundError,
    UnavailableError,
    VolumeFailedError,
)
from bockd.model import MIB
from bockd.nbd.protocol.errors import answer
from bockd.nbd.server.exports import NoExports, OpenExport
from bockd.publictexts import CLUSTER_REFUSES, CLUSTER_SILENT, SERVER_ERROR, for_operator
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import run_inline
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client
from tests.nbd.server.serving import in_trio, served, serving

T = TypeVar("T")

NBD_REP_ERR_SHUTDOWN = (1 << 31) + 7


class Gated:
    """A refresh that blocks until it is let go on, and counts."""

    def __init__(self) -> None:
        self.begun = 0
        self.error: Exception | None = None
        self._running = threading.Semaphore(0)
        self._go_on = threading.Semaphore(0)

    def __call__(self) -> None:
        self.begun += 1
        error = self.error
        self._running.release()
        self._go_on.acquire()
        if error is not None:
            raise error

    async def wait_until_running(self) -> None:
        await trio.to_thread.run_sync(self._running.acquire, abandon_on_cancel=True)

    def let_go_on(self) -> None:
        self._go_on.release()


@in_trio
async def test_who_comes_while_a_refresh_runs_shares_the_next_one() -> None:
    gated = Gated()
    refresh = Refreshing(gated)
    done: list[str] = []

    async def call(name: str) -> None:
        await refresh()
        done.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, "first")
        await gated.wait_until_running()
        for number in range(20):
            nursery.start_soon(call, f"later {number}")
        await trio.testing.wait_all_tasks_blocked()
        assert gated.begun == 1
        gated.let_go_on()
        await gated.wait_until_running()
        # The second one may have looked before this one came.
        nursery.start_soon(call, "last")
        await trio.testing.wait_all_tasks_blocked()
        assert done == ["first"]
        gated.let_go_on()
        await gated.wait_until_running()
        assert len(done) == 21
        assert "last" not in done
        gated.let_go_on()
    assert gated.begun == 3
    assert done[-1] == "last"


@in_trio
async def test_all_who_share_a_refresh_are_told_why_it_failed() -> None:
    gated = Gated()
    refresh = Refreshing(gated)
    told: list[UnavailableError] = []

    async def call() -> None:
        with pytest.raises(UnavailableError, match="no answer") as caught:
            await refresh()
        told.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refresh)
        await gated.wait_until_running()
        gated.error = UnavailableError("no answer")
        for _ in range(5):
            nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            gated.let_go_on()
    assert (gated.begun, len(told)) == (2, 5)
    assert len(traceback.extract_tb(told[-1].__traceback__)) < 10
    gated.error = None
    gated.let_go_on()
    await refresh()


@in_trio
async def test_one_who_gives_up_does_not_take_the_refresh_from_others() -> None:
    gated = Gated()
    refresh = Refreshing(gated)
    impatient = trio.CancelScope()
    done = trio.Event()

    async def give_up() -> None:
        with impatient:
            await refresh()

    async def wait() -> None:
        await refresh()
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refresh)
        await gated.wait_until_running()
        nursery.start_soon(give_up)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        impatient.cancel()
        for _ in range(2):
            gated.let_go_on()
        await done.wait()
    assert gated.begun == 2


class StaleIndex(MemoryIndex):
    """What one of several daemons sees of an index that they share: as it was at its last
    refresh."""

    def __init__(self, shared: MemoryIndex) -> None:
        super().__init__()
        self._shared = shared
        self.failure: Exception | None = None

    def update(self, change: Callable[[MemoryTransaction], T]) -> T:
        result = self._shared.update(change)
        self._tables = self._shared._tables
        return result

    def refresh(self) -> None:
        if self.failure is not None:
            raise self.failure
        self._tables = self._shared._tables


class SharedPool(MemoryPool):
    """One daemon's view of a pool that several serve."""

    features = replace(memory.FEATURES, several_gateways=True)
    index: StaleIndex

    def __init__(self, other: SharedPool | None = None) -> None:
        super().__init__()
        self.index = StaleIndex(MemoryIndex() if other is None else other.index._shared)
        if other is not None:
            self._devices, self._ids = other._devices, other._ids


@contextmanager
def exported(pool: MemoryPool, path: Path) -> Iterator[str]:
    """Serve a pool on a Unix socket, as the daemon does."""
    runner = StepRunner()
    attached = AttachedExports(pool, runner, lambda _: None)
    table = PoolExports(pool, runner, lambda _: None, attached)
    with served(fresh(table, refreshing(pool)), path) as socket:
        yield f"nbd+unix:///made?socket={socket}"


def test_an_export_is_found_that_another_daemon_has_just_made(tmp_path: Path) -> None:
    maker = SharedPool()
    pool = SharedPool(maker)
    with exported(pool, tmp_path / "nbd.sock") as uri:
        client = nbd.NBD()
        client.set_opt_mode(True)
        client.connect_uri(uri)
        names: list[str] = []

        def note(name: str, _description: str) -> int:
            names.append(name)
            return 0

        client.opt_list(note)
        assert names == []
        with pytest.raises(nbd.Error):
            client.opt_info()
        run_inline(maker.create_volume("made", MIB))
        client.opt_list(note)
        assert names == ["made"]
        client.opt_info()
        assert client.get_size() == MIB
        client.opt_abort()
        run_inline(maker.create_volume("other", 2 * MIB))
        client = nbd.NBD()
        client.connect_uri(uri.replace("made", "other"))
        assert client.get_size() == 2 * MIB
        client.shutdown()


@in_trio
async def test_a_client_is_told_why_nothing_can_be_looked_up(tmp_path: Path) -> None:
    pool = SharedPool()
    await StepRunner().run(pool.create_volume("made", MIB))
    runner = StepRunner()
    attached = AttachedExports(pool, runner, lambda _: None)
    table = PoolExports(pool, runner, lambda _: None, attached)
    path = tmp_path / "nbd.sock"
    pool.index.failure = UnavailableError("the cluster does not answer")
    async with serving(fresh(table, refreshing(pool)), path), await Client.connect(path) as client:
        await client.send(wire.FIXED_NEWSTYLE_NO_ZEROES)
        for option in (wire.option(3), wire.option(6, wire.info_data("made")), wire.go("made")):
            await client.send(option)
            reply = await client.option_reply()
            assert reply.kind == NBD_REP_ERR_SHUTDOWN
            assert reply.data == b"the cluster does not answer"
        pool.index.failure = None
        await client.send(wire.go("made"))
        assert (await client.option_reply()).kind < NBD_REP_ERR_SHUTDOWN


@in_trio
async def test_over_the_network_one_text_is_told_of_a_cluster_in_trouble() -> None:
    pool = SharedPool()
    pool.index.failure = ClusterUnavailableError("'ceph -s' says how it is")
    refresh = refreshing(pool)
    assert refresh is not None
    table = DiscreetExports(FreshExports(NoExports(), refresh))
    for lookup in (table.list_exports, lambda: table.describe("x"), lambda: table.open("x")):
        with pytest.raises(UnavailableError) as refusal:
            await lookup()
        assert str(refusal.value) == CLUSTER_SILENT


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (for_operator(DeviceError("rbd config image remove pool7/space8")), CLUSTER_REFUSES),
        (DamagedError("/var/lib/bockd/index"), SERVER_ERROR),
        (NotFoundError("no such export"), "no such export"),
        (VolumeFailedError("volume 3 is refused"), "volume 3 is refused"),
    ],
)
@in_trio
async def test_over_the_network_nothing_is_told_that_is_for_the_operator(
    error: BockdError, told: str
) -> None:
    class Failing(NoExports):
        async def open(self, name: str) -> OpenExport:
            del name
            raise error

    with pytest.raises(BockdError) as refusal:
        await DiscreetExports(Failing()).open("x")
    assert str(refusal.value) == told
    # So is a request that fails later, for what is a driver's own.
    assert answer(error)[1] == (error.public_text or str(error))


def test_a_pool_of_one_daemon_awaits_nothing() -> None:
    pool = MemoryPool()
    assert refreshing(pool) is None
    table = NoExports()
    assert fresh(table, None) is table


@in_trio
async def test_whatever_a_refresh_raises_is_the_answer() -> None:
    pool = SharedPool()
    pool.index.failure = DamagedError("the log is damaged")
    refresh = refreshing(pool)
    assert refresh is not None
    table = FreshExports(NoExports(), refresh)
    for lookup in (table.list_exports, lambda: table.describe("x"), lambda: table.open("x")):
        with pytest.raises(DamagedError, match="the log is damaged"):
            await lookup()
    pool.index.failure = None
    with pytest.raises(NotFoundError):
        await table.describe("x")
