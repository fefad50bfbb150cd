"""SIGKILL between any two steps of every change: after the next start all of it is there, or none,
and nothing is left in a transient status."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from bockd.blockstorage.attachments import Attachments
from bockd.blockstorage.changes import Changes
from bockd.blockstorage.cloning import Clones
from bockd.blockstorage.contract import (
    NewImage,
    NewSnapshot,
    NewVolume,
    Page,
    Status,
    TenantId,
    Volume,
)
from bockd.blockstorage.holding import Holds
from bockd.blockstorage.images import Images
from bockd.blockstorage.interrupted import detaching, finish_detaching
from bockd.blockstorage.records import ImageRecord, Ledger
from bockd.blockstorage.servers import Servers
from bockd.blockstorage.snapshots import Snapshots
from bockd.blockstorage.trash import Trash
from bockd.blockstorage.volumes import Volumes
from bockd.model import GIB, MIB, NodeKind, Server, ServerKind, SnapshotId
from bockd.runtime.steps import Blocking, Steps, run_inline
from tests.blockstorage.store import Store, first_byte, force_status, running, write_first_byte

MOST_STEPS = 40
"""No change has as many."""

Change = Callable[[Store, TenantId, Volume], Steps[object]]

CHANGES: dict[str, Change] = {
    "create": lambda s, t, v: Volumes(s.context).create(t, NewVolume(2, "new")),
    "clone": lambda s, t, v: Volumes(s.context).create(
        t, NewVolume(None, snapshot_id=s.run(lambda x: x.list_snapshots(t))[0].id)
    ),
    "clone a volume": lambda s, t, v: Clones(s.context, Volumes(s.context)).create(
        t, NewVolume(None, source_volume=v.id)
    ),
    "delete": lambda s, t, v: Volumes(s.context).delete(t, v.id),
    "snapshot": lambda s, t, v: Snapshots(s.context).create(t, NewSnapshot(v.id, "new")),
    "snapshot open": lambda s, t, v: _opened(s, t, v),
    "delete snapshot": lambda s, t, v: Snapshots(s.context).delete(
        t, s.run(lambda x: x.list_snapshots(t))[0].id
    ),
    "extend": lambda s, t, v: _changes(s).extend(t, v.id, 3 * GIB),
    "extend open": lambda s, t, v: _extend_open(s, t, v),
    "revert": lambda s, t, v: _changes(s).revert(t, v.id, _snapshot(s, t)),
    "reopen": lambda s, t, v: _changes(s).reopen(t, _failed(s, t).id),
    "hold": lambda s, t, v: Holds(s.context).hold(t, v.id, "for a test"),
    "attach": lambda s, t, v: Attachments(s.context).attach(t, "1", v.id, None),
    "detach": lambda s, t, v: Attachments(s.context).detach(t, "9", _attached(s, t).id),
    "import": lambda s, t, v: _import(s),
    "delete image": lambda s, t, v: Images(s.context).delete("old"),
    "force detach": lambda s, t, v: Attachments(s.context).detach(
        t, "9", _attached(s, t).id, force=True
    ),
    "attach to a machine": lambda s, t, v: Attachments(s.context).attach(t, "vm1", v.id, None),
    "detach from a machine": lambda s, t, v: Attachments(s.context).detach(
        t, "vm2", _attached(s, t, "vm2").id
    ),
    "move to the trash": lambda s, t, v: Trash(s.context).put(t, NodeKind.VOLUME, v.id),
    "move to the trash, open": lambda s, t, v: _trash_open(s, t, v),
    "move a snapshot to the trash": lambda s, t, v: Trash(s.context).put(
        t, NodeKind.SNAPSHOT, _snapshot(s, t)
    ),
    "restore": lambda s, t, v: Trash(s.context).restore(t, _kept(s, t)),
    "delete from the trash": lambda s, t, v: Trash(s.context).delete(t, _kept(s, t)),
    "empty the trash": lambda s, t, v: _empty(Trash(s.context), t),
    "add a server": lambda s, t, v: Servers(s.context).add(Server("new", ServerKind.HOST)),
    "remove a server": lambda s, t, v: Servers(s.context).remove("vm1"),
}


def _opened(store: Store, tenant: TenantId, volume: Volume) -> Steps[object]:
    run_inline(store.pool.registry.use_volume(volume.id))
    return Snapshots(store.context).create(tenant, NewSnapshot(volume.id, "new"))


async def _import(store: Store, name: str = "new", checksum: str = "1" * 64) -> ImageRecord:
    """A whole import, in which every step may be the last."""
    images = Images(store.context)
    begun = await images.begin(NewImage(name, "raw", MIB, 7, checksum))
    opened = await store.pool.registry.use_volume(begun.volume)
    await opened.volume.write(0, memoryview(b"content"))
    store.pool.registry.leave_volume(begun.volume)
    return await images.finish(begun.volume)


def _changes(store: Store) -> Changes:
    return Changes(store.context, Volumes(store.context))


def _extend_open(store: Store, tenant: TenantId, volume: Volume) -> Steps[object]:
    run_inline(store.pool.registry.use_volume(volume.id))
    return _changes(store).extend(tenant, volume.id, 3 * GIB)


def _trash_open(store: Store, tenant: TenantId, volume: Volume) -> Steps[object]:
    run_inline(store.pool.registry.use_volume(volume.id))
    store.pool.registry.leave_volume(volume.id)
    return Trash(store.context).put(tenant, NodeKind.VOLUME, volume.id)


async def _empty(trash: Trash, tenant: TenantId) -> None:
    for record in await trash.all_of(tenant):
        await trash.purge(record)


def _kept(store: Store, tenant: TenantId) -> int:
    return store.run(lambda s: s.trash.list(tenant))[0].id


def _snapshot(store: Store, tenant: TenantId) -> SnapshotId:
    return store.run(lambda s: s.list_snapshots(tenant))[0].id


def _failed(store: Store, tenant: TenantId) -> Volume:
    volumes = store.run(lambda s: s.list_volumes(tenant))
    return next(volume for volume in volumes if volume.status is Status.ERROR)


def _attached(store: Store, tenant: TenantId, server: str = "9") -> Volume:
    volumes = store.run(lambda s: s.list_volumes(tenant))
    return next(v for v in volumes if v.attachment and v.attachment.server_id == server)


def prepare(store: Store) -> None:
    """A tenant with a volume, a snapshot of it from before it was overwritten, others that are
    attached, to a plain server and to a machine, and one that has failed; an image; a volume in the
    trash."""
    tenant = store.tenant("acme")
    volume = store.volume(tenant, 1, "first")
    write_first_byte(store, volume.id, 1)
    store.snapshot(tenant, volume)
    write_first_byte(store, volume.id, 2)
    other = store.volume(tenant, 1)
    store.run(lambda s: s.attach(tenant, "9", other.id, None))
    for machine in ("vm1", "vm2"):
        run_inline(Servers(store.context).add(Server(machine, ServerKind.VM, f"/run/{machine}")))
    third = store.volume(tenant, 1)
    store.run(lambda s: s.attach(tenant, "vm2", third.id, None))
    failed = store.volume(tenant, 1)
    run_inline(store.pool.registry.use_volume(failed.id)).volume.durability.failure.declare(
        "the disk is gone"
    )
    store.background.run()
    store.pool.registry.leave_volume(failed.id)
    run_inline(_import(store, "old", "0" * 64))
    kept = store.volume(tenant, 1, "kept")
    run_inline(Trash(store.context).put(tenant, NodeKind.VOLUME, kept.id))


def known(store: Store) -> tuple[TenantId, Volume]:
    """What `prepare` made: the tenant and its first volume."""
    with store.pool.index.reading() as txn:
        tenant = Ledger(txn).tenants()[0].tenant.id
        return tenant, next(Ledger(txn).volumes(tenant))


def state(store: Store, tenant: TenantId) -> tuple[object, ...]:
    """What the tenant sees, without what differs from run to run."""
    volumes = store.run(lambda s: s.list_volumes(tenant))
    snapshots = store.run(lambda s: s.list_snapshots(tenant))
    first = next((v.id for v in volumes if v.display_name == "first"), None)
    content = None if first is None else first_byte(store, first)
    with store.pool.registry.catalogue() as catalogue:
        nodes = (len(list(catalogue.volumes())), len(list(catalogue.snapshots())))
    return (
        nodes,  # whatever belongs to nobody is still counted
        [image.name for image in store.run(lambda s: s.list_images())],
        content,
        [(v.id, v.status, v.size_gib, v.attachment and v.attachment.server_id) for v in volumes],
        [(s.id, s.status, s.size_gib) for s in snapshots],
        [(one.kind, one.id) for one in store.run(lambda s: s.trash.list(tenant))],
        store.run(lambda s: s.limits(tenant)).used,
        [(server.name, server.kind) for server in Servers(store.context).all()],
    )


def pull_devices(store: Store) -> None:
    """What the daemon does when its frontends are open: nothing is left in a transient status."""
    for owned in detaching(store.context):
        run_inline(finish_detaching(store.context, owned))


def die_at(steps: Steps[object], number: int, *, done: bool) -> None:
    """Kill this process at a blocking call, done or not begun; return when there are not so
    many."""
    try:
        step = steps.send(None)
        while True:
            if not isinstance(step, Blocking):
                step = steps.send(None)
                continue
            if number == 1 and not done:
                os.kill(os.getpid(), signal.SIGKILL)
            result = step.call()
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            number -= 1
            step = steps.send(result)
    except StopIteration:
        return


def killed(root: Path, change: str, number: int, *, done: bool) -> bool:
    """Make the change in a process of its own that dies at a step; False when the change ended
    before that step."""
    with warnings.catch_warnings():
        # The child uses no thread, so it does not matter that this process has some.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            store = Store(root)
            tenant, volume = known(store)
            die_at(CHANGES[change](store, tenant, volume), number, done=done)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_killed_at_any_step_all_or_nothing(tmp_path: Path, change: str, done: bool) -> None:
    with running(tmp_path / "whole") as store:
        prepare(store)
        tenant, volume = known(store)
        before = state(store, tenant)
        run_inline(CHANGES[change](store, tenant, volume))
        store.restart()
        after = state(store, tenant)
        assert before != after
    for number in range(1, MOST_STEPS):
        root = tmp_path / str(number)
        with running(root) as store:
            prepare(store)
        died = killed(root, change, number, done=done)
        with running(root) as store:
            pull_devices(store)
            found = state(store, known(store)[0])
            assert found in (before, after), f"killed at step {number}"
            if not died:
                assert found == after
                return
    raise AssertionError("the change has no end")


@pytest.mark.parametrize("done", [False, True])
def test_killed_while_a_fetched_image_arrives(
    tmp_path: Path, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waiting volume is in error, or it holds the image: never blank and available."""
    monkeypatch.setitem(CHANGES, "arrive", arrive)
    seen: set[Status | None] = set()
    for number in range(1, MOST_STEPS):
        root = tmp_path / str(number)
        with running(root) as store:
            prepare(store)
        died = killed(root, "arrive", number, done=done)
        with running(root) as store:
            seen.add(state_of_waiting(store))
        if not died:
            assert seen - {None} == {Status.ERROR, Status.AVAILABLE}
            return
    raise AssertionError("the change has no end")


