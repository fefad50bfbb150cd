"""A device behind a cache, served by both lanes: the same replies and bytes, and hits at once."""

from __future__ import annotations

import os
import random
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from bockd.drivers.cache.blockmap import LEAF_BYTES
from bockd.drivers.cache.cachefile import CacheFile
from bockd.drivers.cache.device import CachedDevice
from bockd.drivers.cache.directory import CacheDirectory
from bockd.model import BLOCK_SIZE, MIB
from bockd.nbd.protocol.replies import encoder_for
from bockd.nbd.protocol.transmission import RequestLimits
from bockd.nbd.server import fastlane
from bockd.nbd.server.batch import Batch
from bockd.nbd.server.statistics import ExportStatistics
from bockd.pool.device import SharedDevice
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Steps, run_inline
from tests.drivers.cache.opened import CountingDevice, Opened, content_of, is_hit
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client
from tests.nbd.server.lanes import STYLES, same_replies, streams
from tests.nbd.server.replies import cut
from tests.nbd.server.serving import FixedExports, in_trio, serving
from tests.nbd.server.sides import PLACE_BYTES, SIZE_BYTES, WRITTEN, Line, Side

CONTENT = content_of(SIZE_BYTES)


class CachedSide(Side):
    """A device in memory behind a cache, and the server's part above it."""

    def __init__(self, root: Path, *, compiled: bool, structured: bool, extended: bool) -> None:
        self.opened = Opened(root)
        self._background = self.opened.background
        self.below = CountingDevice(SIZE_BYTES)
        self.below.blocking = True
        self.below.hold(CONTENT[: WRITTEN * PLACE_BYTES])
        self.device = self.opened.volume(self.below, 1)
        self.statistics = ExportStatistics()
        self.extended = extended
        self._encoder = encoder = encoder_for(structured=structured, extended=extended)
        limits = RequestLimits(
            read_only=False, extended=extended, chunked=structured, allocation=structured
        )
        with pytest.MonkeyPatch.context() as patch:
            if not compiled:
                patch.setattr(fastlane, "compiled", None)
            self.batch = Batch(self.device, encoder, limits, self.statistics)
        self.in_lane = 0

    def fill(self) -> None:
        """Make everything a hit."""
        self.opened.read(self.device, 0, SIZE_BYTES)

    def content(self) -> bytes:
        return self.opened.read(self.device, 0, SIZE_BYTES)

    def close(self) -> None:
        self.opened.release(self.device)


