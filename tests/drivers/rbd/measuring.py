"""What the shared index costs in the tests' cluster: one monitor and one OSD on this machine.

python -m tests.drivers.rbd.measuring
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.index import SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.index.keys import id_key
from bockd.pool.index import Transaction
from bockd.pool.nodes import VOLUMES

from .cluster import Cluster
from .dying import add
from .opened import opened

RECORDS = 20_000
RECORD_BYTES = 300
"""Of a volume's records: a few hundred bytes of JSON."""


def median_ms(times: int, action: Callable[[], object]) -> float:
    """The median time of an action."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1000


def fill(txn: Transaction) -> None:
    for number in range(RECORDS):
        txn.put(VOLUMES, id_key(1_000_000 + number), bytes(RECORD_BYTES))


def measure(settings: RbdSettings, directory: Path, stack: ExitStack) -> None:
    def gateway(name: str) -> SharedIndex:
        return SharedIndex.open(
            Log(stack.enter_context(opened(settings))),
            directory / name,
            run=os.urandom(8).hex(),
            clock=time.time,
        )

    Log(stack.enter_context(opened(settings))).create("0" * 32)
    one = gateway("one")
    print(f"update alone              {median_ms(200, lambda: one.update(add)):8.2f} ms")
    print(f"refresh, nothing new      {median_ms(1000, one.refresh):8.2f} ms")
    for count in (2, 4):
        gateways = [gateway(f"{number} of {count}") for number in range(count)]
        began, end = time.perf_counter(), time.perf_counter() + 5
        made = [0] * count

        def work(number: int, index: SharedIndex, end: float, made: list[int]) -> None:
            while time.perf_counter() < end:
                index.update(add)
                made[number] += 1

        threads = [
            threading.Thread(target=work, args=(number, index, end, made))
            for number, index in enumerate(gateways)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rate = sum(made) / (time.perf_counter() - began)
        print(f"{count} gateways at once        {rate:8.0f} updates/s, of each {made}")
    one.update(fill)
    print(f"dump of {RECORDS} records     {median_ms(1, one.dump):8.0f} ms")
    print(f"start with them           {median_ms(3, lambda: gateway('late').close()):8.0f} ms")


def main() -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        (directory / "cluster").mkdir()
        cluster = Cluster(directory / "cluster")
        cluster.start()
        stack.callback(cluster.stop)
        measure(cluster.namespace(), directory, stack)


if __name__ == "__main__":
    main()
