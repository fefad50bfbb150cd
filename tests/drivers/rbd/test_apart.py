"""A cluster or a local disk that hangs for some volumes takes no thread from the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from bockd.blockstorage.running import NoPublisher, StorageContext
from bockd.drivers.cache.cachefile import CacheFile
from bockd.drivers.rbd.lease import Lease
from bockd.model import BLOCK_SIZE, MIB, CacheMode, SnapshotId, VolumeId
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Background, Signal, Steps, blocking, call_blocking
from tests.drivers.cache.opened import CountingDevice, Opened, content_of
from tests.drivers.rbd.ceph import need_modules
from tests.nbd.server.serving import in_trio

need_modules()

from bockd.drivers.rbd.caching import CacheOperations  # noqa: E402
from bockd.drivers.rbd.fronts import Front  # noqa: E402
from bockd.drivers.rbd.opened import OpenVolume  # noqa: E402
from bockd.drivers.rbd.opennodes import OpenNodes  # noqa: E402
from bockd.drivers.rbd.pool import FEATURES  # noqa: E402
from bockd.drivers.rbd.recalling import recall  # noqa: E402
from bockd.drivers.rbd.records import Identity  # noqa: E402
from bockd.drivers.rbd.snapshots import SnapshotOperations  # noqa: E402
from bockd.drivers.rbd.volumes import VolumeOperations  # noqa: E402

THREADS = 2
"""Of each kind."""


class Hanging:
    """Calls that hang until the end."""

    def __init__(self) -> None:
        self.runner = StepRunner(THREADS)
        self.begun = threading.Semaphore(0)
        self.end = threading.Event()

    def call(self, *_arguments: object) -> Any:
        """Hang, and fail."""
        self.begun.release()
        self.end.wait()
        raise OSError("for a test")

    async def run(self, steps: Steps[Any]) -> None:
        with suppress(OSError):
            await self.runner.run(steps)

    async def ask(self, answered: trio.Event) -> None:
        await self.runner.run(call_blocking(threading.get_ident))
        answered.set()

    async def others_go_on(self, begin: Callable[[trio.Nursery, int], object]) -> None:
        """While more calls hang than there are threads, another one is made."""
        async with trio.open_nursery() as nursery:
            for number in range(THREADS + 1):
                begin(nursery, number)
            try:
                for _ in range(THREADS):
                    # A call that fails before it hangs ends this.
                    await trio.to_thread.run_sync(self.begun.acquire, abandon_on_cancel=True)
                answered = trio.Event()
                nursery.start_soon(self.ask, answered)
                with trio.fail_after(60):
                    await answered.wait()
            finally:
                self.end.set()


def nodes_of(hanging: Hanging) -> OpenNodes:
    async def take(*_arguments: object) -> Any:
        await blocking(hanging.call)

    session: Any = SimpleNamespace(
        who=Identity("here", "r" * 16),
        settings=SimpleNamespace(max_open_volumes=100),
        taker=SimpleNamespace(take=take, give_back=take),
    )
    nodes = OpenNodes(session, lambda steps: steps.close())
    patched: Any = nodes
    record = SimpleNamespace(failed=None, trashed=None, epoch=1, dirty_at=None)
    patched.record = lambda _volume: record
    patched._open_snapshot = hanging.call
    return nodes


@in_trio
async def test_taking() -> None:
    hanging = Hanging()
    nodes = nodes_of(hanging)
    await hanging.others_go_on(
        lambda nursery, number: nursery.start_soon(
            hanging.run,
            nodes.use_volume(VolumeId(number), None),  # type: ignore[arg-type]
        )
    )


@in_trio
async def test_giving_back() -> None:
    hanging = Hanging()
    nodes = nodes_of(hanging)
    no_device: Any = None
    opened: Any = SimpleNamespace(
        users=0,
        taken=None,
        front=Front(no_device),
        device=SimpleNamespace(lost=SimpleNamespace(fire=lambda: None)),
    )
    shown: OpenVolume = opened

    def begin(nursery: trio.Nursery, number: int) -> None:
        nodes.volumes[VolumeId(number)] = shown
        nursery.start_soon(hanging.run, nodes.close_volume(VolumeId(number)))

    await hanging.others_go_on(begin)


def test_what_is_given_back_in_the_background_is_unfinished() -> None:
    nodes = nodes_of(Hanging())
    background = Background()
    nodes.spawn = background.spawn

    async def give_back(_taken: object) -> None:
        assert nodes.unfinished() == 1

    session: Any = nodes.session
    session.taker.give_back = give_back
    no_device: Any = None
    opened: Any = SimpleNamespace(users=1, taken=None, front=Front(no_device))
    nodes.volumes[VolumeId(1)] = opened
    for _ in range(2):
        assert nodes.unfinished() == 1
        nodes._on_lost(VolumeId(1), opened)
    background.run()
    assert nodes.unfinished() == 0


@in_trio
async def test_opening_snapshots() -> None:
    hanging = Hanging()
    nodes = nodes_of(hanging)
    await hanging.others_go_on(
        lambda nursery, number: nursery.start_soon(
            hanging.run, nodes.use_snapshot(SnapshotId(number))
        )
    )


def nothing_more(*_arguments: object) -> None:
    """Add nothing to a transaction."""


CHANGES: dict[str, Callable[[OpenNodes, int], Steps[Any]]] = {
    "create": lambda nodes, _: VolumeOperations(nodes).create("v", MIB, None, nothing_more, None),
    "clone": lambda nodes, number: VolumeOperations(nodes).create(
        "v", None, SnapshotId(number), nothing_more, None
    ),
    "extend": lambda nodes, number: VolumeOperations(nodes).extend(
        VolumeId(number), MIB, nothing_more
    ),
    "revert": lambda nodes, number: VolumeOperations(nodes).revert(
        VolumeId(number), SnapshotId(number), nothing_more
    ),
    "fill": lambda nodes, number: VolumeOperations(nodes).fill(
        VolumeId(number), SnapshotId(100 + number), nothing_more
    ),
    "reopen": lambda nodes, number: VolumeOperations(nodes).reopen(VolumeId(number), nothing_more),
    "delete": lambda nodes, number: VolumeOperations(nodes).delete(VolumeId(number), nothing_more),
    "snapshot": lambda nodes, number: SnapshotOperations(nodes).create(
        VolumeId(number), "s", nothing_more
    ),
    "freeze": lambda nodes, number: SnapshotOperations(nodes).freeze(
        VolumeId(number), lambda _nodes, _id: "s", nothing_more
    ),
    "delete a snapshot": lambda nodes, number: SnapshotOperations(nodes).delete(
        SnapshotId(number), nothing_more
    ),
    "recall": lambda nodes, number: recall(nodes, VolumeId(number), force=False),
    "choose a cache": lambda nodes, number: CacheOperations(nodes).set_mode(
        VolumeId(number), CacheMode.NONE, nothing_more
    ),
    "discard": lambda nodes, number: CacheOperations(nodes).discard(VolumeId(number), nothing_more),
}


@pytest.mark.parametrize("change", CHANGES)
@in_trio
async def test_changes(change: str) -> None:
    """Also what gives up after some time: ten seconds for each call are many."""
    hanging = Hanging()
    nodes = nodes_of(hanging)
    session: Any = nodes.session
    session.index = SimpleNamespace(refresh=hanging.call, update=hanging.call, reading=hanging.call)
    session.taker.ledger = session.tenures = SimpleNamespace(look=hanging.call)

    def begin(nursery: trio.Nursery, number: int) -> None:
        nodes.spawn = lambda steps: nursery.start_soon(hanging.run, steps)
        nursery.start_soon(hanging.run, CHANGES[change](nodes, number))

    await hanging.others_go_on(begin)


@in_trio
async def test_shutting_out_whose_writes_are_discarded() -> None:
    hanging = Hanging()
    nodes = nodes_of(hanging)
    session: Any = nodes.session
    seen = SimpleNamespace(
        id=VolumeId(1),
        image="image",
        holder=None,
        run=None,
        dirty_at=SimpleNamespace(gateway="here", log="log"),
        dirty_elsewhere=lambda _gateway: False,
    )
    session.tenures = SimpleNamespace(look=lambda _volume: seen)
    session.taker.open_claim = hanging.call
    operations = CacheOperations(nodes)

    def begin(nursery: trio.Nursery, number: int) -> None:
        nodes.spawn = lambda steps: nursery.start_soon(hanging.run, steps)
        nursery.start_soon(hanging.run, operations.discard(VolumeId(number), nothing_more))

    await hanging.others_go_on(begin)


@in_trio
async def test_commits_of_block_storage() -> None:
    hanging = Hanging()
    pool: Any = SimpleNamespace(features=FEATURES, index=SimpleNamespace(update=hanging.call))
    context = StorageContext(pool, NoPublisher())
    await hanging.others_go_on(
        lambda nursery, _: nursery.start_soon(hanging.run, context.update(nothing_more))
    )


@in_trio
async def test_leases() -> None:
    hanging = Hanging()
    await hanging.others_go_on(
        lambda nursery, _: Lease(
            hanging.call, lambda steps: nursery.start_soon(hanging.run, steps)
        ).held()
    )


@in_trio
async def test_files_of_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = Hanging()
    opened = Opened(tmp_path)
    below = CountingDevice(BLOCK_SIZE)
    below.hold(content_of(BLOCK_SIZE))
    device = opened.volume(below, 1)
    opened.read(device)
    with monkeypatch.context() as patch:
        patch.setattr(CacheFile, "read", hanging.call)
        into = memoryview(bytearray(BLOCK_SIZE))
        await hanging.others_go_on(
            lambda nursery, _: nursery.start_soon(hanging.run, device.read(0, into))
        )
    opened.release(device)


def test_users_hear_of_the_closing_while_the_question_of_a_lease_hangs(tmp_path: Path) -> None:
    nodes = nodes_of(Hanging())
    opened = Opened(tmp_path)
    below = CountingDevice(BLOCK_SIZE)
    cached = opened.volume(below, 1)
    lost, asked = Signal(), Background()
    lost.subscribe(cached.lose)
    lease = Lease(lambda: True, asked.spawn)
    assert not lease.held()
    volume: Any = SimpleNamespace(
        users=1,
        taken=None,
        front=Front(cached, cached, lease),
        device=SimpleNamespace(lost=lost),
    )
    nodes.volumes[VolumeId(1)] = volume
    closing = nodes.close_volume(VolumeId(1))
    assert isinstance(closing.send(None), Signal)
    assert lost.fired
    assert not cached.blocks.off
    closing.close()
    asked.run()
    opened.release(cached)
