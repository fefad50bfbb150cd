"""The targets are those that were set, against the peers that they were set for."""

from __future__ import annotations

from bench import (
    aftersnapshot,
    cachehits,
    clones,
    coldreads,
    copies,
    fileview,
    footprint,
    fresh,
    inorder,
    mapqueries,
    rbd,
    several,
    snapshotreads,
    tlscost,
    trims,
    wide,
    zeroing,
)
from bench.results import Target
from bench.rows import ROWS
from bench.sections import all_rows
from bench.servers import PEERS
from bench.turns import Scale
from bockd.model import GIB, MIB

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
        "in order after a snapshot, of none": inorder.KEPT,
        "four volumes, of one": several.SAME_TOTAL,
        "trim": trims.FASTER_TRIM,
    }

    assert list(found.values()) == [
        Target(0.9),
        Target(5.0),
        Target(0.1, at_most=True),
        Target(0.95),
        Target(0.9),
        Target(1.0),
        Target(5.0),
    ]
    assert (footprint.IDLE_MIB, footprint.OPEN_MIB) == (60.0, 64.0)


def test_the_targets_of_maps_trims_zeros_and_copies() -> None:
    at_most = {
        "block status and qemu-img map": (mapqueries.SAME_TIME, 1.0),
        "mirror": (mapqueries.MIRROR_TIME, 1.5),
        "many trims": (trims.MANY_TIME, 1.5),
        "zeros without a hole": (zeroing.TIME, 3.0),
        "their neighbour": (zeroing.PATIENCE, 2.0),
    }
    at_least = {
        "cold random reads": (coldreads.TARGETS["cold-4k-randread-qd32"], 0.8),
        "cold reads in order": (coldreads.TARGETS["cold-64k-read-qd1"], 0.95),
        "few blocks of a large volume": (wide.HALF, 0.5),
        "nbdcopy in": (copies.TARGETS["nbdcopy-in"], 1.0),
        "qemu-img convert in": (copies.TARGETS["qemu-img-convert-in"], 1.0),
        "nbdcopy into nothing": (copies.FRESH, 0.9),
        "export and import": (copies.AS_QEMU, 1.0),
        "the file view": (fileview.AS_QEMU, 0.8),
        "TLS": (tlscost.NEARLY, 0.9),
    }

    for target, bound in at_most.values():
        assert target == Target(bound, at_most=True)
    for target, bound in at_least.values():
        assert target == Target(bound)
    assert trims.CHECKPOINT_CPU_SECONDS == 0.3


def test_the_targets_of_a_pool_in_ceph() -> None:
    assert {name: target.bound for name, target in rbd.TARGETS.items()} == {
        "rbd-4k-randread-qd32": 2.0,
        "rbd-4k-randread-qd32-simple": 1.0,
        "rbd-4k-randwrite-qd32": 1.1,
        "rbd-4k-randread-qd1-simple": 1.0,
        "rbd-4k-randwrite-qd1": 1.0,
        "rbd-1m-read-qd4": 1.0,
        "rbd-1m-write-qd4": 1.0,
    }
    assert (rbd.LESS_CPU.bound, rbd.LESS_CPU.at_most) == (1.0, True)
    assert (cachehits.FASTER.bound, cachehits.FASTER.at_most) == (10.0, False)
    assert (cachehits.AS_LOCAL.bound, cachehits.AS_LOCAL.at_most) == (0.9, False)


def test_no_two_rows_have_one_name() -> None:
    rows = all_rows()

    assert len(set(rows)) == len(rows)
    assert set(clones.ROWS) <= set(rows)


def test_the_full_benchmark_has_the_sizes_of_the_targets() -> None:
    """The sizes that the targets name, whatever the quick benchmark does."""
    scale = Scale(rounds=5, seconds=1.0, size_bytes=1 * GIB, repeats=0)

    assert scale.trim_bytes == 100 * GIB
    assert scale.scattered_bytes == 1 * GIB
    assert scale.most_snapshots == 100
    assert scale.many_volumes == 10_000
    assert (scale.many_trims, trims.MANY_PIECE_BYTES) == (8_192, 128 * MIB)
    assert scale.pieces == 16_384
    assert (scale.wide_blocks, wide.SIZE_BYTES) == (32_768, 256 * GIB)
    assert scale.zeroed_bytes == 1 * GIB
    assert scale.clones == 20
    assert scale.scattered_snapshot_bytes == 400 * MIB
    assert scale.listed_volumes == 5_000
