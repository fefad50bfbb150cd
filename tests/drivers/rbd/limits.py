"""Operations that have a limit, while an OSD hangs again and again: do they keep to it?

    python -m tests.drivers.rbd.limits --hangs 100 --seed 1

Some connections, of which every other one also watches the bus, read and change the index object
and write others, and are made anew now and then. The OSD is stopped when a random number of
operations has been done, and goes on when a random number has been given up, perhaps none. Prints
how many operations ended, and the longest.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bockd.config.rbd import RbdSettings
from bockd.errors import UnavailableError

from .cluster import Cluster

CONNECTIONS = 6
LIMIT_SECONDS = 1
DONE_BETWEEN = 500
"""Operations from one hang to the next, at most."""
GRACE_SECONDS = 120.0
"""What still lasts then does not end: far more than the limit, since the machine may be busy."""

_VALUE = bytes(100)


class Operations:
    """What is done on the connections, and how it ended."""

    def __init__(self, settings: RbdSettings) -> None:
        self.settings = settings
        self.stopping = threading.Event()
        self.ended: Counter[str] = Counter()
        """How operations ended: `done` or `given up`."""
        self.longest_seconds = 0.0
        self._changed = threading.Condition()

    def run(self, number: int, seed: int) -> None:
        """Be one connection after the other, until `stopping`."""
        chosen = random.Random(f"{seed} {number}")
        while not self.stopping.is_set():
            with ExitStack() as stack:
                try:
                    operations = self._connect(stack, number)
                except UnavailableError:
                    self._count("given up", 0.0)
                    continue
                for _ in range(chosen.randrange(20, 400)):
                    if self.stopping.is_set():
                        return
                    self._time(chosen.choice(operations))

    def _connect(self, stack: ExitStack, number: int) -> list[Callable[[], object]]:
        # Only where Ceph's modules are.
        from bockd.drivers.rbd.bus import BUS
        from bockd.drivers.rbd.connection import connect, open_pool
        from bockd.drivers.rbd.objects import Change
        from bockd.drivers.rbd.radosobjects import RadosObjects
        from bockd.drivers.rbd.settings import index_options
        from bockd.drivers.rbd.watching import Watching

        options = {**index_options(self.settings), "rados_osd_op_timeout": str(LIMIT_SECONDS)}
        cluster = connect(self.settings, options)
        stack.callback(cluster.shutdown)
        ioctx = open_pool(cluster, self.settings)
        stack.callback(ioctx.close)
        objects = RadosObjects(ioctx)
        if number % 2:
            objects.write(BUS, b"")
            watching = Watching(ioctx, BUS, lambda _message, done: done(), lambda *_: None, 5)
            stack.callback(watching.close)
        name = f"object{number}"
        return [
            lambda: objects.look(("v",), "l/", "l/", 100),
            lambda: objects.look(("v",), "l/", "l/", 100),
            lambda: objects.change(Change({}, {f"l/{number}": _VALUE})),
            lambda: objects.write(name, bytes(100_000)),
            lambda: objects.read(name, 200_000),
        ]

    def _time(self, operation: Callable[[], object]) -> None:
        began = time.monotonic()
        try:
            operation()
            how = "done"
        except UnavailableError:
            how = "given up"
        self._count(how, time.monotonic() - began)

    def _count(self, how: str, seconds: float) -> None:
        with self._changed:
            self.ended[how] += 1
            self.longest_seconds = max(self.longest_seconds, seconds)
            self._changed.notify_all()

    def wait_for(self, how: str, count: int) -> None:
        """Wait until so many more have ended in this way. Raises AssertionError: they do not."""
        with self._changed:
            goal = self.ended[how] + count
            reached = self._changed.wait_for(lambda: self.ended[how] >= goal, GRACE_SECONDS)
        assert reached, f"fewer than {count} operations are {how}"


def play(cluster: Cluster, settings: RbdSettings, hangs: int, seed: int) -> Operations:
    """Let the OSD hang that often. Raises AssertionError: an operation does not end."""
    from bockd.drivers.rbd.connection import connect, open_pool
    from bockd.drivers.rbd.radosobjects import RadosObjects
    from bockd.drivers.rbd.settings import index_options

    made = connect(settings, index_options(settings))
    with open_pool(made, settings) as ioctx:
        RadosObjects(ioctx).create({"v": b"0"})
    made.shutdown()
    operations = Operations(settings)
    threads = [
        threading.Thread(target=operations.run, args=(number, seed), daemon=True)
        for number in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    chosen = random.Random(seed)
    for _ in range(hangs):
        operations.wait_for("done", chosen.randrange(DONE_BETWEEN))
        with cluster.hanging():
            operations.wait_for("given up", chosen.randrange(2 * CONNECTIONS))
    operations.stopping.set()
    for thread in threads:
        thread.join(GRACE_SECONDS)
        assert not thread.is_alive(), f"an operation does not end (seed {seed})"
    return operations


def report(operations: Operations) -> str:
    """Return what has been seen, in one line."""
    ended = ", ".join(f"{count} {how}" for how, count in sorted(operations.ended.items()))
    return f"{ended}; the longest took {operations.longest_seconds:.2f} s of {LIMIT_SECONDS}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hangs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bockd-limits-") as directory:
        cluster = Cluster(Path(directory) / "cluster")
        cluster.start()
        try:
            print(report(play(cluster, cluster.namespace(), options.hangs, options.seed)))
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
