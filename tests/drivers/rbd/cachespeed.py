"""Measures hits of the cache against the tests' cluster: `python -m tests.drivers.rbd.cachespeed`.

Two volumes of a pool in Ceph, one behind a cache, served over NBD by one process on core 0; fio
asks on core 1. The cluster has the same two cores.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import trio

from bockd.config.rbd import RbdSettings
from bockd.drivers.cache.directory import CacheDirectory
from bockd.drivers.rbd.pool import RbdPool
from bockd.model import MIB, NodeKind
from bockd.pool.device import BlockDevice
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Steps
from tests.drivers.cache import measuring
from tests.nbd.server.serving import FixedExports, serving

from .cluster import Cluster

SIZE = 128 * MIB
JOBS = [("randread", "4k", 1), ("randread", "4k", 32), ("randread", "1m", 4)]
ROUNDS = 3


async def serve(
    settings: RbdSettings, root: Path, ready: threading.Event, over: trio.Event
) -> None:
    """Serve both volumes, filled, until `over`."""
    runner = StepRunner()
    data = random.Random(1).randbytes(MIB)
    async with trio.open_nursery() as nursery:

        def spawn(steps: Steps[None]) -> None:
            nursery.start_soon(runner.run, steps)

        post = trio.lowlevel.current_trio_token().run_sync_soon
        pools: list[RbdPool] = []
        devices: dict[str, BlockDevice] = {}
        for name in ("uncached", "cached"):
            pool = await trio.to_thread.run_sync(
                RbdPool.open, replace(settings, gateway=name), root / name, spawn, post
            )
            pools.append(pool)
            if name == "cached":
                cache = CacheDirectory.open(root / "cache", 2 * SIZE, spawn)
                pool.open_nodes.fronts.cache = cache
            volume = (await runner.run(pool.create_volume(name, SIZE))).id
            device = devices[name] = await runner.run(pool.use(NodeKind.VOLUME, volume))
            for offset in range(0, SIZE, MIB):
                await runner.run(device.write(offset, memoryview(data)))
        await trio.sleep(1)  # what was written is in the cache's file then
        async with serving(FixedExports(devices), root / "nbd.sock"):
            ready.set()
            await over.wait()
        for pool in pools:
            await runner.run(pool.close_all())
            await trio.to_thread.run_sync(pool.release)
        cache.release()


def main() -> None:
    """Start a cluster, serve in a thread, and ask."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, ExitStack() as stack:
        root = Path(name)
        cluster = Cluster(root / "cluster")
        stack.callback(cluster.stop)
        cluster.start()
        settings = cluster.namespace()
        os.sched_setaffinity(0, {0})
        ready, stop = threading.Event(), list[trio.Event]()
        token: list[trio.lowlevel.TrioToken] = []

        async def run() -> None:
            stop.append(trio.Event())
            token.append(trio.lowlevel.current_trio_token())
            await serve(settings, root, ready, stop[0])

        thread = threading.Thread(target=trio.run, args=(run,))
        thread.start()
        while not ready.wait(1) and thread.is_alive():
            pass
        try:
            for how, size, depth in JOBS:
                rates = {
                    one: statistics.median(
                        measuring.fio(root, one, how, size, depth, 1.0, SIZE) for _ in range(ROUNDS)
                    )
                    for one in ("uncached", "cached")
                }
                print(
                    f"{how} {size} depth {depth}: uncached {rates['uncached']:,.0f}, cached "
                    f"{rates['cached']:,.0f}, ratio {rates['cached'] / rates['uncached']:.1f}",
                    flush=True,
                )
        finally:
            token[0].run_sync_soon(stop[0].set)
            thread.join()


if __name__ == "__main__":
    main()
