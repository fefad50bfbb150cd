"""Images in a cluster: what snaps and clones show, what stays, and who is shut out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from bockd.config.rbd import RbdSettings
from bockd.errors import (
    DeviceError,
    InUseError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
    VolumeTakenError,
)
from bockd.model import BLOCK_SIZE, MIB, Extent
from bockd.pool.device import BlockDevice
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import run_inline
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.cluster import Cluster

need_modules()

from bockd.drivers.rbd import images, volumeimage  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.binding import rbd  # noqa: E402
from bockd.drivers.rbd.extents import OBJECT_BYTES  # noqa: E402
from tests.drivers.rbd.gateway import Gateway  # noqa: E402
from tests.drivers.rbd.silence import silence_after_opening  # noqa: E402

SIZE = 4 * OBJECT_BYTES


@pytest.fixture(params=["callbacks", "events"])
def gateway(rbd_namespace: RbdSettings, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    with Gateway(rbd_namespace) as one:
        one.by_events = request.param == "events"
        yield one


@pytest.fixture
def other(gateway: Gateway, rbd_namespace: RbdSettings) -> Iterator[Gateway]:
    """One that is of the same kind."""
    with Gateway(rbd_namespace) as one:
        one.by_events = gateway.by_events
        yield one


def read(device: BlockDevice, offset: int = 0, length: int = BLOCK_SIZE) -> bytes:
    into = bytearray(length)
    run_inline(device.read(offset, memoryview(into)))
    return bytes(into)


def write(device: BlockDevice, data: bytes, offset: int = 0) -> None:
    run_inline(device.write(offset, memoryview(data)))


def drawn(device: BlockDevice) -> str:
    """Draw the device's objects: x for data, a dot for a hole."""
    found = run_inline(device.extents(0, device.size_bytes, 1000))
    return "".join((".x"[not one.hole]) * (one.length_bytes // OBJECT_BYTES) for one in found)


def test_a_snap_shows_what_was_answered_before_though_another_gateway_took_it(
    gateway: Gateway, other: Gateway
) -> None:
    name = gateway.create(SIZE)
    device = gateway.open(name, SIZE)
    write(device, b"then" * 1024)
    snap = other.snap(name)
    write(device, b"now." * 1024)
    write(device, b"x", 2 * OBJECT_BYTES)
    frozen = other.open_snap(name, snap, SIZE)
    assert (frozen.read_only, read(frozen)) == (True, b"then" * 1024)
    assert read(device) == b"now." * 1024
    assert (drawn(frozen), drawn(device)) == ("x...", "x.x.")


def test_a_clone_shows_its_snap_where_it_was_not_written(gateway: Gateway) -> None:
    name = gateway.create(SIZE)
    origin = gateway.open(name, SIZE)
    write(origin, b"o" * SIZE)
    run_inline(origin.trim(3 * OBJECT_BYTES, OBJECT_BYTES))
    clone = gateway.open(gateway.clone(name, gateway.snap(name), 2 * SIZE), 2 * SIZE)
    write(origin, b"later" * 1000)
    assert drawn(clone) == "xxx....."
    write(clone, b"c" * 512, 512)
    assert read(clone, 0, 1536) == b"o" * 512 + b"c" * 512 + b"o" * 512
    # What is trimmed or zeroed does not show the snap again, in whole objects or less.
    run_inline(clone.trim(BLOCK_SIZE, BLOCK_SIZE))
    run_inline(clone.trim(OBJECT_BYTES, OBJECT_BYTES))
    run_inline(clone.zero(2 * OBJECT_BYTES, BLOCK_SIZE + 1, allocate=False))
    assert read(clone, BLOCK_SIZE - 1, BLOCK_SIZE + 2) == b"o" + bytes(BLOCK_SIZE) + b"o"
    assert read(clone, OBJECT_BYTES, OBJECT_BYTES) == bytes(OBJECT_BYTES)
    assert read(clone, 2 * OBJECT_BYTES, BLOCK_SIZE + 2) == bytes(BLOCK_SIZE + 1) + b"o"
    assert drawn(clone) == "x.x....."


def test_an_image_grows_under_whoever_has_it_open(gateway: Gateway, other: Gateway) -> None:
    name = gateway.create(SIZE)
    device = gateway.open(name, SIZE)
    other.grow(name, device, 2 * SIZE)
    write(device, b"end", 2 * SIZE - 3)
    assert read(device, 2 * SIZE - BLOCK_SIZE) == bytes(BLOCK_SIZE - 3) + b"end"
    images.grow_image(other.ioctx, name, SIZE)
    assert read(device, 2 * SIZE - 3, 3) == b"end"


def test_an_image_that_has_grown_since_it_was_looked_at_does_not_shrink(
    gateway: Gateway, other: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = gateway.create(2 * SIZE)
    device = gateway.open(name, 2 * SIZE)
    write(device, b"end", 2 * SIZE - 3)
    true = rbd.Image

    class Stale:
        """An image whose size was looked at before it grew."""

        def __init__(self, *arguments: Any) -> None:
            self._image = true(*arguments)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_raised: object) -> None:
            self._image.close()

        def size(self) -> int:
            return SIZE

        def resize(self, size_bytes: int, **how: bool) -> None:
            self._image.resize(size_bytes, **how)

    monkeypatch.setattr(
        rbd, "Image", lambda *args, **how: true(*args, **how) if how else Stale(*args)
    )
    images.grow_image(other.ioctx, name, SIZE + BLOCK_SIZE)
    monkeypatch.undo()
    with images.looking_at(other.ioctx, name) as now:
        assert now.size() == 2 * SIZE
    assert read(device, 2 * SIZE - 3, 3) == b"end"


def test_of_an_image_with_snaps_librbd_is_not_told_to_remove_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the lock to look."""
    name = gateway.create(SIZE)
    snap = gateway.snap(name)
    with monkeypatch.context() as without:
        without.setattr(rbd, "RBD", None)
        assert not images.remove_image(gateway.ioctx, name)
    images.remove_snap(gateway.cluster, gateway.ioctx, name, snap)
    assert images.remove_image(gateway.ioctx, name)


def test_a_removal_that_was_interrupted_is_finished(gateway: Gateway) -> None:
    name = gateway.create(SIZE)
    identity = gateway.ioctx.read(f"rbd_id.{name}")[4:].decode()
    gateway.ioctx.remove_object(f"rbd_header.{identity}")
    assert name in rbd.RBD().list(gateway.ioctx)
    assert images.remove_image(gateway.ioctx, name)
    assert name not in rbd.RBD().list(gateway.ioctx)


def test_an_image_goes_when_nothing_needs_it(gateway: Gateway) -> None:
    name = gateway.create(SIZE)
    device = gateway.open(name, SIZE)
    write(device, b"data")
    snap = gateway.snap(name)
    clone = gateway.clone(name, snap)
    assert not images.remove_image(gateway.ioctx, name)  # it is open, and has a snap
    gateway.close(device)
    assert not images.remove_image(gateway.ioctx, name)
    # A snap goes though it has a clone; the image stays for the clone's sake.
    images.remove_snap(gateway.cluster, gateway.ioctx, name, snap)
    images.remove_snap(gateway.cluster, gateway.ioctx, name, snap)
    with pytest.raises(NotFoundError):
        images.open_image(gateway.ioctx, name, snap)
    assert not images.remove_image(gateway.ioctx, name)
    assert read(gateway.open(clone, SIZE))[:4] == b"data"


def data_objects(gateway: Gateway) -> list[str]:
    return [one.key for one in gateway.ioctx.list_objects() if one.key.startswith("rbd_data.")]


def test_a_full_cluster_lets_an_image_go_with_all_that_it_holds(
    gateway: Gateway, ceph: Cluster
) -> None:
    """The first one that is removed in its namespace: librbd has made nothing for that yet."""
    name = gateway.create(SIZE)
    device = gateway.open(name, SIZE)
    write(device, b"x" * SIZE)
    snap = gateway.snap(name)
    gateway.close(device)
    assert len(data_objects(gateway)) == 4
    with ceph.full():
        images.remove_snap(gateway.cluster, gateway.ioctx, name, snap)
        with images.looking_at(gateway.ioctx, name) as image:
            assert list(image.list_snaps()) == []
        assert images.remove_image(gateway.ioctx, name)
        assert data_objects(gateway) == []
        assert rbd.RBD().list(gateway.ioctx) == []


def test_an_image_that_ceph_does_not_find_and_that_is_there_is_not_gone(
    gateway: Gateway, ceph: Cluster
) -> None:
    """As in a namespace where nothing was made for removals, before the cluster was full."""
    name = gateway.create(SIZE)
    gateway.ioctx.remove_object("rbd_trash")
    with (
        ceph.full(),
        pytest.raises(DeviceError, match="is not removed: Ceph does not find it, and it is there"),
    ):
        images.remove_image(gateway.ioctx, name)
    assert rbd.RBD().list(gateway.ioctx) == [name]
    assert images.remove_image(gateway.ioctx, name)
    assert rbd.RBD().list(gateway.ioctx) == []


def test_what_is_gone_can_be_removed_again(gateway: Gateway) -> None:
    name = gateway.create(SIZE)
    clone = gateway.clone(name, snap := gateway.snap(name))
    assert images.remove_image(gateway.ioctx, clone)
    assert images.remove_image(gateway.ioctx, clone)
    images.remove_snap(gateway.cluster, gateway.ioctx, name, snap)
    assert images.remove_image(gateway.ioctx, name)
    images.remove_snap(gateway.cluster, gateway.ioctx, name, snap)
    with pytest.raises(NotFoundError):
        images.open_image(gateway.ioctx, name)


def test_names_are_24_hexadecimal_digits_and_none_comes_twice() -> None:
    names = {images.new_name() for _ in range(1000)}
    assert len(names) == 1000
    assert all(len(name) == 24 and int(name, 16) >= 0 for name in names)


def test_the_lock_is_kept_from_who_asks_and_free_after_closing(
    gateway: Gateway, other: Gateway
) -> None:
    name = gateway.create(SIZE)
    device = gateway.open(name, SIZE)
    with pytest.raises(InUseError, match=name):
        other.open(name, SIZE)
    write(device, b"x" * BLOCK_SIZE)
    gateway.close(device)
    assert read(other.open(name, SIZE)) == b"x" * BLOCK_SIZE


def test_closing_waits_for_what_is_under_way(ceph: Cluster, gateway: Gateway) -> None:
    device = gateway.open(gateway.create(SIZE), SIZE)
    ended: list[int] = []

    async def one(number: int, runner: StepRunner) -> None:
        await runner.run(device.write(number * BLOCK_SIZE, memoryview(b"x" * BLOCK_SIZE)))
        ended.append(number)

    async def main() -> None:
        runner = StepRunner()
        async with trio.open_nursery() as nursery:
            with ceph.hanging():
                for number in range(8):
                    nursery.start_soon(one, number, runner)
                await trio.testing.wait_all_tasks_blocked(0.1)
                nursery.start_soon(runner.run, device.close())
                await trio.testing.wait_all_tasks_blocked(0.1)
                assert ended == []

    trio.run(main)
    assert sorted(ended) == list(range(8))


def test_what_was_answered_is_there_for_the_next_gateway(gateway: Gateway, other: Gateway) -> None:
    name = gateway.create(SIZE)
    device = gateway.open(name, SIZE)
    write(device, b"x" * BLOCK_SIZE)
    taken = other.take(name, SIZE)
    assert read(taken) == b"x" * BLOCK_SIZE
    assert run_inline(taken.extents(0, SIZE, 1)) == [Extent(0, OBJECT_BYTES, hole=False)]


def test_who_was_shut_out_answers_nothing_and_changes_nothing(
    gateway: Gateway, other: Gateway
) -> None:
    name = gateway.create(SIZE)
    device = gateway.open(name, SIZE)
    write(device, b"old" * 1024)
    taken = other.take(name, SIZE)
    write(taken, b"new" * 1024)
    assert not device.lost.fired
    for steps in (
        device.write(0, memoryview(b"stale")),
        device.read(0, memoryview(bytearray(BLOCK_SIZE))),
        device.flush(),
        device.extents(0, SIZE, 1),
    ):
        with pytest.raises(VolumeTakenError):
            run_inline(steps)
        assert device.lost.fired
    gateway.close(device)
    assert read(taken)[:3072] == b"new" * 1024


def test_writes_on_their_way_while_the_volume_is_taken_end_and_none_lands_late(
    ceph: Cluster, gateway: Gateway, other: Gateway
) -> None:
    """The OSD hangs, with writes before it, when the other gateway begins to take the volume."""
    name = gateway.create(SIZE)
    device = gateway.open(name, SIZE)
    outcomes: list[object] = []

    async def one(number: int, runner: StepRunner) -> None:
        data = memoryview(b"old." * 1024)
        try:
            await runner.run(device.write(number * BLOCK_SIZE, data))
        except VolumeTakenError as error:
            outcomes.append(error)
        else:
            outcomes.append(None)

    async def load() -> None:
        runner = StepRunner()
        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(one, number, runner)
            started.set()

    started = threading.Event()
    with ceph.hanging():
        loading = threading.Thread(target=partial(trio.run, load))
        loading.start()
        started.wait()
    taken = other.take(name, SIZE)
    for number in range(16):
        write(taken, b"new." * 1024, number * BLOCK_SIZE)
    loading.join()
    assert len(outcomes) == 16
    assert read(taken, 0, 16 * BLOCK_SIZE) == b"new." * 1024 * 16


def test_requests_wait_for_as_long_as_the_cluster_hangs(ceph: Cluster, gateway: Gateway) -> None:
    device = gateway.open(gateway.create(SIZE), SIZE)
    write(device, b"before")
    ended = threading.Event()

    def later() -> None:
        write(device, b"after!")
        ended.set()

    waiting = threading.Thread(target=later)
    with ceph.hanging():
        waiting.start()
        assert not ended.wait(0.3)
    assert ended.wait(60)
    waiting.join()
    assert read(device, 0, 6) == b"after!"


def test_a_snap_is_not_begun_while_no_monitor_answers(
    ceph: Cluster, rbd_namespace: RbdSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the volume's writes do not wait for a monitor."""
    monkeypatch.setattr("bockd.drivers.rbd.settings.INDEX_TIMEOUT_SECONDS", 1)
    with Gateway(rbd_namespace) as gateway:
        name = gateway.create(SIZE)
        device = gateway.open(name, SIZE)
        with ceph.hanging("mon.a"):
            with pytest.raises(UnavailableError):
                gateway.snap(name)
            write(device, b"goes on")
        gateway.snap(name)


def test_a_snap_of_an_image_whose_holder_does_not_answer_is_given_up(
    ceph: Cluster, rbd_namespace: RbdSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librbd calls it a read-only image."""
    monkeypatch.setattr("bockd.drivers.rbd.settings.INDEX_TIMEOUT_SECONDS", 1)
    with Gateway(rbd_namespace) as gateway:
        name = gateway.create(SIZE)
        gateway.open(name, SIZE)
        with (
            silence_after_opening(ceph),
            pytest.raises(UnavailableError, match="who has the image open, does not answer"),
        ):
            gateway.snap(name)


def test_a_full_cluster_refuses_what_grows_and_nothing_else(
    ceph: Cluster, gateway: Gateway
) -> None:
    device = gateway.open(gateway.create(SIZE), SIZE)
    write(device, b"x" * OBJECT_BYTES)
    with ceph.full():
        with pytest.raises(NoSpaceError):
            write(device, b"y" * MIB, 2 * OBJECT_BYTES)
        with pytest.raises(NoSpaceError):
            gateway.create(SIZE)
        assert read(device, 0, MIB) == b"x" * MIB
        write(device, b"z" * BLOCK_SIZE)
        run_inline(device.trim(0, OBJECT_BYTES))
        run_inline(device.flush())
        assert read(device) == bytes(BLOCK_SIZE)
    write(device, b"y" * MIB, 2 * OBJECT_BYTES)


GUARDED = {
    "rbd_cache": "true",
    "rbd_blocklist_on_break_lock": "false",
    "rbd_discard_granularity_bytes": "65536",
    "rbd_disable_zero_copy_writes": "false",
    "rbd_persistent_cache_mode": "rwl",
}
"""Not `rbd_plugins`: librbd does not open the image at all where it lacks the plugin."""


@pytest.mark.parametrize("by_events", [True, False], ids=["events", "callbacks"])
def test_an_image_whose_options_are_overridden_is_refused(
    ceph: Cluster, rbd_namespace: RbdSettings, by_events: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumeimage, "by_events", by_events)
    with Gateway(rbd_namespace) as gateway, ceph.admin_ioctx() as pool:
        name = gateway.create(SIZE)
        for key, value in GUARDED.items():
            with images.open_image(gateway.ioctx, name) as image:
                image.config_set(key, value)
            with pytest.raises(DeviceError, match=f"rbd config image remove .*/{name} {key}'"):
                volumeimage.open_volume(rbd_namespace, name)
            with images.open_image(gateway.ioctx, name) as image:
                image.config_remove(key)
            rbd.RBD().config_set(pool, key, value)
            try:
                with pytest.raises(DeviceError, match=f"rbd config pool remove rbd {key}'"):
                    volumeimage.open_volume(rbd_namespace, name)
            finally:
                rbd.RBD().config_remove(pool, key)
        with images.open_image(gateway.ioctx, name) as image:
            image.config_set("rbd_qos_iops_limit", "1000")
        opened = volumeimage.open_volume(rbd_namespace, name)
        effective = {one["name"]: one["value"] for one in opened.config_list()}
        assert effective["rbd_cache"] == "false"
        opened.close()


@pytest.mark.parametrize("by_events", [True, False], ids=["events", "callbacks"])
def test_no_cache_of_ceph_conf_is_used(
    ceph: Cluster, rbd_namespace: RbdSettings, by_events: bool, tmp_path: Path
) -> None:
    conf = tmp_path / "ceph.conf"
    conf.write_text(
        ceph.conf_file.read_text()
        + "[client]\nrbd_plugins = pwl_cache\nrbd_persistent_cache_mode = ssd\nrbd_cache = true\n"
    )
    with Gateway(replace(rbd_namespace, conf_file=conf)) as gateway:
        gateway.by_events = by_events
        image = gateway.open_bare(gateway.create(SIZE))
        found = {one["name"]: one["value"] for one in image.config_list()}
        assert found["rbd_cache"] == "false"
        assert found["rbd_plugins"] == ""
        assert found["rbd_persistent_cache_mode"] == "disabled"
        assert gateway.cluster.conf_get("rbd_plugins") == ""