@contextmanager
def two_cached_sides(
    *, structured: bool, extended: bool
) -> Iterator[tuple[CachedSide, CachedSide]]:
    """With the fast lane, and without."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        sides = [
            CachedSide(Path(root), compiled=compiled, structured=structured, extended=extended)
            for root, compiled in ((one, True), (other, False))
        ]
        try:
            yield sides[0], sides[1]
        finally:
            for side in sides:
                side.close()


@pytest.mark.parametrize("send_buffer_bytes", [0, 20_000, 4 * MIB], ids=["none", "small", "large"])
@pytest.mark.parametrize(("structured", "extended"), STYLES)
def test_both_lanes_give_the_same_replies_and_content(
    structured: bool, extended: bool, send_buffer_bytes: int
) -> None:
    with (
        two_cached_sides(structured=structured, extended=extended) as (with_it, without),
        closing(Line(send_buffer_bytes)) as line,
    ):

        @settings(max_examples=60, deadline=None)
        @given(streams(extended), st.sampled_from(["as it is", "filled", "cold", "evicted"]))
        def run(stream: bytes, state: str) -> None:
            for side in (with_it, without):
                if state != "as it is":
                    side.fill()
                if state == "cold":
                    fd = side.device.blocks.file.first_descriptor
                    os.fdatasync(fd)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                if state == "evicted":
                    run_inline(side.device.blocks.evict([0, 2]))
            same_replies(with_it, without, stream, line if send_buffer_bytes else None)
            expected = with_it.content()
            assert without.content() == expected
            for side in (with_it, without):
                below = memoryview(bytearray(SIZE_BYTES))
                side.below._read(0, below)
                assert below == expected

        run()
    assert with_it.in_lane > 10
    assert without.in_lane == 0


@pytest.mark.parametrize("compiled", [True, False])
def test_hits_are_answered_at_once(tmp_path: Path, compiled: bool) -> None:
    """Without the device below, and without a thread."""
    side = CachedSide(tmp_path, compiled=compiled, structured=True, extended=False)
    stream = b"".join(
        wire.request(0, place, place * PLACE_BYTES + 512 * place, 3 * BLOCK_SIZE)
        for place in range(16)
    )
    side.serve(stream)
    assert len(side.below.reads) == 16
    side.fill()
    side.below.reads.clear()
    before = threading.active_count()
    received = memoryview(bytearray(stream))
    done = side.batch.serve_plain(received, 0, len(stream), fastlane.Turn(), 0)
    if compiled:
        assert done is not None
        assert done.reads == 16
    else:
        replies, _ = side.serve(stream)
        assert len(cut(replies, stream, extended=False)) == 16
    assert side.batch.background == []
    assert side.below.reads == []
    assert threading.active_count() == before
    side.batch.finish()
    side.close()


def test_large_hits_are_sent_from_windows(tmp_path: Path) -> None:
    side = CachedSide(tmp_path, compiled=True, structured=True, extended=False)
    side.fill()
    side.below.reads.clear()
    with closing(Line(4 * MIB)) as line:
        replies, _ = side.serve(wire.request(0, 1, MIB, MIB), line)
        assert b"".join(replies)[28:] == CONTENT[MIB : 2 * MIB]
        assert side.in_lane == 1
    assert side.below.reads == []
    side.close()


def test_misses_and_hits_in_one_stream(tmp_path: Path) -> None:
    side = CachedSide(tmp_path, compiled=True, structured=True, extended=False)
    side.serve(wire.request(0, 1, 0, BLOCK_SIZE))
    stream = wire.request(0, 1, 0, BLOCK_SIZE) + wire.request(0, 2, BLOCK_SIZE, BLOCK_SIZE)
    replies, _ = side.serve(stream)
    assert side.in_lane == 1
    found = {struct.unpack_from(">Q", one, 8)[0]: one[28:] for one in cut(replies, stream, False)}
    assert found == {1: CONTENT[:BLOCK_SIZE], 2: CONTENT[BLOCK_SIZE : 2 * BLOCK_SIZE]}
    side.close()


def test_a_hit_that_the_disk_loses_is_read_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lane finds the page missing; the thread that reads it fails."""
    side = CachedSide(tmp_path, compiled=False, structured=True, extended=False)
    side.fill()

    def fail(*_arguments: object) -> bool:
        raise OSError(5, "lost")

    monkeypatch.setattr(CacheFile, "try_read", fail)
    stream = wire.request(0, 1, 0, 2 * BLOCK_SIZE)
    replies, _ = side.serve(stream)
    assert b"".join(replies)[28:] == CONTENT[: 2 * BLOCK_SIZE]
    assert side.device.blocks.off
    side.close()


# -- in a server, with threads -------------------------------------------------------------------


class _Spawning:
    """Runs background work in a nursery."""

    def __init__(self, nursery: trio.Nursery, runner: StepRunner) -> None:
        self._nursery, self._runner = nursery, runner

    def spawn(self, steps: Steps[None]) -> None:
        self._nursery.start_soon(self._runner.run, steps)


