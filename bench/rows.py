"""The workloads that bockd and its peers are measured with, and what bockd should reach."""

from __future__ import annotations

from dataclasses import dataclass

from bench.fio import Job
from bench.results import Target
from bench.servers import (
    LMDB_VALUES,
    NBD_SERVER,
    NBDKIT_BOCKD,
    NBDKIT_FILE,
    NBDKIT_MEMORY,
    QCOW2_IO_URING,
    QCOW2_THREADS,
    RAW_IO_URING,
    RAW_THREADS,
)
from bockd.model import KIB, MIB

FILL_BLOCK_BYTES = 64 * KIB
"""How images are filled, unless a row says otherwise."""


@dataclass(frozen=True)
class Aim:
    """What the ratio to the fastest of some peers should be; of CPU time, to the only one, and
    without a target just measured."""

    peers: tuple[str, ...]
    target: Target | None
    cpu: bool = False


@dataclass(frozen=True)
class Row:
    """One workload. Random writes are overwrites: the image is full."""

    name: str
    mode: str
    depth: int
    block_bytes: int = 4 * KIB
    peers: tuple[str, ...] = (NBDKIT_FILE,)
    aims: tuple[Aim, ...] = ()
    fill_bytes: int = FILL_BLOCK_BYTES
    flush_every: int = 0
    tcp: bool = False

    def job(self, size_bytes: int, seconds: float) -> Job:
        return Job(
            self.mode,
            self.block_bytes,
            self.depth,
            size_bytes,
            seconds=seconds,
            flush_every=self.flush_every,
            read_percent=70,
        )

    @property
    def writes(self) -> bool:
        return "write" in self.mode or self.mode == "randrw"


QCOW2 = (QCOW2_THREADS, QCOW2_IO_URING)
"""Whichever way qemu-nbd does its input and output."""
FILES = (RAW_THREADS, RAW_IO_URING, NBDKIT_FILE, NBD_SERVER)
"""Servers of a raw file."""
DEEP = (NBDKIT_FILE, NBDKIT_MEMORY, *QCOW2)
ALL = (*DEEP, RAW_THREADS, RAW_IO_URING, NBD_SERVER, NBDKIT_BOCKD, LMDB_VALUES)


def _aim(names: tuple[str, ...] | str, bound: float) -> Aim:
    return Aim((names,) if isinstance(names, str) else names, Target(bound))


DEEP_READS = (_aim(NBDKIT_FILE, 1.5), _aim(NBDKIT_MEMORY, 1.3), _aim(QCOW2, 2.2))
DEEP_WRITES = (_aim(NBDKIT_FILE, 2.5), _aim(NBDKIT_MEMORY, 0.75), _aim(QCOW2, 2.0))
LESS_CPU = Aim((NBDKIT_FILE,), Target(0.7, at_most=True), cpu=True)
CPU_OF_WRITES = Aim((NBDKIT_FILE,), None, cpu=True)


def _filled_by(name: str, fill_bytes: int) -> tuple[Row, ...]:
    """The rows of small writes on an image that was filled by writes of another size."""
    aims = {1: (), 32: (_aim(NBDKIT_FILE, 2.5),), 128: (_aim(NBDKIT_FILE, 2.5),)}
    return tuple(
        Row(
            f"4k-randwrite-qd{depth}-fill-{name}",
            "randwrite",
            depth,
            aims=aim,
            fill_bytes=fill_bytes,
        )
        for depth, aim in aims.items()
    )


ROWS = (
    Row("4k-randread-qd1", "randread", 1, peers=FILES, aims=(_aim(FILES, 1.8),)),
    Row("4k-randread-qd4", "randread", 4, aims=(_aim(NBDKIT_FILE, 1.4),)),
    Row("4k-randread-qd8", "randread", 8, aims=(_aim(NBDKIT_FILE, 1.4),)),
    Row("4k-randread-qd32", "randread", 32, peers=ALL, aims=(*DEEP_READS, LESS_CPU)),
    Row("4k-randread-qd128", "randread", 128, peers=DEEP, aims=DEEP_READS),
    Row("4k-randwrite-qd1", "randwrite", 1, peers=FILES, aims=(_aim(FILES, 1.8),)),
    Row("4k-randwrite-qd4", "randwrite", 4),
    Row("4k-randwrite-qd8", "randwrite", 8),
    Row("4k-randwrite-qd32", "randwrite", 32, peers=ALL, aims=(*DEEP_WRITES, CPU_OF_WRITES)),
    Row("4k-randwrite-qd128", "randwrite", 128, peers=DEEP, aims=DEEP_WRITES),
    *_filled_by("1m", 1 * MIB),
    *_filled_by("4k", 4 * KIB),
    Row("4k-mixed-70-30-qd32", "randrw", 32),
    Row("64k-randread-qd16", "randread", 16, 64 * KIB, FILES, (_aim(FILES, 1.2),)),
    Row("64k-randwrite-qd16", "randwrite", 16, 64 * KIB, FILES, (_aim(FILES, 1.2),)),
    Row("1m-read-qd8", "read", 8, 1 * MIB, FILES, (_aim(FILES, 1.2),)),
    Row("1m-write-qd8", "write", 8, 1 * MIB, FILES, (_aim(FILES, 1.2),)),
    Row(
        "4k-randwrite-qd1-flush-1",
        "randwrite",
        1,
        peers=QCOW2,
        aims=(_aim(QCOW2, 1.2),),
        flush_every=1,
    ),
    Row(
        "4k-randwrite-qd32-flush-32",
        "randwrite",
        32,
        peers=QCOW2,
        aims=(_aim(QCOW2, 1.5),),
        flush_every=32,
    ),
    Row("4k-randread-qd1-tcp", "randread", 1, tcp=True),
    Row("4k-randread-qd32-tcp", "randread", 32, tcp=True),
    Row("4k-randwrite-qd32-tcp", "randwrite", 32, tcp=True),
)
