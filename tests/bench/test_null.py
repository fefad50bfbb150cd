"""The server without storage, which shows what the client can do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from bench.fio import Job, run_job
from bench.processes import Placement
from bench.servers import NULL, PEERS, Served
from bockd.model import KIB, MIB

SIZE_BYTES = 64 * MIB


@pytest.fixture
def null(tmp_path: Path) -> Iterator[Served]:
    with PEERS[NULL].serve(tmp_path / "null", SIZE_BYTES, Placement(None, None)) as served:
        yield served


def test_null_answers_each_request_and_keeps_nothing(null: Served) -> None:
    client = nbd.NBD()
    client.connect_uri(null.uri)
    client.pwrite(b"x" * 8192, 4096)

    assert client.get_size() == SIZE_BYTES
    assert client.pread(8192, 4096) == bytes(8192)
    client.flush()
    client.trim(SIZE_BYTES, 0)
    client.zero(4096, 0)
    client.shutdown()


@pytest.mark.parametrize("mode", ["randread", "randwrite"])
@pytest.mark.parametrize("block_bytes", [512, 4 * KIB, 4 * MIB])
def test_null_serves_many_requests_at_once(null: Served, mode: str, block_bytes: int) -> None:
    """More than one call can send, cut anywhere, and larger than its buffer."""
    blocks = min(4096, SIZE_BYTES // block_bytes)
    # No more at once than there are: fio fills a buffer for each, 8 GiB of 1024 of the largest.
    depth = min(1024, blocks)
    job = Job(mode, block_bytes, depth, SIZE_BYTES, io_bytes=blocks * block_bytes, connections=2)

    assert run_job(job, null.uri).operations == 2 * blocks


def test_null_serves_the_old_way_to_choose_an_export(null: Served) -> None:
    client = nbd.NBD()
    client.set_handshake_flags(0)  # neither NBD_OPT_GO nor an answer without padding
    client.connect_uri(null.uri)

    assert client.pread(4096, 0) == bytes(4096)
    client.shutdown()
