"""What a checksum of every block would cost, piece by piece: `python -m bench.checksumcost`.

The CRC32C of a block by the library that bockd uses, beside zlib's CRC-32, of memory that is in the
processor's caches and of memory that is not; and keeping checksums of a volume in the index, where
random overwrites change random leaves. docs/checksums.md draws the conclusions.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from crc32c import crc32c

from bockd.drivers.local.format.checksums import CHECKSUMS
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.format.leafvalues import encode_values
from bockd.index.ballast import Ballast
from bockd.index.index import LmdbIndex
from bockd.index.keys import pair_key
from bockd.model import BLOCK_SIZE, MIB
from bockd.pool.index import Transaction

SPREAD_BYTES = 64 * MIB
"""More than the processor's caches hold."""

REPEATS = 5
LEAVES = 65536
"""Of a volume of 64 GiB."""

BATCH_LEAVES = 8192
"""In one transaction: about a checkpoint's."""


def cost_of_call(function: Callable[[memoryview], int], blocks: Sequence[memoryview]) -> float:
    """Measure the nanoseconds that a call takes at best."""
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        for block in blocks:
            function(block)
        best = min(best, (time.perf_counter() - began) / len(blocks))
    return best * 1e9


def written_bytes() -> int:
    """Return the bytes that this process has had written to disks."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["write_bytes"])


def cost_of_table(directory: Path) -> tuple[float, float]:
    """Measure microseconds and bytes on disk for each leaf of checksums of which one is changed."""
    (directory / "index").mkdir()
    index = LmdbIndex.open(directory / "index", Ballast(directory / "ballast").release)
    numbers = random.Random(1)
    # The least that it could be: changed in place, in a form that needs no work.
    payload = encode_values({block: numbers.getrandbits(32) for block in range(LEAF_BLOCKS)})

    def write(leaves: Sequence[int]) -> None:
        def change(txn: Transaction) -> None:
            for number in leaves:
                txn.put(CHECKSUMS, pair_key(1, number), payload)

        index.update(change)

    try:
        for first in range(0, LEAVES, BATCH_LEAVES):
            write(range(first, first + BATCH_LEAVES))
        with index.reading() as txn:
            assert txn.count(CHECKSUMS) == LEAVES
        before, began = written_bytes(), time.perf_counter()
        for _ in range(REPEATS):
            write(sorted(numbers.sample(range(LEAVES), BATCH_LEAVES)))
        changed = REPEATS * BATCH_LEAVES
        seconds = time.perf_counter() - began
        return seconds / changed * 1e6, (written_bytes() - before) / changed
    finally:
        index.close()


def main() -> None:
    """Measure and print."""
    memory = memoryview(bytearray(os.urandom(SPREAD_BYTES)))
    spread = [memory[at : at + BLOCK_SIZE] for at in range(0, SPREAD_BYTES, BLOCK_SIZE)]
    for name, function in (("crc32c.crc32c", crc32c), ("zlib.crc32", zlib.crc32)):
        near, far = cost_of_call(function, spread[:1] * len(spread)), cost_of_call(function, spread)
        print(f"{name:14} of 4 KiB: {near:5.0f} ns in cache, {far:5.0f} ns from memory")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        microseconds, size = cost_of_table(Path(scratch))
    print(
        f"table          {microseconds:.1f} us and {size:,.0f} bytes on disk for each random block "
        f"that is overwritten in {LEAVES * LEAF_BLOCKS * BLOCK_SIZE >> 30} GiB"
    )


if __name__ == "__main__":
    main()
