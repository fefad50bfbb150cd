"""A view made by hand for the fast lane: blocks lie in cells of one packed file, and are not where
a raw layer would have them. Beside it a raw layer, whose blocks are."""

from __future__ import annotations

import os
import random
from array import array
from collections.abc import Sequence
from pathlib import Path

from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAF_MASK, LEAF_SHIFT
from bockd.drivers.local.format.windows import Window, Windows
from bockd.model import BLOCK_SIZE, KIB
from bockd.nbd.protocol.replies import encoder_for
from bockd.nbd.protocol.transmission import Request, RequestLimits
from bockd.nbd.server import fastlane
from bockd.nbd.server.limits import REPLY_BUFFER_BYTES
from bockd.pool.device import FastView, FilePart, PartSizes
from bockd.runtime.steps import Blocking, Steps
from tests import pagecache
from tests.nbd.server.sides import Line

BLOCKS = 4 * LEAF_BLOCKS
RAW, PACKED = 1, 2
"""Slots. Slot 0 is the hole."""
NO_CELL = 0
"""What the table has where it means nothing."""


class FileLayer:
    """Implements bockd.pool.device.OpenLayer over one file."""

    def __init__(self, path: Path, *, packed: bool) -> None:
        self.first_descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        self.nowait_flag = os.RWF_NOWAIT
        self.packed = packed
        self.used = False
        self.asked = 0
        """How often a window was asked for."""
        self._windows = Windows()

    def window(self, offset: int) -> Window | None:
        self.asked += 1
        return self._windows.find(self.first_descriptor, offset)

    def write(self, place: int, data: bytes) -> None:
        os.pwrite(self.first_descriptor, data, place * BLOCK_SIZE)

    def read(self, place: int) -> bytes:
        return os.pread(self.first_descriptor, BLOCK_SIZE, place * BLOCK_SIZE)

    def close(self) -> None:
        self._windows.forget()
        os.close(self.first_descriptor)


class Noted:
    """Implements bockd.pool.device.Journal."""

    unsynced = False


