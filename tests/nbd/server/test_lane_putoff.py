"""Blocks that are new to a packed head: the fast lane puts them off and writes them together."""

from __future__ import annotations

import os
import random
import struct
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.model import BLOCK_SIZE, MIB
from bockd.nbd.server import fastlane
from tests.nbd.protocol import wire
from tests.nbd.server.packedview import NO_CELL, PACKED, Lane, PackedDevice, Port
from tests.nbd.server.sides import Line

HELD, FROZEN, NEVER = 0, LEAF_BLOCKS, 2 * LEAF_BLOCKS
"""Leaves by their first block: in the head, in the raw layer, and nowhere."""
TAIL = LEAF_BLOCKS


@pytest.fixture
def device(tmp_path: Path) -> Iterator[PackedDevice]:
    with closing(PackedDevice(tmp_path)) as made:
        for number in range(LEAF_BLOCKS):
            made.put(HELD + number, number)
            made.put(FROZEN + number, None)
        yield made


@pytest.fixture
def port(device: PackedDevice) -> Port:
    return device.open_port(TAIL)


@pytest.fixture
def lane(device: PackedDevice, port: Port) -> Lane:
    return Lane(device)


class Client:
    """Writes to a device, and remembers what."""

    def __init__(self, device: PackedDevice) -> None:
        self._device = device
        self._random = random.Random(5)
        self.cookie = 0

    def write(self, block: int, blocks: int = 1, within: int = 0, length: int = 0) -> bytes:
        data = self._random.randbytes(length or blocks * BLOCK_SIZE)
        start = block * BLOCK_SIZE + within
        self._device.content[start : start + len(data)] = data
        self.cookie += 1
        return wire.write(self.cookie, start, data)

    def read(self, block: int, blocks: int = 1) -> bytes:
        self.cookie += 1
        return wire.request(0, self.cookie, block * BLOCK_SIZE, blocks * BLOCK_SIZE)


@pytest.fixture
def client(device: PackedDevice) -> Client:
    return Client(device)


def done(*cookies: int) -> bytes:
    return b"".join(struct.pack(">IIQ", 0x67446698, 0, cookie) for cookie in cookies)


@contextmanager
def unwritable(device: PackedDevice) -> Iterator[None]:
    """The packed file cannot be written to."""
    good = os.dup(device.packed.first_descriptor)
    reading = os.open(f"/proc/self/fd/{good}", os.O_RDONLY)
    try:
        os.dup2(reading, device.packed.first_descriptor)
        yield
    finally:
        os.dup2(good, device.packed.first_descriptor)
        os.close(good)
        os.close(reading)


