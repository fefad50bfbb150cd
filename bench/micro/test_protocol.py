"""Parsing requests and packing replies: a receive buffer of 32 requests at a time."""

from __future__ import annotations

import struct

from pytest_benchmark.fixture import BenchmarkFixture

from bockd.drivers.memory.device import MemoryDevice
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol.replies import encoder_for
from bockd.nbd.protocol.transmission import RequestLimits, RequestParser
from bockd.nbd.server.batch import Batch
from bockd.nbd.server.statistics import ExportStatistics

DEPTH = 32
BLOCK_BYTES = 4096
SIZE_BYTES = 1 << 30


def requests(command: int, payload: bytes = b"") -> memoryview:
    """Build simple requests for `DEPTH` blocks, as they lie in a receive buffer."""
    packed = b"".join(
        struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, command, n, n * BLOCK_BYTES, BLOCK_BYTES)
        + payload
        for n in range(DEPTH)
    )
    return memoryview(bytearray(packed))


READS = requests(nbd.CMD_READ)
WRITES = requests(nbd.CMD_WRITE, bytes(BLOCK_BYTES))


def test_parse_reads(benchmark: BenchmarkFixture) -> None:
    parser = RequestParser(extended=False)

    found, _ = benchmark(parser.parse, READS, 0, len(READS))

    assert len(found) == DEPTH


def test_parse_writes(benchmark: BenchmarkFixture) -> None:
    parser = RequestParser(extended=False)

    found, _ = benchmark(parser.parse, WRITES, 0, len(WRITES))

    assert len(found) == DEPTH


def batch_on(device: MemoryDevice) -> Batch:
    limits = RequestLimits(read_only=False, extended=False, chunked=False, allocation=False)
    encoder = encoder_for(structured=False, extended=False)
    return Batch(device, encoder, limits, ExportStatistics())


def serve(batch: Batch, received: memoryview) -> int:
    """Parse and serve one receive buffer; bytes of the replies."""
    found, _ = RequestParser(extended=False).parse(received, 0, len(received))
    batch.serve(found, 0, received, DEPTH)
    return sum(len(part) for part in batch.finish())


def test_serve_reads_from_memory(benchmark: BenchmarkFixture) -> None:
    batch = batch_on(MemoryDevice(SIZE_BYTES))

    assert benchmark(serve, batch, READS) == DEPTH * (16 + BLOCK_BYTES)


def test_serve_writes_to_memory(benchmark: BenchmarkFixture) -> None:
    batch = batch_on(MemoryDevice(SIZE_BYTES))

    assert benchmark(serve, batch, WRITES) == DEPTH * 16
