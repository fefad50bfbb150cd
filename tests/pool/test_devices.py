"""The volume contract over an open volume of any kind, byte for byte."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import trio

from bockd.model import BLOCK_SIZE, MIB, Extent
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Steps, run_inline
from tests.pool.devices import DEVICES, OpenDevice

SIZE = 13 * MIB
"""Three objects of an image, and a part of a fourth one."""

STEPS = 120
AT_ONCE = 48


@pytest.fixture(params=sorted(DEVICES))
def opened(request: pytest.FixtureRequest) -> Iterator[OpenDevice]:
    with DEVICES[request.param](request, SIZE) as one:
        yield one


def all_extents(opened: OpenDevice, limit: int = 1000) -> list[Extent]:
    """Ask again and again until the device is described; extents that continue are joined."""
    found: list[Extent] = []
    position = 0
    while position < SIZE:
        for one in run_inline(opened.device.extents(position, SIZE - position, limit)):
            assert one.offset_bytes == position
            assert one.length_bytes > 0
            position += one.length_bytes
            if found and found[-1].hole == one.hole:
                last = found.pop()
                one = Extent(last.offset_bytes, last.length_bytes + one.length_bytes, one.hole)
            found.append(one)
    assert position == SIZE
    return found


def holes_read_as_zeros(opened: OpenDevice, content: bytes | bytearray) -> None:
    for one in all_extents(opened):
        if one.hole:
            end = one.offset_bytes + one.length_bytes
            assert content.count(0, one.offset_bytes, end) == one.length_bytes, one


def test_a_blank_volume_reads_as_zeros_and_is_one_hole(opened: OpenDevice) -> None:
    assert (opened.device.size_bytes, opened.device.read_only) == (SIZE, False)
    assert opened.read(0, SIZE) == bytes(SIZE)
    assert all_extents(opened) == [Extent(0, SIZE, hole=True)]


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, BLOCK_SIZE),
        (1, 1),
        (BLOCK_SIZE - 1, 2),
        (512, 3 * BLOCK_SIZE),
        (4 * MIB - 1, 2),
        (4 * MIB - BLOCK_SIZE, 2 * BLOCK_SIZE),
        (3 * MIB + 7, 6 * MIB),
        (SIZE - 1, 1),
        (SIZE - MIB, MIB),
    ],
)
def test_what_is_written_is_read_and_nothing_else_changes(
    opened: OpenDevice, offset: int, length: int
) -> None:
    data = random.Random(length).randbytes(length)
    opened.write(offset, data)
    assert opened.read(offset, length) == data
    content = opened.read(0, SIZE)
    assert content == bytes(offset) + data + bytes(SIZE - offset - length)
    holes_read_as_zeros(opened, content)


def test_a_trim_gives_back_whole_blocks_and_leaves_the_others(opened: OpenDevice) -> None:
    opened.write(0, b"x" * 8 * BLOCK_SIZE)
    run_inline(opened.device.trim(BLOCK_SIZE + 1, 3 * BLOCK_SIZE))
    run_inline(opened.device.trim(5 * BLOCK_SIZE + 1, BLOCK_SIZE - 2))
    expected = b"x" * 2 * BLOCK_SIZE + bytes(2 * BLOCK_SIZE) + b"x" * 4 * BLOCK_SIZE
    assert opened.read(0, 8 * BLOCK_SIZE) == expected


@pytest.mark.parametrize("allocate", [False, True])
@pytest.mark.parametrize("over", ["nothing", "data"])
def test_zeroing_covers_the_range_to_the_byte(
    opened: OpenDevice, allocate: bool, over: str
) -> None:
    content = bytearray(SIZE)
    if over == "data":
        content[:] = b"x" * SIZE
        opened.write(0, bytes(content))
    for offset, length in ((5, 2), (BLOCK_SIZE - 3, 2 * BLOCK_SIZE), (2 * MIB + 1, 7 * MIB)):
        run_inline(opened.device.zero(offset, length, allocate=allocate))
        content[offset : offset + length] = bytes(length)
    assert opened.read(0, SIZE) == content
    holes_read_as_zeros(opened, content)


def test_zeros_that_are_allocated_are_data(opened: OpenDevice) -> None:
    unit = opened.hole_bytes
    run_inline(opened.device.zero(unit, unit, allocate=True))
    assert all_extents(opened) == [
        Extent(0, unit, hole=True),
        Extent(unit, unit, hole=False),
        Extent(2 * unit, SIZE - 2 * unit, hole=True),
    ]


@pytest.mark.parametrize("how", ["trim", "zero"])
def test_what_is_given_back_is_a_hole(opened: OpenDevice, how: str) -> None:
    unit = opened.hole_bytes
    opened.write(0, b"x" * SIZE)
    assert all_extents(opened) == [Extent(0, SIZE, hole=False)]
    device = opened.device
    run_inline(
        device.trim(unit, 2 * unit)
        if how == "trim"
        else device.zero(unit, 2 * unit, allocate=False)
    )
    assert all_extents(opened) == [
        Extent(0, unit, hole=False),
        Extent(unit, 2 * unit, hole=True),
        Extent(3 * unit, SIZE - 3 * unit, hole=False),
    ]
    opened.write(unit, b"y" * unit)
    assert all_extents(opened)[1] == Extent(2 * unit, unit, hole=True)


def test_extents_keep_to_the_range_and_to_the_limit(opened: OpenDevice) -> None:
    unit = opened.hole_bytes
    opened.write(unit, b"x" * unit)
    expected = [
        Extent(512, unit - 512, hole=True),
        Extent(unit, unit, hole=False),
        Extent(2 * unit, unit - 512, hole=True),
    ]
    for limit in (1, 2, 3, 100):
        found = run_inline(opened.device.extents(512, 3 * unit - 1024, limit))
        assert found == expected[:limit]
        assert opened.device.try_extents(512, 3 * unit - 1024, limit) in (None, found)
    found = run_inline(opened.device.extents(unit + 512, 1024, 9))
    assert found == [Extent(unit + 512, 1024, hole=False)]


def test_what_is_done_at_once_is_done(opened: OpenDevice) -> None:
    device, data = opened.device, b"x" * BLOCK_SIZE
    if device.try_write(BLOCK_SIZE, memoryview(data)):
        device.commit()
        assert opened.read(BLOCK_SIZE, BLOCK_SIZE) == data
    opened.write(BLOCK_SIZE, data)
    into = bytearray(BLOCK_SIZE)
    if device.try_read(BLOCK_SIZE, memoryview(into)):
        assert into == data
    if device.try_trim(BLOCK_SIZE, BLOCK_SIZE):
        device.commit()
        data = bytes(BLOCK_SIZE)
    assert opened.read(BLOCK_SIZE, BLOCK_SIZE) == data
    device.commit()


def test_hints_and_flushes_change_nothing(opened: OpenDevice) -> None:
    opened.write(7, b"data")
    run_inline(opened.device.cache(0, SIZE))
    run_inline(opened.device.flush())
    run_inline(opened.device.flush())
    assert opened.read(0, SIZE) == bytes(7) + b"data" + bytes(SIZE - 11)


def test_an_open_volume_grows(opened: OpenDevice) -> None:
    opened.write(SIZE - BLOCK_SIZE, b"x" * BLOCK_SIZE)
    opened.grow(SIZE + 9 * MIB)
    assert opened.device.size_bytes == SIZE + 9 * MIB
    end = opened.read(SIZE - BLOCK_SIZE, 9 * MIB + BLOCK_SIZE)
    assert end == b"x" * BLOCK_SIZE + bytes(9 * MIB)
    found = run_inline(opened.device.extents(SIZE + 8 * MIB, MIB, 1))
    assert found == [Extent(SIZE + 8 * MIB, MIB, hole=True)]
    opened.write(SIZE + 8 * MIB, b"y" * MIB)
    assert opened.read(SIZE + 7 * MIB, 2 * MIB) == bytes(MIB) + b"y" * MIB
    found = run_inline(opened.device.extents(SIZE + 8 * MIB, MIB, 1))
    assert found == [Extent(SIZE + 8 * MIB, MIB, hole=False)]


@pytest.mark.parametrize("seed", range(3))
def test_a_volume_is_an_array_of_bytes(opened: OpenDevice, seed: int) -> None:
    chosen = random.Random(seed)
    content = bytearray(SIZE)
    for step in range(STEPS):
        length = chosen.choice((1, 511, BLOCK_SIZE, 3 * BLOCK_SIZE, 64 << 10, MIB, 5 * MIB))
        offset = chosen.randrange(SIZE - length + 1)
        if chosen.random() < 0.6:
            offset, length = offset & -BLOCK_SIZE, -(-length // BLOCK_SIZE) * BLOCK_SIZE
        end = offset + length
        match chosen.choice(("write", "write", "zero", "trim", "read", "flush", "extents")):
            case "write":
                data = chosen.randbytes(length)
                opened.write(offset, data)
                content[offset:end] = data
            case "zero":
                run_inline(opened.device.zero(offset, length, allocate=chosen.random() < 0.5))
                content[offset:end] = bytes(length)
            case "trim":
                run_inline(opened.device.trim(offset, length))
                first, last = -(-offset // BLOCK_SIZE) * BLOCK_SIZE, end & -BLOCK_SIZE
                if first < last:
                    content[first:last] = bytes(last - first)
            case "read":
                assert opened.read(offset, length) == content[offset:end], f"step {step}"
            case "flush":
                run_inline(opened.device.flush())
            case "extents":
                holes_read_as_zeros(opened, content)
    assert opened.read(0, SIZE) == content
    holes_read_as_zeros(opened, content)


def test_many_requests_at_once_do_not_mix(opened: OpenDevice) -> None:
    """Each writes parts of blocks that are neighbours of others', and reads them again."""
    length = BLOCK_SIZE + 512

    async def one(number: int) -> None:
        offset, data = number * length, bytes([number + 1]) * length
        into = bytearray(length)
        steps: list[Steps[None]] = [
            opened.device.write(offset, memoryview(data)),
            opened.device.flush(),
            opened.device.read(offset, memoryview(into)),
        ]
        for step in steps:
            await runner.run(step)
        assert into == data

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(AT_ONCE):
                nursery.start_soon(one, number)

    runner = StepRunner()
    trio.run(main)
    expected = b"".join(bytes([number + 1]) * length for number in range(AT_ONCE))
    assert opened.read(0, len(expected) + 512) == expected + bytes(512)