class Port:
    """Implements bockd.pool.device.PackedRedirects, and notes what it is told."""

    def __init__(self, device: PackedDevice, tail: int) -> None:
        self.shared: dict[int, array[int]] = {}
        self.piece_bytes = BLOCK_SIZE
        self.allowed = 1000
        """The answer to `allowance`."""
        self.tail = tail
        self.cells_left = True
        self.taken: list[tuple[int, int]] = []
        self.given_back: list[tuple[int, int]] = []
        self.staged: list[tuple[list[tuple[int, int]], int]] = []
        self.commits: list[int] = []
        """How many redirects were staged at each."""
        self.fails = False
        """The journal."""
        self.may_trim = False
        self.trimmed: list[tuple[int, int, int]] = []
        """Offset and length, and how many redirects were staged before."""
        self._device = device

    def allowance(self) -> int:
        return self.allowed

    def own_leaf(self, number: int) -> array[int] | None:
        leaf = self._device.leaves.get(number)
        if leaf is not None:
            if self.shared.get(leaf[0]) is leaf:
                leaf = self._device.leaves[number] = leaf[:]
            self._device.cells.setdefault(number, array("I", (NO_CELL,)) * LEAF_BLOCKS)
        return leaf

    def take(self, count: int) -> int:
        if not self.cells_left:
            return -1
        self.taken.append((self.tail, count))
        self.tail += count
        return self.tail - count

    def give_back(self, cell: int, count: int) -> None:
        self.given_back.append((cell, count))

    def stage_cells(self, ranges: bytes, cell: int) -> None:
        numbers = array("I", ranges).tolist()
        self.staged.append((list(zip(numbers[::2], numbers[1::2], strict=True)), cell))

    def trim(self, ranges: bytes) -> int:
        if not self.may_trim:
            return 0
        numbers = array("Q", ranges).tolist()
        for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
            self.trimmed.append((offset, length, len(self.staged)))
            for block in range(offset // BLOCK_SIZE, (offset + length) // BLOCK_SIZE):
                leaf = self._device.leaves[block >> LEAF_SHIFT][:]
                leaf[block & LEAF_MASK] = 0
                self._device.leaves[block >> LEAF_SHIFT] = leaf
        return len(numbers) // 2

    def commit(self) -> bool:
        self.commits.append(len(self.staged))
        return not self.fails


class PackedDevice:
    """Implements bockd.pool.device.FastDevice."""

    def __init__(self, root: Path) -> None:
        self.size_bytes = BLOCKS * BLOCK_SIZE
        self.part_sizes = PartSizes(64 * KIB, 16 * KIB)
        self.raw = FileLayer(root / "raw", packed=False)
        self.packed = FileLayer(root / "packed", packed=True)
        self.leaves = {
            number: array("H", (0,)) * LEAF_BLOCKS for number in range(BLOCKS // LEAF_BLOCKS)
        }
        self.cells: dict[int, array[int]] = {}
        self.journal = Noted()
        self.port: Port | None = None
        self.content = bytearray(self.size_bytes)
        self._random = random.Random(7)

    def open_port(self, tail: int) -> Port:
        """Let new blocks be written, to cells from `tail` on."""
        self.port = Port(self, tail)
        return self.port

    def put(self, block: int, cell: int | None) -> None:
        """Give a block data of its own, in a cell of the packed layer or in the raw one."""
        data = self._random.randbytes(BLOCK_SIZE)
        self.content[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE] = data
        number = block >> LEAF_SHIFT
        if cell is None:
            self.raw.write(block, data)
        else:
            self.packed.write(cell, data)
            cells = self.cells.setdefault(number, array("I", (NO_CELL,)) * LEAF_BLOCKS)
            cells[block & LEAF_MASK] = cell
        self.leaves[number][block & LEAF_MASK] = RAW if cell is None else PACKED

    def found(self) -> bytes:
        """What the files hold, read as the table says."""
        parts = []
        for block in range(BLOCKS):
            number, at = block >> LEAF_SHIFT, block & LEAF_MASK
            slot = self.leaves[number][at]
            if slot == PACKED:
                parts.append(self.packed.read(self.cells[number][at]))
            else:
                parts.append(self.raw.read(block) if slot == RAW else bytes(BLOCK_SIZE))
        return b"".join(part.ljust(BLOCK_SIZE, b"\0") for part in parts)

    def fast_view(self) -> FastView:
        return FastView(
            self.leaves,
            self.cells,
            [None, self.raw, self.packed],
            PACKED,
            self.journal,
            1 << 43,
            False,
            self.port,
            [],
        )

    async def read_files(
        self, parts: Sequence[FilePart], into: memoryview, read: Blocking[None]
    ) -> None:
        self.parts, self.into = list(parts), into
        read.call()

    def drop(self) -> None:
        """Have nothing of the files in the page cache."""
        for layer in (self.raw, self.packed):
            layer._windows.forget()
            pagecache.drop(layer.first_descriptor)

    def close(self) -> None:
        self.raw.close()
        self.packed.close()


class Lane:
    """The fast lane over such a device, with simple replies."""

    def __init__(self, device: PackedDevice) -> None:
        assert fastlane.compiled is not None
        limits = RequestLimits(read_only=False, extended=False, chunked=False, allocation=False)
        encoder = encoder_for(structured=False, extended=False)
        self.lane = fastlane.FastLane(fastlane.compiled, device, encoder, limits)
        self.missed: Steps[None] | None = None
        self.missed_reply = memoryview(b"")

    def serve(self, stream: bytes, line: Line | None = None) -> tuple[bytes, list[Request]]:
        """The replies, and what the lane did not serve. With `line` it may send."""
        received, position, rest = memoryview(bytearray(stream)), 0, list[Request]()
        replies = memoryview(bytearray(REPLY_BUFFER_BYTES))
        said = []
        turn = fastlane.Turn() if line is None else fastlane.Turn(line.ours.fileno())
        while position < len(stream):
            done = self.lane.serve(received, position, len(stream), replies, turn, 64)
            if line is not None:
                said.append(line.heard())
            said += [bytes(replies[done.sent : done.filled]), done.acknowledgements]
            rest += done.rest
            assert done.position > position
            position = done.position
            if done.missed:
                missed = self.lane.missed(done.missed)
                self.missed, self.missed_reply = missed.steps, missed.reply
        return b"".join(said), rest
