"""The fast lane over a packed layer goes where the cells are, not where the block numbers are."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.format.windows import WINDOW_BYTES
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import run_inline
from tests.amounts import amount
from tests.nbd.protocol import wire
from tests.nbd.server.packedview import BLOCKS, Lane, PackedDevice
from tests.nbd.server.sides import Line

ORDERED, SCATTERED, BESIDE, OTHERS = 0, LEAF_BLOCKS, 2 * LEAF_BLOCKS, 3 * LEAF_BLOCKS
"""Leaves by their first block: cells that follow each other, cells in no order, a leaf of both
layers, and a raw one."""


@pytest.fixture
def device(tmp_path: Path) -> Iterator[PackedDevice]:
    with closing(PackedDevice(tmp_path)) as made:
        cells = iter(random.Random(1).sample(range(2 * LEAF_BLOCKS), LEAF_BLOCKS))
        for number in range(LEAF_BLOCKS):
            made.put(ORDERED + number, 2 * LEAF_BLOCKS + number)
            made.put(SCATTERED + number, next(cells))
            made.put(BESIDE + number, 3 * LEAF_BLOCKS + number // 2 if number % 2 else None)
            made.put(OTHERS + number, None)
        made.cells[OTHERS // LEAF_BLOCKS] = made.cells[SCATTERED // LEAF_BLOCKS]
        yield made


@pytest.fixture
def lane(device: PackedDevice) -> Lane:
    return Lane(device)


def read(block: int, within: int = 0, length: int = BLOCK_SIZE, cookie: int = 1) -> bytes:
    return wire.request(0, cookie, block * BLOCK_SIZE + within, length)


def reply(device: PackedDevice, block: int, within: int = 0, length: int = BLOCK_SIZE) -> bytes:
    start = block * BLOCK_SIZE + within
    return struct.pack(">IIQ", 0x67446698, 0, 1) + device.content[start : start + length]


@pytest.mark.parametrize(
    ("block", "within", "length"),
    [
        (SCATTERED + 7, 0, BLOCK_SIZE),
        (SCATTERED + 255, 512, 100),
        (ORDERED + 3, 0, 5 * BLOCK_SIZE),
        (ORDERED + 3, 700, 5 * BLOCK_SIZE),
        (BESIDE + 9, 0, BLOCK_SIZE),
        (BESIDE + 10, 0, BLOCK_SIZE),
        (OTHERS, 5, 4 * BLOCK_SIZE),
    ],
)
def test_reads_find_the_cell(
    device: PackedDevice, lane: Lane, block: int, within: int, length: int
) -> None:
    replies, rest = lane.serve(read(block, within, length))
    assert (replies, rest) == (reply(device, block, within, length), [])


@pytest.mark.parametrize("block", [SCATTERED, BESIDE, ORDERED + LEAF_BLOCKS - 1])
def test_what_is_in_two_places_is_for_others(lane: Lane, block: int) -> None:
    replies, rest = lane.serve(read(block, 512, BLOCK_SIZE))
    assert (replies, len(rest)) == (b"", 1)


def test_cells_that_are_not_in_memory_are_for_others(device: PackedDevice, lane: Lane) -> None:
    cells = device.cells.pop(SCATTERED // LEAF_BLOCKS)
    stream = read(SCATTERED) + wire.write(2, SCATTERED * BLOCK_SIZE, b"w" * 512)
    for broken in (None, cells[:-1]):
        if broken is not None:
            device.cells[SCATTERED // LEAF_BLOCKS] = broken
        with closing(Line(MIB)) as line:
            assert len(lane.serve(stream, line)[1]) == 2
            assert len(lane.serve(read(SCATTERED, 0, 65_536), line)[1]) == 1
    device.cells[SCATTERED // LEAF_BLOCKS] = cells
    assert device.found() == device.content


def test_the_last_cells_of_a_file_are_no_neighbours(device: PackedDevice, lane: Lane) -> None:
    """Cell numbers have 32 bits: the one behind the last is not the first."""
    cells = device.cells[SCATTERED // LEAF_BLOCKS]
    cells[0], cells[1] = (1 << 32) - 1, 0
    replies, rest = lane.serve(read(SCATTERED, 0, 2 * BLOCK_SIZE))
    assert (replies, len(rest)) == (b"", 1)


def test_writes_in_place_go_to_the_cell(device: PackedDevice, lane: Lane) -> None:
    stream = b""
    for block, within, length in [(SCATTERED + 7, 0, 4096), (ORDERED + 9, 100, 9000)]:
        data = random.Random(block).randbytes(length)
        start = block * BLOCK_SIZE + within
        device.content[start : start + length] = data
        stream += wire.write(1, start, data)
    before = bytes(device.found())
    replies, rest = lane.serve(stream)
    assert (len(replies), rest) == (2 * 16, [])
    assert device.found() == device.content != before
    assert device.journal.unsynced


def test_a_write_in_place_over_two_cells_is_for_others(device: PackedDevice, lane: Lane) -> None:
    before = device.found()
    stream = wire.write(1, SCATTERED * BLOCK_SIZE + 512, b"w" * BLOCK_SIZE)
    replies, rest = lane.serve(stream)
    assert (replies, len(rest)) == (b"", 1)
    assert device.found() == before
    assert not device.journal.unsynced


def test_reads_from_the_disk_name_the_byte_in_the_file(device: PackedDevice, lane: Lane) -> None:
    device.drop()
    asked = [(SCATTERED + 4, 0, BLOCK_SIZE), (ORDERED + 5, 512, 2 * BLOCK_SIZE), (OTHERS, 0, 512)]
    replies, rest = lane.serve(b"".join(read(*one) for one in asked))
    assert (replies, rest) == (b"", [])
    assert lane.missed is not None
    run_inline(lane.missed)
    assert lane.missed_reply == b"".join(reply(device, *one) for one in asked)
    cells = device.cells
    assert [part[:4] for part in device.parts] == [
        (2, (SCATTERED + 4) * BLOCK_SIZE, cells[1][4] * BLOCK_SIZE, BLOCK_SIZE),
        (2, (ORDERED + 5) * BLOCK_SIZE + 512, cells[0][5] * BLOCK_SIZE + 512, 2 * BLOCK_SIZE),
        (1, OTHERS * BLOCK_SIZE, OTHERS * BLOCK_SIZE, 512),
    ]
    for *_, length, at in device.parts:
        assert device.into[at : at + length] == lane.missed_reply[at : at + length]


# -- sent from a mapping -------------------------------------------------------------------------


@pytest.mark.parametrize("block", [ORDERED, SCATTERED, OTHERS])
@pytest.mark.parametrize(
    ("within", "length"), [(0, MIB), (0, 8192), (4096, 65_536), (100, 65_536), (512, MIB - 512)]
)
@pytest.mark.parametrize("send_buffer_bytes", [20_000, 4 * MIB], ids=["small", "large"])
def test_large_reads_are_sent_piece_by_piece(
    device: PackedDevice, lane: Lane, block: int, within: int, length: int, send_buffer_bytes: int
) -> None:
    """Also what the socket does not take at once, which is read from the file then."""
    with closing(Line(send_buffer_bytes)) as line:
        replies, rest = lane.serve(read(block, within, length), line)
    assert (replies, rest) == (reply(device, block, within, length), [])


def test_more_pieces_than_one_round_sends(device: PackedDevice, lane: Lane) -> None:
    """What has no room any more waits for the next round; none goes to others."""
    asked = [(SCATTERED + n, 0, 40 * BLOCK_SIZE) for n in range(20)]
    with closing(Line(8 * MIB)) as line:
        replies, rest = lane.serve(b"".join(read(*one) for one in asked), line)
    assert (replies, rest) == (b"".join(reply(device, *one) for one in asked), [])


def test_a_piece_that_is_not_in_the_page_cache_is_for_others(
    device: PackedDevice, lane: Lane
) -> None:
    device.drop()
    with closing(Line(MIB)) as line:
        for number in range(15):  # all but the last
            os.preadv(device.packed.first_descriptor, [bytearray(1)], cell_byte(device, number))
        assert len(lane.serve(read(SCATTERED, 0, 16 * BLOCK_SIZE), line)[1]) == 1
        os.preadv(device.packed.first_descriptor, [bytearray(1)], cell_byte(device, 15))
        replies, rest = lane.serve(read(SCATTERED, 0, 16 * BLOCK_SIZE), line)
    assert (replies, rest) == (reply(device, SCATTERED, 0, 16 * BLOCK_SIZE), [])


def cell_byte(device: PackedDevice, number: int) -> int:
    return device.cells[SCATTERED // LEAF_BLOCKS][number] * BLOCK_SIZE


def test_pieces_come_from_many_windows_and_across_their_edges(
    device: PackedDevice, lane: Lane
) -> None:
    """Of a sparse file that is larger than all windows that the lane remembers."""
    per_window = WINDOW_BYTES // BLOCK_SIZE
    for number in range(24):
        device.put(SCATTERED + number, number % 12 * per_window + per_window // 2 + number)
    for number in range(100, 108):  # one run, of two windows
        device.put(SCATTERED + number, 3 * per_window - 4 + number - 100)
    with closing(Line(8 * MIB)) as line:
        for first, count in [(0, 24), (0, 24), (102, 2), (104, 4)]:
            asked = (SCATTERED + first, 0, count * BLOCK_SIZE)
            assert lane.serve(read(*asked), line) == (reply(device, *asked), [])
        assert lane.serve(read(SCATTERED + 100, 0, 8 * BLOCK_SIZE))[1] == []
        assert lane.serve(read(SCATTERED + 90, 0, 20 * BLOCK_SIZE), line)[1] != []
    # Windows that are known are not asked for again.
    asked_before = device.packed.asked
    with closing(Line(8 * MIB)) as line:
        lane.serve(read(SCATTERED, 0, 8 * BLOCK_SIZE) * 10, line)
    assert device.packed.asked - asked_before == 8


def test_a_file_that_grows_is_mapped_to_its_end(device: PackedDevice, lane: Lane) -> None:
    end = os.fstat(device.packed.first_descriptor).st_size // BLOCK_SIZE
    with closing(Line(8 * MIB)) as line:
        lane.serve(read(ORDERED, 0, 65_536), line)
        for number in range(4):
            device.put(ORDERED + number, end + number)
            asked = (ORDERED, 0, 2 * BLOCK_SIZE * (number // 2 + 1))
            replies, rest = lane.serve(read(*asked), line)
            assert (replies, rest) == (reply(device, *asked), [])


@settings(max_examples=amount(20), deadline=None)
@given(st.data())
def test_whatever_is_asked_is_right(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Blocks anywhere in both layers; reads and writes of any length, sent or handed back."""
    with closing(PackedDevice(tmp_path_factory.mktemp("device"))) as device:
        lane, cell = Lane(device), 0
        for block in data.draw(st.permutations(range(24))):
            if data.draw(st.integers(0, 5)) == 0:
                device.put(block, None)
            else:
                cell += data.draw(st.sampled_from([1, 1, 1, 2]))
                device.put(block, cell)
        with closing(Line(data.draw(st.sampled_from([20_000, MIB])))) as line:
            for _ in range(data.draw(st.integers(1, 8))):
                offset = data.draw(st.integers(0, 24 * BLOCK_SIZE - 1))
                length = data.draw(st.integers(1, 24 * BLOCK_SIZE - offset))
                by = line if data.draw(st.booleans()) else None
                if data.draw(st.booleans()):
                    payload = random.Random(offset).randbytes(min(length, 65_536))
                    replies, rest = lane.serve(wire.write(1, offset, payload), by)
                    if not rest:
                        device.content[offset : offset + len(payload)] = payload
                    assert len(replies) == 16 * (not rest)
                else:
                    replies, rest = lane.serve(wire.request(0, 1, offset, length), by)
                    assert rest or replies == reply(device, 0, offset, length)
                assert device.found() == device.content


def test_the_view_made_by_hand_is_whole(device: PackedDevice) -> None:
    assert device.found() == device.content
    assert len(device.content) == BLOCKS * BLOCK_SIZE
