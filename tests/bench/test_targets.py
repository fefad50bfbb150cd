"""The targets are those that were set, against the peers that they were set for."""

from __future__ import annotations

from bench import aftersnapshot, copies, footprint, fresh, several, snapshotreads
from bench.results import Target
from bench.rows import ROWS
from bench.servers import PEERS
from bench.turns import Scale
from bockd.model import GIB

FILE, MEMORY = ("nbdkit file",), ("nbdkit memory",)
QCOW2 = ("qemu-nbd qcow2", "qemu-nbd qcow2 io_uring")
BEST = ("qemu-nbd raw", "qemu-nbd raw io_uring", "nbdkit file", "nbd-server")

QCOW2_AND_NBDKIT = (*FILE, *MEMORY, *QCOW2)
EVERY = (
    *QCOW2_AND_NBDKIT,
    *("qemu-nbd raw", "qemu-nbd raw io_uring", "nbd-server", "nbdkit bock.py", "LMDB values"),
)
PEERS_AT_DEPTH = {1: BEST, 4: FILE, 8: FILE, 32: EVERY, 128: QCOW2_AND_NBDKIT}
AT_LEAST: dict[str, dict[tuple[str, ...], float]] = {
    **{
        f"4k-{mode}-qd{depth}": {("null",): part, peers: 1.0}
        for mode, part in (("randread", 0.95), ("randwrite", 0.85))
        for depth, peers in PEERS_AT_DEPTH.items()
    },
    **{
        f"4k-randwrite-qd{depth}-fill-{size}": {("null",): 0.85, FILE: 1.0}
        for depth in (1, 32, 128)
        for size in ("1m", "4k")
    },
    "64k-randread-qd16": {BEST: 1.2},
    "64k-randwrite-qd16": {BEST: 1.2},
    "1m-read-qd8": {BEST: 1.2},
    "1m-write-qd8": {BEST: 1.2},
    "4k-randwrite-qd1-flush-1": {QCOW2: 1.15},
    "4k-randwrite-qd32-flush-32": {QCOW2: 1.6},
}


def test_the_targets_against_other_servers() -> None:
    found = {
        row.name: {aim.peers: aim.target.bound for aim in row.aims if not aim.cpu} for row in ROWS
    }

    assert {name: aims for name, aims in found.items() if aims} == AT_LEAST


def test_small_requests_take_less_processor_time_than_those_of_nbdkit() -> None:
    held = {row.name: aim for row in ROWS for aim in row.aims if aim.cpu}

    assert set(held) == {name for name, aims in AT_LEAST.items() if ("null",) in aims}
    for aim in held.values():
        assert aim.peers == FILE
        assert aim.target == Target(0.6, at_most=True)


def test_the_peers_of_a_target_take_part_in_its_row() -> None:
    names = [row.name for row in ROWS]

    assert len(set(names)) == len(names)
    for row in ROWS:
        assert set(row.peers) <= set(PEERS)
        for aim in row.aims:
            assert set(aim.peers) <= set(row.peers), row.name


def test_the_targets_of_snapshots_trim_and_memory() -> None:
    found = {
        "after a snapshot, of before": aftersnapshot.KEPT,
        "after a snapshot, an overlay's speed": fresh.FASTER,
        "after a snapshot, an overlay's space": fresh.SMALLER,
        "through a hundred snapshots, of none": snapshotreads.KEPT[100],
        "four volumes, of one": several.SAME_TOTAL,
        "trim": copies.FASTER_TRIM,
    }

    assert list(found.values()) == [
        Target(0.9),
        Target(5.0),
        Target(0.1, at_most=True),
        Target(0.95),
        Target(1.0),
        Target(5.0),
    ]
    assert (footprint.IDLE_MIB, footprint.OPEN_MIB) == (60.0, 64.0)


def test_the_full_benchmark_has_the_sizes_of_the_targets() -> None:
    """The sizes that the targets name, whatever the quick benchmark does."""
    scale = Scale(rounds=5, seconds=1.0, size_bytes=1 * GIB, repeats=0)

    assert scale.trim_bytes == 100 * GIB
    assert scale.scattered_bytes == 1 * GIB
    assert scale.most_snapshots == 100
    assert scale.many_volumes == 10_000