async def arrive(store: Store, tenant: TenantId, _volume: Volume) -> object:
    """A volume waits for an image, which arrives."""
    volumes = Volumes(store.context)
    waiting = await volumes.create_waiting(tenant, NewVolume(1, "waiting"))
    await volumes.fill(waiting.id, Images(store.context).find("old"))
    return waiting


def state_of_waiting(store: Store) -> Status | None:
    """The status of the volume that waited, which must fit what it holds; None without one."""
    tenant, _ = known(store)
    waited = store.run(lambda s: s.list_volumes(tenant, Page(display_name="waiting")))
    if not waited:
        return None
    (volume,) = waited
    opened = run_inline(store.pool.registry.use_volume(volume.id))
    found = bytearray(7)
    run_inline(opened.volume.read(0, memoryview(found)))
    store.pool.registry.leave_volume(volume.id)
    assert found == {Status.AVAILABLE: b"content", Status.ERROR: bytes(7)}[volume.status]
    return volume.status


@pytest.mark.parametrize(
    ("status", "server", "becomes"),
    [
        (Status.CREATING, None, Status.ERROR),
        (Status.ATTACHING, "9", Status.AVAILABLE),
        (Status.DETACHING, "9", Status.AVAILABLE),
        (Status.DELETING, None, None),
        (Status.AVAILABLE, None, Status.AVAILABLE),
        (Status.IN_USE, "9", Status.IN_USE),
        (Status.ERROR, None, Status.ERROR),
        (Status.ERROR_DELETING, None, Status.ERROR_DELETING),
    ],
)
def test_what_a_start_makes_of_each_status(
    store: Store, tenant: TenantId, status: Status, server: str | None, becomes: Status | None
) -> None:
    volume = store.volume(tenant)
    if server is not None:
        store.run(lambda s: s.attach(tenant, server, volume.id, None))
    force_status(store, tenant, volume, status)
    store.restart()
    left = store.run(lambda s: s.list_volumes(tenant))
    assert [v.status for v in left] == ([] if becomes is None else [becomes])
    assert [v.attachment is not None for v in left if server] == (
        [becomes is Status.IN_USE] if server else []
    )