def test_a_round_is_written_to_cells_that_follow_each_other(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    blocks = [FROZEN + 9, NEVER + 3, FROZEN + 2, NEVER + 200]
    replies, rest = lane.serve(b"".join(client.write(block) for block in blocks))
    assert (replies, rest) == (done(1, 2, 3, 4), [])
    assert device.found() == device.content
    assert port.taken == [(TAIL, 4)]
    assert port.staged == [([(block, 1) for block in blocks], TAIL)]
    assert port.commits == [1]
    assert device.journal.unsynced


def test_what_was_put_off_is_written_before_a_trim(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    """Of whatever blocks: it may take leaves out of memory, and its record comes behind theirs."""
    port.may_trim = True
    trimmed = slice((NEVER + 4) * BLOCK_SIZE, (NEVER + 7) * BLOCK_SIZE)
    stream = client.write(NEVER + 3) + client.write(FROZEN + 8)
    stream += wire.request(4, 9, trimmed.start, 3 * BLOCK_SIZE) + client.write(NEVER + 5)
    device.content[trimmed.start : trimmed.start + BLOCK_SIZE] = bytes(BLOCK_SIZE)
    replies, rest = lane.serve(stream)
    assert (replies, rest) == (done(1, 2, 9, 3), [])
    assert port.trimmed == [(trimmed.start, 3 * BLOCK_SIZE, 1)]
    assert device.found() == device.content
    assert port.commits == [2]


def test_a_trim_behind_what_cannot_be_written_is_not_made(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    port.may_trim = True
    with unwritable(device):
        stream = client.write(NEVER + 3) + wire.request(4, 9, 0, BLOCK_SIZE)
        replies, rest = lane.serve(stream)
    assert replies == b""
    assert [request[2] for request in rest] == [1, 9]
    assert port.trimmed == []


def test_neighbours_become_one_range_within_a_leaf(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    last = NEVER + LEAF_BLOCKS - 1
    stream = [(FROZEN, 4), (FROZEN + 4, 1), (FROZEN + 6, 2), (last - 1, 2), (last + 1, 2)]
    replies, rest = lane.serve(b"".join(client.write(*one) for one in stream))
    assert (len(replies), rest) == (5 * 16, [])
    assert device.found() == device.content
    assert port.staged == [([(FROZEN, 5), (FROZEN + 6, 2), (last - 1, 2), (last + 1, 2)], TAIL)]


def test_other_requests_of_the_round_do_not_end_it(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    before = bytes(device.content)
    stream = client.write(FROZEN) + client.read(FROZEN + 1) + client.write(HELD + 3)
    stream += client.read(HELD, 2) + client.write(NEVER) + client.read(NEVER + 1)
    replies, rest = lane.serve(stream)
    assert rest == []
    read = [(2, FROZEN + 1, 1), (4, HELD, 2), (6, NEVER + 1, 1)]
    assert replies == b"".join(
        done(cookie) + before[block * BLOCK_SIZE :][: blocks * BLOCK_SIZE]
        for cookie, block, blocks in read
    ) + done(1, 3, 5)
    assert device.found() == device.content
    assert port.taken == [(TAIL, 2)]


def test_who_comes_to_a_block_that_is_put_off_finds_it_written(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    """It is read, or overwritten in its cell: it gets no second one."""
    stream = client.write(FROZEN, 2) + client.write(NEVER)
    stream += client.read(FROZEN + 1)
    expected = device.content[(FROZEN + 1) * BLOCK_SIZE :][:BLOCK_SIZE]
    stream += client.write(FROZEN + 1, within=512, length=100) + client.write(FROZEN)
    stream += client.write(NEVER + 1)
    replies, rest = lane.serve(stream)
    assert rest == []
    assert replies[16 : 16 + BLOCK_SIZE] == expected
    assert device.found() == device.content
    assert port.taken == [(TAIL, 3), (TAIL + 3, 1)]
    assert port.commits == [2]


def test_a_large_read_finds_it_written_too(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    stream = b"".join(client.write(FROZEN + number, 15) for number in range(0, 255, 15))
    stream += client.write(FROZEN + 255)
    with closing(Line(8 * MIB)) as line:
        replies, rest = lane.serve(stream + wire.request(0, 9, FROZEN * BLOCK_SIZE, MIB), line)
    assert rest == []
    assert replies[16 : 16 + MIB] == device.content[FROZEN * BLOCK_SIZE :][:MIB]


def test_a_change_that_is_handed_back_does_not_hinder_what_came_before(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    stream = client.write(FROZEN) + wire.request(4, 7, FROZEN * BLOCK_SIZE, BLOCK_SIZE)
    late = wire.write(8, NEVER * BLOCK_SIZE, b"l" * BLOCK_SIZE)
    replies, rest = lane.serve(stream + late)
    assert replies == done(1)
    assert [request[2] for request in rest] == [7, 8]
    assert device.found() == device.content


@pytest.mark.parametrize(
    ("block", "blocks", "data"),
    [(HELD + 255, 2, b"n"), (FROZEN + 3, 3, b"n"), (FROZEN, 1, b"\0"), (NEVER - 1, 2, b"n")],
    ids=["held and new", "held within", "zeros", "two leaves"],
)
def test_what_is_more_than_new_blocks_of_one_leaf_is_for_others(
    device: PackedDevice, port: Port, lane: Lane, block: int, blocks: int, data: bytes
) -> None:
    device.put(FROZEN + 4, TAIL - 1)
    before = device.found()
    replies, rest = lane.serve(wire.write(1, block * BLOCK_SIZE, data * (blocks * BLOCK_SIZE)))
    assert (replies, len(rest)) == (b"", 1)
    assert device.found() == before
    assert port.taken == []


def test_the_allowance_is_asked_for_again_when_it_is_used(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    """What is put off counts in the answer: it is staged before."""
    port.allowed = 3
    asked: list[int] = []
    allowance = port.allowance

    def ask() -> int:
        asked.append(len(port.staged))
        return allowance()

    port.allowance = ask  # type: ignore[method-assign]
    replies, rest = lane.serve(b"".join(client.write(FROZEN + 2 * n) for n in range(7)))
    assert (len(replies), rest) == (7 * 16, [])
    assert port.taken == [(TAIL, 3), (TAIL + 3, 3), (TAIL + 6, 1)]
    assert asked == [0, 1, 2]
    assert device.found() == device.content
    port.allowed = 0
    replies, rest = lane.serve(client.write(NEVER))
    assert (replies, len(rest)) == (b"", 1)


def test_a_leaf_gets_cells_of_its_own(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    never = device.leaves[NEVER // LEAF_BLOCKS]
    port.shared[0] = device.leaves[NEVER // LEAF_BLOCKS + 1] = never
    assert not {1, 2, 3} & device.cells.keys()
    stream = client.write(FROZEN) + client.write(NEVER) + client.write(NEVER + LEAF_BLOCKS)
    replies, rest = lane.serve(stream)
    assert (replies, rest) == (done(1, 2, 3), [])
    assert device.found() == device.content
    assert set(never) == {0}
    assert device.cells.keys() == {0, 1, 2, 3}


@pytest.mark.parametrize("broken", ["leaf", "cells"])
def test_a_leaf_that_is_not_whole_is_for_others(
    device: PackedDevice, port: Port, lane: Lane, broken: str
) -> None:
    """Nothing else makes such a leaf."""
    if broken == "leaf":
        device.leaves[1] = device.leaves[1][:-1]
    device.cells[1] = array("I", (NO_CELL,)) * (LEAF_BLOCKS - (broken == "cells"))
    replies, rest = lane.serve(wire.write(1, FROZEN * BLOCK_SIZE, b"n" * BLOCK_SIZE))
    assert (replies, len(rest), port.taken) == (b"", 1, [])


def test_more_than_one_round_has(device: PackedDevice, port: Port, client: Client) -> None:
    """So many that the lane begins another one."""
    lane, blocks = Lane(device), [*range(FROZEN, FROZEN + 256), *range(NEVER, NEVER + 512)]
    random.Random(2).shuffle(blocks)
    replies, rest = lane.serve(b"".join(client.write(block) for block in blocks))
    assert (len(replies), rest) == (16 * 768, [])
    assert port.taken == [(TAIL, 512), (TAIL + 512, 256)]
    assert device.found() == device.content


# -- failures ------------------------------------------------------------------------------------


def mapped(device: PackedDevice) -> list[list[int]]:
    return [leaf.tolist() for leaf in device.leaves.values()]


def test_a_round_whose_new_blocks_cannot_be_written_is_not_acknowledged(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    """None of its writes (promise D1). The map does not know of them, and the cells are given
    back: they may hold some of the data."""
    before = mapped(device)
    with unwritable(device):
        stream = client.write(FROZEN) + client.read(HELD + 5) + client.write(NEVER)
        replies, rest = lane.serve(stream)
    assert replies == done(2) + device.content[(HELD + 5) * BLOCK_SIZE :][:BLOCK_SIZE]
    assert [request[2] for request in rest] == [1, 3]
    assert mapped(device) == before
    assert port.given_back == port.taken == [(TAIL, 2)]
    assert (port.staged, port.commits) == ([], [])


def test_what_was_written_earlier_in_a_failed_round_is_committed(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    """The map leads there, and the journal must know."""
    take = port.take

    def give_up(count: int) -> int:
        return take(count) if not port.taken else -1

    port.take = give_up  # type: ignore[method-assign]
    stream = client.write(FROZEN) + client.write(FROZEN) + client.write(NEVER) + client.read(HELD)
    replies, rest = lane.serve(stream)
    assert [request[2] for request in rest] == [1, 2, 3]
    assert replies[:16] == done(4)
    assert len(replies) == 16 + BLOCK_SIZE
    assert port.staged == [([(FROZEN, 1)], TAIL)]
    assert port.commits == [1]
    assert port.given_back == []
    assert device.leaves[FROZEN // LEAF_BLOCKS][0] == PACKED
    assert device.leaves[NEVER // LEAF_BLOCKS][0] == 0


def test_nothing_is_served_behind_what_could_not_be_written(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    """Be it found by the allowance that is used up, or by a read of the block."""
    port.cells_left = False
    port.allowed = 2
    before = bytes(device.content[NEVER * BLOCK_SIZE :][:BLOCK_SIZE])
    stream = client.write(FROZEN) + client.write(FROZEN + 2) + client.write(FROZEN + 4)
    replies, rest = lane.serve(stream + client.write(HELD + 1))
    assert (replies, [request[2] for request in rest]) == (b"", [1, 2, 3, 4])
    replies, rest = lane.serve(client.write(NEVER) + client.read(NEVER))
    assert [request[2] for request in rest] == [5]
    assert replies == done(6) + before


def test_a_round_whose_commit_fails_is_not_acknowledged(
    device: PackedDevice, port: Port, lane: Lane, client: Client
) -> None:
    port.fails = True
    stream = client.write(HELD) + client.write(FROZEN) + client.read(HELD + 5)
    replies, rest = lane.serve(stream + client.write(NEVER))
    assert [request[2] for request in rest] == [1, 2, 4]
    assert replies[:16] == done(3)
    assert port.commits == [1]


@pytest.mark.parametrize("broken", ["take", "stage_cells", "give_back", "own_leaf", "commit"])
def test_a_defect_of_the_port_is_raised(
    device: PackedDevice, port: Port, lane: Lane, client: Client, broken: str
) -> None:
    def defect(*_: object) -> None:
        raise RuntimeError("a defect")

    setattr(port, broken, defect)
    with ExitStack() as stack:
        if broken == "give_back":
            stack.enter_context(unwritable(device))
        with pytest.raises(RuntimeError, match="a defect"):
            lane.serve(client.write(NEVER))


# -- payloads ------------------------------------------------------------------------------------


def take(
    device: PackedDevice, block: int, data: bytes, came: int
) -> tuple[fastlane.Taken, memoryview]:
    assert fastlane.compiled is not None
    lane = fastlane.PayloadLane(fastlane.compiled, device)
    received = memoryview(bytearray(data[:came]))
    turn = fastlane.Turn()
    return lane.take(received, 0, came, block * BLOCK_SIZE, len(data), turn), received


def test_the_parts_of_a_payload_that_came_are_written_together(
    device: PackedDevice, port: Port
) -> None:
    data = random.Random(1).randbytes(2 * MIB)
    taken, _ = take(device, FROZEN, data, 500_000)
    assert taken.why == fastlane.Why.NOTHING_CAME
    assert taken.written_bytes == 500_000 // 16_384 * 16_384
    blocks = taken.written_bytes // BLOCK_SIZE
    assert port.taken == [(TAIL, blocks)]
    assert port.staged == [([(FROZEN, blocks)], TAIL)]
    found = device.found()[FROZEN * BLOCK_SIZE :]
    assert found[: taken.written_bytes] == data[: taken.written_bytes]


def test_a_part_that_is_for_others_ends_the_payload_behind_what_is_written(
    device: PackedDevice, port: Port
) -> None:
    data = random.Random(1).randbytes(MIB)
    device.put(FROZEN + 20, TAIL - 1)
    taken, _ = take(device, FROZEN, data, len(data))
    assert taken.why == fastlane.Why.FOR_PYTHON
    assert (taken.position, taken.written_bytes) == (65_536, 65_536)
    assert port.staged == [([(FROZEN, 16)], TAIL)]


def test_a_payload_that_cannot_be_written_is_for_others_from_its_beginning(
    device: PackedDevice, port: Port
) -> None:
    data = random.Random(1).randbytes(MIB)
    before = mapped(device)
    with unwritable(device):
        taken, _ = take(device, FROZEN, data, len(data))
    assert taken == (0, len(data), 0, 0, fastlane.Why.FOR_PYTHON)
    assert mapped(device) == before
    assert port.given_back == port.taken == [(TAIL, 256)]


def test_a_defect_within_a_payload_asks_the_port_for_nothing_more(
    device: PackedDevice, port: Port
) -> None:
    """Python is not called while an exception is on its way. What was put off is in no map."""
    own_leaf = port.own_leaf

    def defect(number: int) -> array[int] | None:
        if number == NEVER // LEAF_BLOCKS:
            raise RuntimeError("a defect")
        return own_leaf(number)

    port.own_leaf = defect  # type: ignore[method-assign]
    before = mapped(device)
    with pytest.raises(RuntimeError, match="a defect"):
        take(device, NEVER - 16, random.Random(1).randbytes(MIB), 200_000)
    assert (port.taken, port.staged, port.given_back) == ([], [], [])
    assert mapped(device) == before
