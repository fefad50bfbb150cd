"""No descriptor is left: clients that are connected go on, those that come wait, and what needs a
file says so; when some are free again, so is everything."""

from __future__ import annotations

import errno
import itertools
import os
import re
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nbd
import pytest

from bockd.failurelog import PERIOD_SECONDS

from .process import Bockd, program, serving

MIB = 1 << 20
BLOCK = 4096
GREETING = b"NBDMAGIC"
SNAPSHOTS = 6
CLONES = 120
FEW_DESCRIPTORS = 256
FAR = 128 * MIB
"""Where the map is read on its own."""

TRIES = 20
"""Requests of a kind, all of which fail."""

LINES_PER_SECOND = 20
"""Of the log, while nothing can be accepted: it is tried ten times a second."""


@contextmanager
def left(daemon: Bockd, count: int) -> Iterator[None]:
    """The daemon finds no more than so many descriptors, for the duration."""
    used = {int(number) for number in os.listdir(f"/proc/{daemon.pid}/fd")}
    free = (number for number in itertools.count() if number not in used)
    limit = next(itertools.islice(free, count, None))
    _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))


def greeted(client: socket.socket) -> bool:
    """Whether the server has said hello; False when it has not within a second."""
    client.settimeout(1)
    try:
        return client.recv(len(GREETING)) == GREETING
    except TimeoutError:
        return False


@pytest.fixture
def layered(daemon: Bockd) -> Bockd:
    """A daemon with a volume whose blocks are in many layers, none of them open."""
    daemon.bock("volume", "create", "v", "--size", "256M")
    with daemon.connected("v") as client, daemon.storage() as storage:
        volume = storage.find_volume("v").id
        for number in range(SNAPSHOTS):
            client.pwrite(b"%d" % number * BLOCK, number * BLOCK)
            storage.create_snapshot(volume, f"s{number}")
    daemon.restart()
    return daemon


def test_connections_take_the_last_descriptor(daemon: Bockd) -> None:
    daemon.expect_in_log("cannot accept a client now")
    daemon.bock("volume", "create", "v", "--size", "16M")
    client = daemon.connect("v")
    client.pwrite(b"a" * BLOCK, 0)
    with ExitStack() as sockets, left(daemon, 4):
        waiting = []
        for _ in range(12):
            late = sockets.enter_context(socket.socket(socket.AF_UNIX))
            late.connect(str(daemon.nbd_socket))
            waiting.append(late)
        before = len(daemon.log.read_text().splitlines())
        began = time.monotonic()
        assert not greeted(waiting[-1])
        for number in range(200):
            client.pwrite(b"%d" % (number % 10) * BLOCK, number * BLOCK)
            assert client.pread(BLOCK, number * BLOCK) == b"%d" % (number % 10) * BLOCK
        client.flush()
        lines = len(daemon.log.read_text().splitlines()) - before
        assert 0 < lines <= LINES_PER_SECOND * (time.monotonic() - began + 1)
        for late in waiting[:-1]:
            late.close()
        # As those leave, the last one comes in.
        waiting[-1].settimeout(60)
        assert waiting[-1].recv(len(GREETING)) == GREETING
    with daemon.connected("v") as another:
        assert another.pread(BLOCK, 3 * BLOCK) == b"3" * BLOCK
    client.shutdown()
    daemon.check()


def test_clones_of_clones_with_few_descriptors(pool: Path) -> None:
    """Each clone reads all layers before its own; together they would need 7,000 descriptors. What
    was closed to make room for others is read as before."""
    few = f"--nofile={FEW_DESCRIPTORS}:{FEW_DESCRIPTORS}"
    with serving(pool, launcher=[program("prlimit"), few]) as daemon:
        with daemon.storage() as storage:
            volume = storage.create_volume("c0", MIB)
            for number in range(CLONES):
                with daemon.connected(f"c{number}") as client:
                    client.pwrite(bytes([number]) * BLOCK, number * BLOCK)
                snapshot = storage.create_snapshot(volume.id, f"s{number}")
                volume = storage.create_volume(f"c{number + 1}", None, str(snapshot.id))
        written = b"".join(bytes([number]) * BLOCK for number in range(CLONES))
        for number in (CLONES, 1, CLONES // 2, CLONES):
            with daemon.connected(f"c{number}") as client:
                expected = written[: (number + 1) * BLOCK].ljust(len(written), b"\0")
                assert client.pread(len(written), 0) == expected
                for block in range(0, CLONES, 10):
                    assert client.pread(BLOCK, block * BLOCK) == expected[block * BLOCK :][:BLOCK]
                client.pwrite(b"new!" * 1024, 0)
                assert client.pread(BLOCK, 0) == b"new!" * 1024
                client.pwrite(expected[:BLOCK], 0)
        held = len(os.listdir(f"/proc/{daemon.pid}/fd"))
        assert held < FEW_DESCRIPTORS * 3 // 4, held
        daemon.check()


def test_layers_that_cannot_be_opened(layered: Bockd) -> None:
    """Reading from them fails, and only that; when descriptors are free again, nothing does."""
    daemon = layered
    daemon.expect_in_log("Too many open files")
    with daemon.connected("v") as client:
        client.pwrite(b"n" * BLOCK, FAR)
        with left(daemon, 0):
            began = time.monotonic()
            for _ in range(TRIES):
                for operation in (
                    lambda: client.pread(SNAPSHOTS * BLOCK, 0),
                    lambda: client.pwrite(b"part of a block", 8),
                    lambda: client.zero(100, BLOCK + 8),
                ):
                    with pytest.raises(nbd.Error) as refused:
                        operation()  # type: ignore[no-untyped-call]
                    assert refused.value.errnum == errno.EIO
            client.pwrite(b"m" * BLOCK, FAR)
            assert client.pread(BLOCK, FAR) == b"m" * BLOCK
            client.flush()
        for number in range(SNAPSHOTS):
            assert client.pread(BLOCK, number * BLOCK) == b"%d" % number * BLOCK
    daemon.check()
    # Each kind is in the log once a minute, with what to do, and at last every one is counted.
    daemon.stop()
    said = [line for line in daemon.log.read_text().splitlines() if "EMFILE" in line]
    assert all("LimitNOFILE" in line for line in said)
    for kind in ("read", "write", "write of zeroes"):
        pattern = rf"volume \d+: (a|\d+) {kind}s? failed with EMFILE: "
        found = [match[1] for line in said if (match := re.search(pattern, line))]
        assert found[0] == "a"
        assert sum(1 if count == "a" else int(count) for count in found) == TRIES
        assert len(found) <= 2 + (time.monotonic() - began) / PERIOD_SECONDS
