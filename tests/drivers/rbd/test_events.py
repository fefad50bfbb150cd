"""An image by librbd's C interface: what goes wrong leaves nothing behind, and buffers live on.

Each test runs twice: with the compiled calls (`_requests`), and with those by ctypes.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
from array import array
from typing import cast

import pytest
import trio

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.completions import Request
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import run_inline
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.cluster import Cluster
from tests.nbd.server.serving import in_trio

need_modules()

from bockd.drivers.rbd import events, requests  # noqa: E402 - where Ceph's modules are
from bockd.drivers.rbd.binding import rbd  # noqa: E402
from bockd.drivers.rbd.device import RbdDevice  # noqa: E402
from bockd.drivers.rbd.events import EventImage  # noqa: E402
from bockd.drivers.rbd.images import lock_image  # noqa: E402
from bockd.drivers.rbd.settings import volume_options  # noqa: E402
from tests.drivers.rbd.gateway import Gateway  # noqa: E402


@pytest.fixture(autouse=True, params=["compiled", "ctypes"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = request.param == "compiled"
    way = requests.load({} if compiled else {"BOCKD_FASTLANE": "off"})
    assert (way is requests.BY_CTYPES) is not compiled
    monkeypatch.setattr(events, "requests", way)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def new_threads(before: set[threading.Thread]) -> set[threading.Thread]:
    """Return those that have begun since. One of an earlier test may end meanwhile."""
    return set(threading.enumerate()) - before


def open_volume(settings: RbdSettings, name: str) -> EventImage:
    return EventImage(settings, volume_options(settings), name)


async def result(request: Request) -> bytes | bytearray | None:
    return await request


def test_an_image_that_cannot_be_opened_leaves_nothing(rbd_namespace: RbdSettings) -> None:
    before, threads = descriptors(), set(threading.enumerate())
    with pytest.raises(rbd.OSError):
        open_volume(rbd_namespace, "none")
    assert (descriptors(), new_threads(threads)) == (before, set())


def test_a_closed_image_leaves_nothing_and_refuses_requests(rbd_namespace: RbdSettings) -> None:
    with Gateway(rbd_namespace) as gateway:
        name = gateway.create(MIB)
        before, threads = descriptors(), set(threading.enumerate())
        image = open_volume(rbd_namespace, name)
        assert (image.get_name(), image.size(), image.lock_get_owners()) == (name, MIB, [])
        request = Request()
        image.aio_flush(request)
        run_inline(result(request))
        image.close()
        image.close()
        assert (descriptors(), new_threads(threads)) == (before, set())
        with pytest.raises(rbd.OSError) as refused:
            image.aio_flush(Request())
        assert refused.value.errno == errno.EBADF


def test_buffers_live_until_the_result_though_nobody_waits(
    ceph: Cluster, rbd_namespace: RbdSettings
) -> None:
    with Gateway(rbd_namespace) as gateway:
        image = open_volume(rbd_namespace, gateway.create(MIB))
        first = Request()
        image.aio_write(b"x" * BLOCK_SIZE, 0, first)
        run_inline(result(first))
        with ceph.hanging():
            last = _forgotten(image)
            gc.collect()
        assert run_inline(result(last)) == b"x" * BLOCK_SIZE
        again = Request()
        image.aio_read(2 * BLOCK_SIZE, 16 * BLOCK_SIZE, again)
        assert run_inline(result(again)) == b"".join(
            bytes([number]) * BLOCK_SIZE for number in range(16)
        )
        image.close()


def test_a_cluster_that_hangs_does_not_hold_up_who_asks(
    ceph: Cluster, rbd_namespace: RbdSettings
) -> None:
    """However much is under way: librados' own limits are 1024 requests and 100 MiB."""
    with Gateway(rbd_namespace) as gateway:
        image = open_volume(rbd_namespace, gateway.create(MIB))
        lock_image(image)
        first = Request()
        image.aio_write(b"x" * BLOCK_SIZE, 0, first)
        run_inline(result(first))
        payload, requests = bytes(MIB), [Request() for _ in range(1200)]
        with ceph.hanging():
            for number, request in enumerate(requests):
                if number % 10:
                    image.aio_write(payload[:BLOCK_SIZE], number % 256 * BLOCK_SIZE, request)
                else:
                    image.aio_write(payload, 0, request)
        for request in requests:
            run_inline(result(request))
        image.close()


def _forgotten(image: EventImage) -> Request:
    """Send requests of which nobody keeps anything, and one read that somebody waits for."""
    for number in range(16):
        image.aio_write(bytes([number]) * BLOCK_SIZE, (2 + number) * BLOCK_SIZE, Request())
        image.aio_read(0, BLOCK_SIZE, Request())
    last = Request()
    image.aio_read(0, BLOCK_SIZE, last)
    return last


def test_a_read_that_ends_behind_the_image_is_short(rbd_namespace: RbdSettings) -> None:
    with Gateway(rbd_namespace) as gateway:
        image = open_volume(rbd_namespace, gateway.create(MIB))
        request = Request()
        image.aio_read(MIB - 512, 1024, request)
        assert run_inline(result(request)) == bytes(512)
        image.close()