@contextmanager
def lane(compiled: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(fastlane, "compiled", None)
        yield


@pytest.mark.parametrize("compiled", [True, False])
@in_trio
async def test_no_reader_ever_sees_a_punched_block(tmp_path: Path, compiled: bool) -> None:
    """Clients read what is evicted all the time, with punches in threads, and pages that are not
    in memory, so that the file is read in threads, too. No block of the device is zeros."""
    below = CountingDevice(SIZE_BYTES)
    below.hold(CONTENT)
    below.blocking = True
    runner = StepRunner()
    with lane(compiled):
        async with trio.open_nursery() as nursery:
            spawn = _Spawning(nursery, runner).spawn
            directory = CacheDirectory.open(tmp_path / "cache", 16 * MIB, spawn)
            device = await runner.run(directory.open_volume(below, "one", 1))
            assert device is not None
            exports = FixedExports({"disk": device})
            reading = True
            evictions = 0
            async with serving(exports, tmp_path / "nbd.sock"):

                async def evict() -> None:
                    nonlocal evictions
                    chance = random.Random(1)
                    while reading:
                        leaves = chance.sample(range(SIZE_BYTES // LEAF_BYTES), 2)
                        fd = device.blocks.file.first_descriptor
                        if chance.random() < 0.5:
                            os.fdatasync(fd)
                            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                        await runner.run(device.blocks.evict(leaves))
                        evictions += 1
                        await trio.lowlevel.checkpoint()

                async def read(seed: int) -> None:
                    client = await Client.go(tmp_path / "nbd.sock", "disk")
                    chance = random.Random(seed)
                    for cookie in range(150):
                        asked = {}
                        for number in range(16):
                            length = chance.choice((1, 1, 1, 4, 40)) * BLOCK_SIZE
                            offset = chance.randrange((SIZE_BYTES - length) // BLOCK_SIZE)
                            asked[cookie * 16 + number] = offset * BLOCK_SIZE, length
                        await client.send(
                            b"".join(wire.request(0, one, *what) for one, what in asked.items())
                        )
                        for _ in asked:
                            _, error, one = struct.unpack(">IIQ", await client.read(16))
                            assert not error
                            offset, length = asked[one]
                            assert await client.read(length) == CONTENT[offset : offset + length]
                    await client.stream.aclose()

                nursery.start_soon(evict)
                async with trio.open_nursery() as readers:
                    for seed in range(3):
                        readers.start_soon(read, seed)
                reading = False
            assert evictions > 20
        await runner.run(directory.close_device(device))
        directory.release()


@pytest.mark.parametrize("compiled", [True, False])
@in_trio
async def test_writes_and_reads_of_a_client_agree(tmp_path: Path, compiled: bool) -> None:
    """Of one that waits for each answer, of blocks in the same leaf, while leaves are evicted."""
    below = CountingDevice(SIZE_BYTES)
    below.blocking = True
    runner = StepRunner()
    content = bytearray(SIZE_BYTES)
    chance = random.Random(4)
    with lane(compiled):
        async with trio.open_nursery() as nursery:
            spawn = _Spawning(nursery, runner).spawn
            directory = CacheDirectory.open(tmp_path / "cache", 16 * MIB, spawn)
            device = await runner.run(directory.open_volume(below, "one", 1))
            assert device is not None
            async with serving(FixedExports({"disk": device}), tmp_path / "nbd.sock"):
                client = await Client.go(tmp_path / "nbd.sock", "disk")
                for cookie in range(400):
                    offset = 512 * chance.randrange(64)
                    length = 512 * chance.randint(1, 24)
                    kind = chance.choice((0, 0, 0, 1, 1, 4, 6))
                    if kind == 1:
                        data = chance.randbytes(length)
                        content[offset : offset + length] = data
                        await client.send(wire.write(cookie, offset, data))
                    else:
                        await client.send(wire.request(kind, cookie, offset, length))
                    if kind == 6:
                        content[offset : offset + length] = bytes(length)
                    if kind == 4:
                        first, end = -(-offset // BLOCK_SIZE), (offset + length) // BLOCK_SIZE
                        for block in range(first, end):
                            at = block * BLOCK_SIZE
                            content[at : at + BLOCK_SIZE] = bytes(BLOCK_SIZE)
                    assert struct.unpack(">IIQ", await client.read(16))[1:] == (0, cookie)
                    if kind == 0:
                        assert await client.read(length) == content[offset : offset + length]
                    if chance.random() < 0.05:
                        await runner.run(device.blocks.evict([0]))
                await client.stream.aclose()
        await runner.run(directory.close_device(device))
        directory.release()


def test_a_device_behind_a_cache_has_a_lane(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    device = opened.volume(CountingDevice(MIB), 1)
    assert isinstance(device, CachedDevice)
    limits = RequestLimits(read_only=False, extended=False, chunked=False, allocation=False)
    encoder = encoder_for(structured=False, extended=False)
    assert fastlane.lane_for(device, encoder, limits) is not None
    assert not isinstance(device, SharedDevice), "the one below cannot be taken"
    assert not is_hit(device)
    opened.release(device)
