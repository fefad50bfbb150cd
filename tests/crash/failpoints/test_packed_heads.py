"""SIGKILL at failpoints that a volume with a packed head comes to, which no daemon makes so far.

A process does to one volume all that a packed head is for, and says in a file how far it came. It
dies at the failpoint; then every change that was acknowledged is there, the one under way wholly or
not at all in each block, `check` is clean, and the pool goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from bockd import failpoints
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.maintenance import copying, settling
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.maintenance.settling import Settler
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume import cells
from bockd.failpoints import VARIABLE, Failpoint
from bockd.model import BLOCK_SIZE
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.named import snapshot_named, volume_named

from .run import OF_PACKED_HEADS

BLOCKS = 300
SIZE = BLOCKS * BLOCK_SIZE

_context = multiprocessing.get_context("fork")

POINTS = sorted(
    OF_PACKED_HEADS
    | {
        Failpoint.WRITE_BEGUN,
        Failpoint.WRITE_PIECE,
        Failpoint.WRITE_REMAPPED,
        Failpoint.ZEROS_FORETOLD,
        Failpoint.ZEROS_ALLOCATED,
        Failpoint.TRIM_REMAPPED,
        Failpoint.JOURNAL_APPENDED,
        Failpoint.PUNCH_BEGUN,
        Failpoint.PUNCH_DONE,
        Failpoint.CHECKPOINT_SEALED,
        Failpoint.CHECKPOINT_APPLIED,
        Failpoint.CHECKPOINT_COMMITTED,
        Failpoint.TRANSITION_APPLIED,
        Failpoint.TRANSITION_COMMITTED,
        Failpoint.RECOVER_APPLIED,
        Failpoint.RECOVER_COMMITTED,
        Failpoint.MERGE_ALIASED,
        Failpoint.MERGE_DONE,
    }
)

ONCE = (Failpoint.SWEEP_PUNCHED, Failpoint.RECOVER_APPLIED, Failpoint.RECOVER_COMMITTED)
"""What one start comes to once."""

WRITES = ((5, 1), (200, 1), (7, 3), (6, 4), (199, 20), (5, 1), (0, 12))
"""First block and number of blocks: new ones, others, and both in one write."""

Blocks = dict[int, set[bytes]]
"""What each block may hold: the first byte of it."""


class Worker:
    """What is done to the volume: the same in each process, and in each model of it."""

    def __init__(self, say: Callable[[str, range, bytes], None]) -> None:
        self._say = say
        self._value = 64

    def change(self, steps: Callable[[bytes], None], blocks: range, value: bytes | None) -> None:
        self._value += 1
        value = bytes([self._value]) if value is None else value
        self._say("begin", blocks, value)
        steps(value)
        self._say("end", blocks, value)

    def work(self, pool: LocalPool, background: Background) -> None:
        volume = volume_named(pool, "v")
        device = run_inline(pool.registry.use_volume(volume)).volume
        background.run()  # a sweep, if a death has left strays

        def write(first: int, count: int) -> None:
            self.change(
                lambda value: run_inline(
                    device.write(first * BLOCK_SIZE, memoryview(value * count * BLOCK_SIZE))
                ),
                range(first, first + count),
                None,
            )

        def zero(first: int, count: int, *, allocate: bool) -> None:
            steps = device.zero(first * BLOCK_SIZE, count * BLOCK_SIZE, allocate=allocate)
            self.change(lambda _: run_inline(steps), range(first, first + count), b"\0")

        for _ in range(2):
            for first, count in WRITES:
                write(first, count)
            zero(4, 60, allocate=True)
            write(4, 2)
            zero(190, 20, allocate=False)
            zero(100, 40, allocate=True)
            zero(100, 40, allocate=False)
            run_inline(device.flush())
            run_inline(device.heads.finish_punching())
            run_inline(device.durability.checkpoint())
            write(120, 30)
            write(90, 2)
            self.change(
                lambda value: run_inline(device.write(0, memoryview(bytes(BLOCK_SIZE)))),
                range(1),
                b"\0",
            )
            with mock.patch.object(cells, "ROTATION_CELLS", cells.MAX_CELLS - 1):
                run_inline(pool.registry.rotate(volume))
            write(0, 10)
            run_inline(device.durability.checkpoint())
            self.settle(pool)
            write(3, 1)

    def settle(self, pool: LocalPool) -> None:
        """What was rotated, and what a death has left half settled."""
        settler = Settler(pool.registry)
        run_inline(Reclaimer(pool.registry).run())
        with (
            mock.patch.object(settling, "RUNS_PER_MIB", 0),
            mock.patch.object(settling, "MIN_BYTES", 0),
            mock.patch.object(copying, "WINDOW_BLOCKS", LEAF_BLOCKS),
        ):
            for _ in range(2):
                run_inline(settler.look())
            while run_inline(settler.step()).more:
                run_inline(Reclaimer(pool.registry).run())


def opened(root: Path, background: Background) -> LocalPool:
    pool = LocalPool.open(root, background.spawn)
    pool.registry.pack = lambda: True
    return pool


def live(root: Path, told: Path, point: str, background: Background) -> None:
    """In a process of its own."""
    with open(told, "ab", buffering=0) as file:

        def say(state: str, blocks: range, value: bytes) -> None:
            file.write(f"{state} {blocks.start} {blocks.stop} {value.hex()}\n".encode())

        failpoints.arm({VARIABLE: point})
        Worker(say).work(opened(root, background), background)
    os._exit(0)


def dies(root: Path, told: Path, point: str) -> bool:
    process = _context.Process(target=live, args=(root, told, point, Background()))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def make_pool(root: Path) -> None:
    background = Background()
    pool = opened(root, background)
    volume = run_inline(pool.create_volume("v", SIZE)).id
    device = run_inline(pool.registry.use_volume(volume)).volume
    run_inline(device.write(0, memoryview(b"@" * SIZE)))
    run_inline(pool.create_snapshot(volume, "s"))
    run_inline(pool.close_all())
    pool.release()


def possible(told: Path) -> Blocks:
    blocks: Blocks = {block: {b"@"} for block in range(BLOCKS)}
    for line in told.read_text().splitlines():
        state, start, stop, value = line.split()
        for block in range(int(start), int(stop)):
            if state == "begin":
                blocks[block] |= {bytes.fromhex(value)}
            else:
                blocks[block] = {bytes.fromhex(value)}
    return blocks


def verify(root: Path, told: Path) -> None:
    background = Background()
    pool = opened(root, background)
    run_inline(pool.registry.recover_volumes())
    report = check_open_pool(pool.registry.store, live=frozenset(), repair=False)
    assert report.clean, report.problems
    device = run_inline(pool.registry.use_volume(volume_named(pool, "v"))).volume
    snapshot = run_inline(pool.registry.use_snapshot(snapshot_named(pool, "s"))).snapshot
    found = bytearray(SIZE)
    run_inline(snapshot.read(0, memoryview(found)))
    assert found == b"@" * SIZE
    run_inline(device.read(0, memoryview(found)))
    for block, values in possible(told).items():
        content = found[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]
        assert content[:1] * BLOCK_SIZE == content, block
        assert bytes(content[:1]) in values, block
    background.run()
    run_inline(device.read(0, memoryview(found)))
    told.write_text("")
    Worker(lambda *_: None).work(pool, background)
    run_inline(pool.close_all())
    background.run()
    report = check_open_pool(pool.registry.store, live=frozenset(), repair=False)
    assert report.clean, report.problems
    pool.release()


@pytest.mark.parametrize(
    ("point", "hit"), [(p, hit) for p in POINTS for hit in (1, 2) if hit == 1 or p not in ONCE]
)
def test_killed_with_a_packed_head(tmp_path: Path, point: Failpoint, hit: int) -> None:
    root, told = tmp_path / "pool", tmp_path / "told"
    told.touch()
    make_pool(root)
    assert dies(root, told, f"{Failpoint.CELLS_APPENDED}:3")  # what a sweep has to do
    assert dies(root, told, f"{point}:{hit}"), f"nothing comes to {point}"
    verify(root, told)
