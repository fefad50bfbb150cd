"""Finding blocks of zeros in what is written, so that the journal can say where they are.

Recovery takes a block of zeros under a fresh redirect for data that was lost, unless the journal
foretold it (format.journal, ZEROS). Almost all data is told from zeros by its first byte.
"""

from __future__ import annotations

from bockd.model import BLOCK_SIZE

_ZEROS = bytes(BLOCK_SIZE)


def is_zeros(data: memoryview) -> bool:
    """Return whether the data, one block at most, holds nothing but zeros."""
    # Comparing memoryviews goes byte by byte; a copy and a memcmp take a tenth of the time.
    return not len(data) or (not data[0] and bytes(data) == _ZEROS[: len(data)])


def zero_pieces(offset: int, data: memoryview) -> list[int]:
    """Return the numbers of the blocks of which `data`, written at `offset`, holds nothing but
    zeros. Of the first and the last block it may hold a part only."""
    block, within = divmod(offset, BLOCK_SIZE)
    found = [block] if is_zeros(data[: BLOCK_SIZE - within]) else []
    start = BLOCK_SIZE - within
    if start < len(data):
        first_bytes = bytes(data[start::BLOCK_SIZE])
        number = first_bytes.find(0)
        while number >= 0:
            at = start + number * BLOCK_SIZE
            if is_zeros(data[at : at + BLOCK_SIZE]):
                found.append(block + 1 + number)
            number = first_bytes.find(0, number + 1)
    return found


def zero_blocks(offset: int, data: memoryview, prefix: memoryview, suffix: memoryview) -> list[int]:
    """Return the numbers of the blocks that are all zeros when `data` is written at `offset`,
    between what its first (`prefix`) and its last block (`suffix`) hold besides."""
    found = zero_pieces(offset, data)
    if found and found[0] == offset // BLOCK_SIZE and not is_zeros(prefix):
        del found[0]
    if found and found[-1] == (offset + len(data) - 1) // BLOCK_SIZE and not is_zeros(suffix):
        del found[-1]
    return found
