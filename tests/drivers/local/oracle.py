"""A plain model of a pool: what volumes and snapshots hold, by what is documented alone.

Content is a bytearray. Each stored block has a token, new with every write, shared by snapshots
and clones: space is counted in tokens, holes are blocks without one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from bockd.model import BLOCK_SIZE, Extent

_tokens = count()


@dataclass
class Node:
    """A volume or a snapshot."""

    size: int
    content: bytearray = field(default_factory=bytearray)
    tokens: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.content.extend(bytes(self.size - len(self.content)))

    def copy(self, size: int | None = None) -> Node:
        return Node(size or self.size, bytearray(self.content), dict(self.tokens))

    def grow(self, size: int) -> None:
        self.content.extend(bytes(size - self.size))
        self.size = size

    def write(self, offset: int, data: bytes) -> None:
        if not data:
            return
        self.content[offset : offset + len(data)] = data
        for block in range(offset // BLOCK_SIZE, (offset + len(data) - 1) // BLOCK_SIZE + 1):
            self.tokens[block] = next(_tokens)

    def _drop(self, first: int, end: int) -> None:
        for block in range(first, end):
            self.tokens.pop(block, None)
        self.content[first * BLOCK_SIZE : end * BLOCK_SIZE] = bytes((end - first) * BLOCK_SIZE)

    def trim(self, offset: int, length: int) -> None:
        first, end = -(-offset // BLOCK_SIZE), (offset + length) // BLOCK_SIZE
        if first < end:
            self._drop(first, end)

    def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        first, end = -(-offset // BLOCK_SIZE), (offset + length) // BLOCK_SIZE
        if allocate or first >= end:
            self.write(offset, bytes(length))
            return
        self.write(offset, bytes(first * BLOCK_SIZE - offset))
        self.write(end * BLOCK_SIZE, bytes(offset + length - end * BLOCK_SIZE))
        self._drop(first, end)

    def extents(self) -> list[Extent]:
        found: list[Extent] = []
        for block in range(self.size // BLOCK_SIZE):
            hole = block not in self.tokens
            if found and found[-1].hole == hole:
                last = found[-1]
                found[-1] = Extent(last.offset_bytes, last.length_bytes + BLOCK_SIZE, hole)
            else:
                found.append(Extent(block * BLOCK_SIZE, BLOCK_SIZE, hole))
        return found
