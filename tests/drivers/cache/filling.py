"""Measures what filling the cache costs, and its syncs: `python -m tests.drivers.cache.filling`.

Blocks of a device in memory are read once each, at random, 32 at a time, with the cache's syncs and
without them in turn. Processor time is that of this process; a sync costs the disk and the
kernel's threads more than that.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import trio

from bockd.drivers.cache.cachefile import CacheFile
from bockd.drivers.cache.directory import CacheDirectory
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Steps

from .opened import CountingDevice

SIZE = 16 * MIB
DEPTH = 32


@dataclass
class Cost:
    """Of one block, in microseconds."""

    passed: float
    processor: float
    syncs: int
    """Of all blocks."""


async def fill(root: Path, sync: bool) -> Cost:
    """Read each block once, and wait until all of it is in the cache."""
    runner, syncs = StepRunner(), 0
    real = CacheFile.sync_data

    def sync_data(file: CacheFile) -> None:
        nonlocal syncs
        syncs += 1
        if sync:
            real(file)

    numbers = list(range(SIZE // BLOCK_SIZE))
    random.Random(1).shuffle(numbers)
    with patch.object(CacheFile, "sync_data", sync_data):
        async with trio.open_nursery() as nursery:

            def spawn(steps: Steps[None]) -> None:
                nursery.start_soon(runner.run, steps)

            below = CountingDevice(SIZE)
            below.hold(random.Random(1).randbytes(SIZE))
            cache = CacheDirectory.open(root, 2 * SIZE, spawn)
            cached = await runner.run(cache.open_volume(below, "v", 1))
            assert cached is not None
            began, used = time.perf_counter(), time.process_time()

            async def read(mine: list[int]) -> None:
                into = memoryview(bytearray(BLOCK_SIZE))
                for number in mine:
                    await runner.run(cached.read(number * BLOCK_SIZE, into))
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as readers:
                for first in range(DEPTH):
                    readers.start_soon(read, numbers[first::DEPTH])
            passed, processor = time.perf_counter() - began, time.process_time() - used
            await runner.run(cache.close_device(cached))
            cache.release()
    return Cost(passed / len(numbers) * 1e6, processor / len(numbers) * 1e6, syncs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", default="/var/tmp")
    said = parser.parse_args()
    found: dict[bool, list[Cost]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(dir=said.directory) as name:
        for number in range(2 * said.rounds):
            sync = number % 4 in (0, 3)
            found[sync].append(trio.run(fill, Path(name) / str(number), sync))
    for sync, costs in found.items():
        print(
            f"{'with' if sync else 'without'} syncs: a block takes "
            f"{statistics.median(one.passed for one in costs):.1f} us, "
            f"{statistics.median(one.processor for one in costs):.1f} us of processor time; "
            f"{statistics.median(one.syncs for one in costs):.0f} syncs for {SIZE // MIB} MiB"
        )


if __name__ == "__main__":
    main()
