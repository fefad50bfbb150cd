"""Measures hits of the cache against a raw local volume: `python -m tests.drivers.cache.measuring`.

One process serves both over NBD, on core 0; fio asks on core 1, for one and then the other. Both
lanes: `BOCKD_FASTLANE=off` leaves the compiled one out. DIRECTORY is where the files lie.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import trio

from bockd.drivers.cache.directory import CacheDirectory
from bockd.drivers.local.pool import LocalPool
from bockd.model import BLOCK_SIZE, MIB, NodeKind
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Steps
from tests.nbd.server.serving import FixedExports, serving

from .opened import CountingDevice

SIZE = 256 * MIB

JOBS = [
    ("randread", "4k", 1),
    ("randread", "4k", 32),
    ("randread", "64k", 4),
    ("randread", "1m", 4),
]


async def serve(root: Path, ready: threading.Event, over: trio.Event) -> None:
    """Serve a volume of each kind, filled with the same data, until `over`."""
    runner = StepRunner()
    data = random.Random(1).randbytes(MIB)
    async with trio.open_nursery() as nursery:

        def spawn(steps: Steps[None]) -> None:
            nursery.start_soon(runner.run, steps)

        pool = LocalPool.open(root / "pool", spawn)
        pool.registry.pack = lambda: False
        record = await runner.run(pool.create_volume("v", SIZE, None))
        local = await runner.run(pool.use(NodeKind.VOLUME, record.id))
        cache = CacheDirectory.open(root / "cache", 2 * SIZE, spawn)
        below = CountingDevice(SIZE)
        cached = await runner.run(cache.open_volume(below, "v", 1))
        assert cached is not None
        for offset in range(0, SIZE, MIB):
            await runner.run(local.write(offset, memoryview(data)))
            await runner.run(cached.write(offset, memoryview(data)))
            while (
                cached.blocks.map.runs(offset // BLOCK_SIZE, (offset + MIB) // BLOCK_SIZE) is None
            ):
                await trio.sleep(0.001)
        exports = FixedExports({"local": local, "cached": cached})
        async with serving(exports, root / "nbd.sock"):
            below.reads.clear()
            ready.set()
            await over.wait()
        print(f"{len(below.reads)} reads went below")
        await runner.run(cache.close_device(cached))
        cache.release()
        pool.leave(NodeKind.VOLUME, record.id)
        await runner.run(pool.close_all())
        pool.release()


def fio(
    root: Path, export: str, how: str, size: str, depth: int, seconds: float, reach: int = SIZE
) -> float:
    """Return requests a second."""
    output = root / "fio.json"
    uri = f"nbd+unix:///{export}?socket={root / 'nbd.sock'}"
    subprocess.run(
        [
            *("taskset", "-c", "1", "fio", "--name=x", "--ioengine=nbd", f"--uri={uri}"),
            *(f"--rw={how}", f"--bs={size}", f"--iodepth={depth}", f"--size={reach}"),
            *("--time_based", f"--runtime={int(seconds * 1000)}ms"),
            *(f"--output={output}", "--output-format=json"),
        ],
        check=True,
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    text = output.read_text()
    found: float = json.loads(text[text.index("{") :])["jobs"][0]["read"]["iops"]
    return found


def main() -> None:
    """Serve in a thread, and ask."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--directory", default="/var/tmp")
    said = parser.parse_args()
    os.sched_setaffinity(0, {0})
    with tempfile.TemporaryDirectory(dir=said.directory) as name:
        root = Path(name)
        ready, stop = threading.Event(), list[object]()

        async def run() -> None:
            over, token = trio.Event(), trio.lowlevel.current_trio_token()
            stop.append(lambda: token.run_sync_soon(over.set))
            await serve(root, ready, over)

        thread = threading.Thread(target=trio.run, args=(run,))
        thread.start()
        while not ready.wait(1):
            if not thread.is_alive():
                sys.exit(1)
        try:
            for how, size, depth in JOBS:
                ratios, rates = [], dict[str, list[float]](local=[], cached=[])
                for number in range(said.rounds):
                    names = ["local", "cached"] if number % 2 else ["cached", "local"]
                    found = {
                        export: fio(root, export, how, size, depth, said.seconds)
                        for export in names
                    }
                    ratios.append(found["cached"] / found["local"])
                    for export in names:
                        rates[export].append(found[export])
                local, cached = (statistics.median(rates[one]) for one in ("local", "cached"))
                print(
                    f"{how} {size} depth {depth}: local {local:,.0f}, cached {cached:,.0f}, "
                    f"ratio {statistics.median(ratios):.3f} "
                    f"({min(ratios):.2f} to {max(ratios):.2f})",
                    flush=True,
                )
        finally:
            stop[0]()  # type: ignore[operator]
            thread.join()


if __name__ == "__main__":
    main()
