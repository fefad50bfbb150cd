"""A device over an image whose answers come late, in any order and from other threads."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from bockd.drivers.rbd.completions import Request
from bockd.drivers.rbd.extents import OBJECT_BYTES
from bockd.errors import (
    BockdError,
    DeviceError,
    NoSpaceError,
    UnavailableError,
    VolumeTakenError,
)
from bockd.model import BLOCK_SIZE, Extent
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Steps, run_inline
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.fakeimage import FakeImage, InPlaceImage
from tests.nbd.server.serving import in_trio

need_modules()

from bockd.drivers.rbd.binding import rbd  # noqa: E402 - where there is one
from bockd.drivers.rbd.device import RbdDevice  # noqa: E402

SIZE = 4 * OBJECT_BYTES

OPERATIONS: dict[str, Callable[[RbdDevice], Steps[Any]]] = {
    "read": lambda device: device.read(0, memoryview(bytearray(BLOCK_SIZE))),
    "write": lambda device: device.write(0, memoryview(b"x" * BLOCK_SIZE)),
    "zero": lambda device: device.zero(0, BLOCK_SIZE, allocate=False),
    "trim": lambda device: device.trim(0, BLOCK_SIZE),
    "flush": lambda device: device.flush(),
}


class Bench:
    """A device, its image, and operations that run under trio until the image answers."""

    def __init__(self, nursery: trio.Nursery, *, read_only: bool = False) -> None:
        self.image = FakeImage(SIZE)
        self.device = RbdDevice(self.image, "volume 7", SIZE, read_only=read_only)
        self.outcomes: dict[str, object] = {}
        """What has come of each operation, in the order in which they ended."""
        self._nursery = nursery
        self._runner = StepRunner()

    async def begin(self, name: str, steps: Steps[Any]) -> None:
        """Run an operation until it waits for the image."""

        async def run() -> None:
            try:
                self.outcomes[name] = await self._runner.run(steps)
            except BockdError as error:
                self.outcomes[name] = error

        self._nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()

    async def answer(self, place: int, status: int = 0) -> None:
        """Let the image answer one of the requests that it has."""
        self.image.pending.pop(place).end(status)
        await trio.testing.wait_all_tasks_blocked()


def ready(
    size: int = SIZE, *, read_only: bool = False, kind: type[FakeImage] = FakeImage
) -> tuple[FakeImage, RbdDevice]:
    """Make a device whose image answers at once."""
    image = kind(size)
    image.at_once = 0
    return image, RbdDevice(image, "volume 7", size, read_only=read_only)


@in_trio
async def test_answers_reach_who_asked_in_the_order_of_the_image() -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery)
        bench.image.put(0, b"a" * BLOCK_SIZE + b"b" * BLOCK_SIZE)
        first, second = bytearray(BLOCK_SIZE), bytearray(BLOCK_SIZE)
        await bench.begin("first", bench.device.read(0, memoryview(first)))
        await bench.begin("second", bench.device.read(BLOCK_SIZE, memoryview(second)))
        await bench.begin("write", bench.device.write(0, memoryview(b"c" * BLOCK_SIZE)))
        assert bench.outcomes == {}
        await bench.answer(2)
        await bench.answer(1)
        assert list(bench.outcomes) == ["write", "second"]
        assert (bytes(first), bytes(second)) == (bytes(BLOCK_SIZE), b"b" * BLOCK_SIZE)
        await bench.answer(0)
        assert bytes(first) == b"c" * BLOCK_SIZE
        assert set(bench.outcomes.values()) == {None}


def test_nothing_is_done_at_once() -> None:
    image, device = ready()
    assert not device.try_read(0, memoryview(bytearray(BLOCK_SIZE)))
    assert not device.try_write(0, memoryview(bytearray(BLOCK_SIZE)))
    assert not device.try_trim(0, BLOCK_SIZE)
    device.commit()
    assert image.names == []


def test_a_payload_is_held_until_the_image_has_answered() -> None:
    """Though whoever waited for the answer is gone."""
    image, device = ready()
    image.at_once = None
    steps = device.write(0, memoryview(b"x" * BLOCK_SIZE))
    steps.send(None)
    steps.close()
    del steps
    request = image.pending[0].oncomplete
    assert isinstance(request, Request)
    assert request.payload == b"x" * BLOCK_SIZE
    image.pending[0].end()
    assert request.payload is None


def test_a_write_takes_the_data_as_it_is_when_it_is_sent() -> None:
    image, device = ready()
    image.at_once = None
    data = bytearray(b"x" * BLOCK_SIZE)
    steps = device.write(0, memoryview(data))
    steps.send(None)
    data[:] = b"y" * BLOCK_SIZE
    image.pending[0].end()
    assert image.content(0, BLOCK_SIZE) == b"x" * BLOCK_SIZE
    with pytest.raises(StopIteration):
        steps.send(None)


@pytest.mark.parametrize("kind", [FakeImage, InPlaceImage])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EIO, DeviceError),
        (errno.ESHUTDOWN, VolumeTakenError),
        (errno.EROFS, VolumeTakenError),
    ],
)
@pytest.mark.parametrize("at_once", [False, True], ids=["later", "when it is sent"])
def test_an_error_is_told_in_our_terms(
    name: str, number: int, expected: type[BockdError], at_once: bool, kind: type[FakeImage]
) -> None:
    image, device = ready(kind=kind)
    if at_once:
        image.refusal = rbd.OSError("refused", number)
    else:
        image.at_once = -number
    with pytest.raises(expected, match=r"^volume 7: .+ing: "):
        run_inline(OPERATIONS[name](device))
    assert device.lost.fired is (expected is VolumeTakenError)


def test_a_snapshot_that_is_shut_out_was_not_taken() -> None:
    image, device = ready(read_only=True)
    image.at_once = -errno.ESHUTDOWN
    with pytest.raises(UnavailableError):
        run_inline(OPERATIONS["read"](device))
    assert not device.lost.fired


def test_a_read_that_brings_less_is_an_error() -> None:
    image, device = ready()
    image.longest_read = 5
    into = memoryview(bytearray(BLOCK_SIZE))
    with pytest.raises(DeviceError, match="5 were sent"):
        run_inline(device.read(0, into))


@pytest.mark.parametrize("name", OPERATIONS)
@in_trio
async def test_nothing_is_answered_after_the_volume_was_taken(name: str) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery)
        device = bench.device
        await bench.begin("under way", OPERATIONS[name](device))
        await bench.begin("fenced", OPERATIONS["write"](device))
        await bench.begin("failing", OPERATIONS["read"](device))
        assert not device.lost.fired
        await bench.answer(1, -errno.ESHUTDOWN)
        assert device.lost.fired
        # What comes of the others does not count, whatever it is.
        await bench.answer(0)
        await bench.answer(0, -errno.EIO)
        await bench.begin("later", OPERATIONS[name](device))
        assert list(bench.outcomes) == ["fenced", "under way", "failing", "later"]
        assert {type(one) for one in bench.outcomes.values()} == {VolumeTakenError}
        assert bench.image.pending == []


def test_a_volume_that_was_taken_answers_no_form() -> None:
    image, device = ready()
    run_inline(device.extents(0, SIZE, 1))
    image.at_once = -errno.ESHUTDOWN
    with pytest.raises(VolumeTakenError):
        run_inline(device.flush())
    with pytest.raises(VolumeTakenError):
        device.commit()
    with pytest.raises(VolumeTakenError):
        device.try_extents(0, SIZE, 1)
    for steps in (device.extents(0, SIZE, 1), device.trim(1, 2)):
        with pytest.raises(VolumeTakenError):
            run_inline(steps)


def test_a_read_into_a_buffer_of_a_volume_that_was_taken_leaves_it_alone() -> None:
    image, device = ready()
    image.put(0, b"x" * BLOCK_SIZE)
    image.at_once = None
    into = bytearray(BLOCK_SIZE)
    steps = device.read(0, memoryview(into))
    steps.send(None)
    device.lost.fire()
    image.pending[0].end()
    with pytest.raises(VolumeTakenError):
        steps.send(None)
    assert into == bytes(BLOCK_SIZE)


def test_a_read_in_place_is_right_short_or_of_a_volume_that_was_taken() -> None:
    image, device = ready(kind=InPlaceImage)
    image.put(0, b"x" * BLOCK_SIZE)
    into = memoryview(bytearray(BLOCK_SIZE))
    image.at_once = BLOCK_SIZE
    run_inline(device.read(0, into))
    assert (image.names, bytes(into)) == (["read into"], b"x" * BLOCK_SIZE)
    image.at_once = 5
    with pytest.raises(DeviceError, match="5 were sent"):
        run_inline(device.read(0, into))
    image.at_once = None
    steps = device.read(0, into)
    steps.send(None)
    device.lost.fire()
    image.pending[0].end(BLOCK_SIZE)
    with pytest.raises(VolumeTakenError):
        steps.send(None)
    with pytest.raises(VolumeTakenError):
        run_inline(device.read(0, into))
    assert image.names == ["read into"] * 3  # the last one was not sent


@pytest.mark.parametrize(
    ("offset", "length", "sent"),
    [
        (0, BLOCK_SIZE, (0, BLOCK_SIZE)),
        (1, 2 * BLOCK_SIZE, (BLOCK_SIZE, BLOCK_SIZE)),
        (BLOCK_SIZE - 1, BLOCK_SIZE + 2, (BLOCK_SIZE, BLOCK_SIZE)),
        (1, BLOCK_SIZE, None),
        (0, BLOCK_SIZE - 1, None),
        (512, 512, None),
    ],
)
def test_a_trim_sends_whole_blocks(offset: int, length: int, sent: tuple[int, int] | None) -> None:
    image, device = ready()
    image.at_once = None
    steps = device.trim(offset, length)
    if sent is None:
        assert run_inline(steps) is None
        assert image.pending == []
    else:
        steps.send(None)
        assert image.pending[0].arguments == sent
        steps.close()


def test_zeros_are_allocated_only_on_request() -> None:
    image, device = ready()
    image.put(0, b"x" * BLOCK_SIZE)
    run_inline(device.zero(0, OBJECT_BYTES, allocate=False))
    assert run_inline(device.extents(0, OBJECT_BYTES, 2)) == [Extent(0, OBJECT_BYTES, hole=True)]
    run_inline(device.zero(0, OBJECT_BYTES, allocate=True))
    assert device.try_extents(0, SIZE, 9) == [
        Extent(0, OBJECT_BYTES, hole=False),
        Extent(OBJECT_BYTES, SIZE - OBJECT_BYTES, hole=True),
    ]


def test_what_exists_is_asked_once_and_only_when_it_matters() -> None:
    image, device = ready()
    image.put(2 * OBJECT_BYTES, b"there already")
    run_inline(device.write(0, memoryview(b"x" * 512)))
    assert (device.try_extents(0, SIZE, 9), image.diffs) == (None, 0)
    found = run_inline(device.extents(0, SIZE, 9))
    assert [one.hole for one in found] == [False, True, False, True]
    assert device.try_extents(0, SIZE, 9) == found
    run_inline(device.write(OBJECT_BYTES, memoryview(b"x" * 512)))
    assert device.try_extents(0, SIZE, 1) == [Extent(0, 3 * OBJECT_BYTES, hole=False)]
    assert image.diffs == 1


@in_trio
async def test_several_who_want_to_know_ask_once() -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery)
        runner = StepRunner()
        for _ in range(3):
            nursery.start_soon(runner.run, bench.device.extents(0, SIZE, 9))
    assert bench.image.diffs == 1


def test_a_write_during_the_question_is_data() -> None:
    """The answer is of a moment before the write."""
    image, device = ready()
    image.while_diffing = lambda: run_inline(device.write(0, memoryview(b"x" * 512)))
    found = run_inline(device.extents(0, SIZE, 9))
    assert [one.hole for one in found] == [False, True]


def test_a_question_that_failed_is_asked_again() -> None:
    image, device = ready()
    image.refusal = rbd.OSError("no", errno.EIO)
    with pytest.raises(DeviceError, match="volume 7: extents"):
        run_inline(device.extents(0, SIZE, 9))
    image.refusal = None
    assert run_inline(device.extents(0, SIZE, 9)) == [Extent(0, SIZE, hole=True)]


def test_a_volume_that_has_grown_is_longer_and_empty_there() -> None:
    _, device = ready()
    device.grow(2 * SIZE)
    assert device.size_bytes == 2 * SIZE
    device._image = ready(2 * SIZE)[0]
    assert run_inline(device.extents(0, 2 * SIZE, 9)) == [Extent(0, 2 * SIZE, hole=True)]
    run_inline(device.write(2 * SIZE - 512, memoryview(b"x" * 512)))
    assert device.try_extents(0, 2 * SIZE, 9) == [
        Extent(0, 2 * SIZE - OBJECT_BYTES, hole=True),
        Extent(2 * SIZE - OBJECT_BYTES, OBJECT_BYTES, hole=False),
    ]


def test_closing_closes_the_image_and_says_what_went_wrong() -> None:
    image, device = ready()
    image.refusal = rbd.OSError("no", errno.EIO)
    with pytest.raises(DeviceError, match="volume 7: closing"):
        run_inline(device.close())
    image.refusal = None
    run_inline(device.close())
    assert image.closed
