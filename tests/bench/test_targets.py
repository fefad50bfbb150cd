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

DEEP_READS = {FILE: 1.5, MEMORY: 1.3, QCOW2: 2.2}
DEEP_WRITES = {FILE: 2.5, MEMORY: 0.75, QCOW2: 2.0}
AT_LEAST: dict[str, dict[tuple[str, ...], float]] = {
    "4k-randread-qd1": {BEST: 1.8},
    "4k-randread-qd4": {FILE: 1.4},
    "4k-randread-qd8": {FILE: 1.4},
    "4k-randread-qd32": DEEP_READS,
    "4k-randread-qd128": DEEP_READS,
    "4k-randwrite-qd1": {BEST: 1.8},
    "4k-randwrite-qd32": DEEP_WRITES,
    "4k-randwrite-qd128": DEEP_WRITES,
    "4k-randwrite-qd32-fill-1m": {FILE: 2.5},
    "4k-randwrite-qd128-fill-1m": {FILE: 2.5},
    "4k-randwrite-qd32-fill-4k": {FILE: 2.5},
    "4k-randwrite-qd128-fill-4k": {FILE: 2.5},
    "64k-randread-qd16": {BEST: 1.2},
    "64k-randwrite-qd16": {BEST: 1.2},
    "1m-read-qd8": {BEST: 1.2},
    "1m-write-qd8": {BEST: 1.2},
    "4k-randwrite-qd1-flush-1": {QCOW2: 1.2},
    "4k-randwrite-qd32-flush-32": {QCOW2: 1.5},
}


def test_the_targets_against_other_servers() -> None:
    found = {
        row.name: {
            aim.peers: aim.target.bound
            for aim in row.aims
            if aim.target is not None and not aim.cpu
        }
        for row in ROWS
    }

    assert {name: aims for name, aims in found.items() if aims} == AT_LEAST


def test_processor_time_is_held_to_that_of_nbdkit() -> None:
    (aim,) = [aim for row in ROWS if row.name == "4k-randread-qd32" for aim in row.aims if aim.cpu]

    assert aim.peers == FILE
    assert aim.target == Target(0.7, at_most=True)


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
        Target(8.0),
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
