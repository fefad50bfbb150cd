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
    NULL,
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
    """What the ratio to the fastest of some peers should be; of CPU time, to the only one."""

    peers: tuple[str, ...]
    target: Target
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


OF_THE_CEILING = {"randread": 0.95, "randwrite": 0.85}
"""The part of what `null` reaches that small requests should: what is missing is storage's own
work. How many times another server's rate that is, no target says: one client on one core sends no
more than `null` answers."""
LESS_CPU = Aim((NBDKIT_FILE,), Target(0.6, at_most=True), cpu=True)


def _small(
    mode: str, depth: int, peers: tuple[str, ...] = (NBDKIT_FILE,), *, filled: str = ""
) -> Row:
    """Requests of 4 KiB: nearly as many as the client can have, more than from any peer, and for
    less processor time."""
    aims = (_aim(NULL, OF_THE_CEILING[mode]), _aim(peers, 1.0), LESS_CPU)
    return Row(
        f"4k-{mode}-qd{depth}{filled and f'-fill-{filled}'}",
        mode,
        depth,
        peers=(*peers, NULL),
        aims=aims,
        fill_bytes=FILLS[filled],
    )


FILLS = {"": FILL_BLOCK_BYTES, "1m": 1 * MIB, "4k": 4 * KIB}
"""The writes that filled the image, as names of rows have them."""


def _large(name: str, mode: str, depth: int, block_bytes: int) -> Row:
    return Row(name, mode, depth, block_bytes, (*FILES, NULL), (_aim(FILES, 1.2),))


ROWS = (
    _small("randread", 1, FILES),
    _small("randread", 4),
    _small("randread", 8),
    _small("randread", 32, ALL),
    _small("randread", 128, DEEP),
    _small("randwrite", 1, FILES),
    _small("randwrite", 4),
    _small("randwrite", 8),
    _small("randwrite", 32, ALL),
    _small("randwrite", 128, DEEP),
    *(_small("randwrite", depth, filled="1m") for depth in (1, 32, 128)),
    *(_small("randwrite", depth, filled="4k") for depth in (1, 32, 128)),
    Row("4k-mixed-70-30-qd32", "randrw", 32, peers=(NBDKIT_FILE, NULL)),
    _large("64k-randread-qd16", "randread", 16, 64 * KIB),
    _large("64k-randwrite-qd16", "randwrite", 16, 64 * KIB),
    _large("1m-read-qd8", "read", 8, 1 * MIB),
    _large("1m-write-qd8", "write", 8, 1 * MIB),
    Row(
        "4k-randwrite-qd1-flush-1",
        "randwrite",
        1,
        peers=QCOW2,
        aims=(_aim(QCOW2, 1.15),),
        flush_every=1,
    ),
    Row(
        "4k-randwrite-qd32-flush-32",
        "randwrite",
        32,
        peers=QCOW2,
        aims=(_aim(QCOW2, 1.6),),
        flush_every=32,
    ),
    Row("4k-randread-qd1-tcp", "randread", 1, tcp=True),
    Row("4k-randread-qd32-tcp", "randread", 32, tcp=True),
    Row("4k-randwrite-qd32-tcp", "randwrite", 32, tcp=True),
)