def test_what_is_written_is_read_from_each_kind_of_buffer(rbd_namespace: RbdSettings) -> None:
    with Gateway(rbd_namespace) as gateway:
        image = open_volume(rbd_namespace, gateway.create(MIB))
        whole = os.urandom(4 * BLOCK_SIZE)
        kinds = [
            memoryview(bytearray(whole)),
            memoryview(whole),
            memoryview(whole)[BLOCK_SIZE : 3 * BLOCK_SIZE],
            memoryview(bytearray(whole))[512:1024],
        ]
        for data in kinds:
            written, read, into = Request(), Request(), bytearray(len(data) + 2)
            image.aio_write_from(data, BLOCK_SIZE, written)
            run_inline(result(written))
            image.aio_read_into(memoryview(into)[1:-1], BLOCK_SIZE, read)
            run_inline(result(read))
            assert (read.status, bytes(into)) == (len(data), b"\0" + bytes(data) + b"\0")
        image.close()


def test_many_results_are_taken_at_once(ceph: Cluster, rbd_namespace: RbdSettings) -> None:
    """More than one call of librbd's gives."""
    with Gateway(rbd_namespace) as gateway:
        image = open_volume(rbd_namespace, gateway.create(MIB))
        asked = [Request() for _ in range(3 * requests.AT_ONCE + 1)]
        for number, request in enumerate(asked):
            image.aio_read(number % 256 * BLOCK_SIZE, BLOCK_SIZE, request)
        for request in asked:
            assert run_inline(result(request)) == bytes(BLOCK_SIZE)
        image.close()


def test_a_request_that_librbd_does_not_take_is_an_error_and_forgotten(
    rbd_namespace: RbdSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        def read(self, *_: object) -> int:
            return -errno.EINVAL

        write = read

    with Gateway(rbd_namespace) as gateway:
        name = gateway.create(MIB)
        with monkeypatch.context() as patched:
            patched.setattr(events, "requests", Refusing())
            image = open_volume(rbd_namespace, name)
        with pytest.raises(rbd.OSError) as unread:
            image.aio_read(0, BLOCK_SIZE, Request())
        with pytest.raises(rbd.OSError) as unwritten:
            image.aio_write(bytes(BLOCK_SIZE), 0, Request())
        assert unread.value.errno == unwritten.value.errno == errno.EINVAL
        image.close()  # waits for what is under way: nothing


@in_trio
async def test_the_loop_that_reads_takes_the_results(rbd_namespace: RbdSettings) -> None:
    """There is no thread, and nothing is left of the image after it was closed beside requests."""
    with Gateway(rbd_namespace) as gateway:
        name = gateway.create(MIB)
        before, threads = descriptors(), set(threading.enumerate())
        image = open_volume(rbd_namespace, name)
        device = RbdDevice(image, "volume 7", MIB, read_only=False)
        runner, into = StepRunner(), memoryview(bytearray(BLOCK_SIZE))
        await runner.run(device.write(0, memoryview(b"x" * BLOCK_SIZE)))
        await runner.run(device.read(0, into))
        assert bytes(into) == b"x" * BLOCK_SIZE
        assert (image.watched, new_threads(threads)) == (True, set())
        async with trio.open_nursery() as nursery:
            for number in range(16):
                data = memoryview(bytes([number]) * BLOCK_SIZE)
                nursery.start_soon(runner.run, device.write(number * BLOCK_SIZE, data))
            await trio.lowlevel.checkpoint()
            await runner.run(device.close())
        while image.watched:
            await trio.sleep(0.01)
        assert descriptors() == before


@in_trio
async def test_an_image_that_a_thread_served_goes_over_to_the_loop(
    rbd_namespace: RbdSettings,
) -> None:
    with Gateway(rbd_namespace) as gateway:
        image = open_volume(rbd_namespace, gateway.create(MIB))
        threads = set(threading.enumerate())
        device = RbdDevice(image, "volume 7", MIB, read_only=False)
        data, into = memoryview(b"x" * BLOCK_SIZE), memoryview(bytearray(BLOCK_SIZE))
        run_inline(device.write(0, data))
        assert (image.watched, len(new_threads(threads))) == (False, 1)
        await StepRunner().run(device.read(0, into))
        assert (image.watched, into) == (True, data)
        run_inline(device.flush())  # the loop, which should take it, waits for us
        while new_threads(threads):
            await trio.sleep(0.01)
        await StepRunner().run(device.close())


def test_without_the_compiled_module_requests_go_by_ctypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no compiler."""
    monkeypatch.delattr("bockd.drivers.rbd._requests", raising=False)
    monkeypatch.setitem(sys.modules, "bockd.drivers.rbd._requests", None)
    assert requests.load({}) is requests.BY_CTYPES


def test_the_compiled_calls_refuse_what_is_no_request() -> None:
    """With an error of Python's, before librbd hears of anything."""
    way = requests.load({})
    assert way is not requests.BY_CTYPES
    with pytest.raises(TypeError):
        way.read(1, 2, 3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        way.write(1, 2, 3, cast(bytes, 4))
    with pytest.raises(BufferError):
        way.read(1, 2, 3, cast(bytearray, b"not to be written to"))
    with pytest.raises(OverflowError):
        way.write(1, 2, -1, b"")
    with pytest.raises(TypeError):
        way.results(1)  # type: ignore[call-arg]


def test_an_error_of_polling_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_poll_io_events", lambda *_: -errno.EINVAL)
    assert requests.BY_CTYPES.results(1, array("q", bytes(16 * requests.AT_ONCE))) == 0
