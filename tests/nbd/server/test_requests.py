"""Requests against a live server: each command, in each reply style, fast and slow."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import pytest
import trio

from bockd.drivers.memory.device import MemoryDevice
from bockd.errors import NoSpaceError, VolumeFailedError
from bockd.runtime.steps import Signal
from tests.nbd.protocol import wire
from tests.nbd.server.client import Client, Closed
from tests.nbd.server.serving import FixedExports, in_trio, serving

KIB, MIB = 1 << 10, 1 << 20
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST = 1, 2, 4, 8, 16
EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP = 5, 22, 28, 75, 95
STRUCTURED = wire.option(8)
EXTENDED = wire.option(11)
CONTEXT = wire.option(10, wire.meta_data("disk", "base:allocation"))


def pattern(length: int, seed: int = 0) -> bytes:
    return bytes((i * 7 + seed) % 256 for i in range(251)) * (length // 251 + 1)


def some(length: int, seed: int = 0) -> bytes:
    return pattern(length, seed)[:length]


@pytest.mark.parametrize("way", ["at once", "slow", "blocking"])
@pytest.mark.parametrize("length", [1, 512, 4096, 65536, 65537, 300 * KIB, 3 * MIB + 5])
@pytest.mark.parametrize("offset", [0, 3, 4096, MIB - 1])
@in_trio
async def test_what_is_written_is_read(
    path: Path, exports: FixedExports, device: MemoryDevice, offset: int, length: int, way: str
) -> None:
    device.immediate = way == "at once"
    device.blocking = way == "blocking"
    async with serving(exports, path), await Client.go(path) as client:
        data = some(length, offset % 251)
        assert await client.write(offset, data) == 0
        assert await client.read_data(offset, length) == data
        assert await client.command(FLUSH) == 0


@in_trio
async def test_requests_sent_with_the_last_option_are_served(
    path: Path, exports: FixedExports
) -> None:
    behind = wire.write(5, 0, some(100)) + wire.request(FLUSH, 6)
    async with serving(exports, path), await Client.go(path, "disk", behind=behind) as client:
        assert sorted([await client.simple(), await client.simple()]) == [(5, 0), (6, 0)]


@in_trio
async def test_many_requests_in_one_buffer_are_answered_by_one_commit(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    writes = b"".join(wire.write(n, n * 4096, some(4096, n)) for n in range(20))
    async with serving(exports, path), await Client.go(path) as client:
        await client.send(writes)
        assert sorted([await client.simple() for _ in range(20)]) == [(n, 0) for n in range(20)]
        assert device.calls.count("commit") < 20
        for n in range(20):
            assert await client.read_data(n * 4096, 4096) == some(4096, n)


@in_trio
async def test_trims_and_writes_of_one_buffer_have_one_commit(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    """A write of zeroes is a trim, if it covers whole blocks and may leave holes."""
    async with serving(exports, path), await Client.go(path) as client:
        await client.send(
            wire.write(1, 0, some(512))
            + wire.request(TRIM, 2, 0, 8192)
            + wire.request(ZEROES, 3, 8192, 4096)
            + wire.request(FLUSH, 4)
            + wire.request(TRIM, 5, 4096, 4096, FUA)
        )
        assert sorted([await client.simple() for _ in range(5)]) == [(n, 0) for n in range(1, 6)]
        assert device.calls == ["write", "trim", "trim", "trim", "commit", "flush"]
        for offset, length, flags in ((512, 8192, 0), (0, 8000, 0), (0, 8192, NO_HOLE)):
            device.calls.clear()
            assert await client.command(ZEROES, offset, length, flags=flags) == 0
            assert device.calls == ["zero"]


@in_trio
async def test_a_failed_commit_acknowledges_no_trim_of_its_batch(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    device.failures["commit"] = OSError(5, "bad sector")
    async with serving(exports, path), await Client.go(path) as client:
        await client.send(
            wire.request(TRIM, 1, 0, 4096)
            + wire.request(ZEROES, 2, 4096, 4096, FUA)
            + wire.request(READ, 3)
        )
        assert sorted([await client.simple() for _ in range(3)]) == [(1, EIO), (2, EIO), (3, 0)]


@in_trio
async def test_a_failed_commit_acknowledges_no_write_of_its_batch(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    async with serving(exports, path), await Client.go(path) as client:
        device.failures["commit"] = VolumeFailedError("the journal is gone")
        await client.send(
            wire.write(1, 0, some(512)) + wire.write(2, 512, some(512), FUA) + wire.request(READ, 3)
        )
        assert sorted([await client.simple() for _ in range(3)]) == [(1, EIO), (2, EIO), (3, 0)]


@in_trio
async def test_a_device_error_is_the_answer_and_the_connection_goes_on(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    async with serving(exports, path), await Client.go(path) as client:
        for immediate in (True, False):
            device.immediate = immediate
            device.failures = {"write": NoSpaceError("full"), "read": OSError(5, "bad sector")}
            assert await client.write(0, some(512)) == ENOSPC
            assert await client.write(0, some(2 * MIB)) == ENOSPC
            assert await client.command(READ, 0, 512) == EIO
            assert await client.command(READ, 0, 2 * MIB) == EIO
            device.failures = {}
            assert await client.write(0, some(512)) == 0


@in_trio
async def test_an_error_of_ours_is_an_input_output_error(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    device.failures["trim"] = ZeroDivisionError()
    async with serving(exports, path), await Client.go(path) as client:
        assert await client.command(TRIM, 0, 4096) == EIO
        assert await client.command(FLUSH) == 0


@in_trio
async def test_fua_is_a_flush_of_its_own(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    async with serving(exports, path), await Client.go(path) as client:
        assert await client.write(0, some(512), flags=FUA) == 0
        assert device.calls == ["write", "commit", "flush"]
        for command in (TRIM, ZEROES):
            device.calls.clear()
            assert await client.command(command, 0, 4096, flags=FUA) == 0
            assert device.calls[-1] == "flush"
        device.calls.clear()
        assert await client.write(0, some(2 * MIB), flags=FUA) == 0
        assert device.calls[-1] == "flush"
        device.immediate = False
        device.calls.clear()
        assert await client.write(0, some(512), flags=FUA) == 0
        assert device.calls == ["write", "flush"]


@in_trio
async def test_a_flush_follows_the_commit_of_writes_before_it(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    async with serving(exports, path), await Client.go(path) as client:
        await client.send(wire.write(1, 0, some(512)) + wire.request(FLUSH, 2))
        assert sorted([await client.simple(), await client.simple()]) == [(1, 0), (2, 0)]
        assert device.calls == ["write", "commit", "flush"]


@in_trio
async def test_slow_requests_do_not_hold_up_others(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    gate = device.gate = Signal()
    async with serving(exports, path), await Client.go(path) as client:
        await client.send(wire.request(FLUSH, 1) + wire.request(TRIM, 2, 0, 4096))
        assert await client.write(0, some(512), cookie=3) == 0
        assert await client.command(READ, 0, 0, cookie=4) == 0
        gate.fire()
        assert sorted([await client.simple(), await client.simple()]) == [(1, 0), (2, 0)]


@in_trio
async def test_disconnect_finishes_what_is_in_flight(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    gate = device.gate = Signal()
    async with serving(exports, path), await Client.go(path) as client:
        await client.send(wire.request(TRIM, 1, 0, 4096) + wire.request(DISC, 2) + bytes(99))
        async with trio.open_nursery() as nursery:

            async def answers() -> None:
                assert await client.simple() == (1, 0)
                assert await client.closes() == b""

            nursery.start_soon(answers)
            await trio.testing.wait_all_tasks_blocked()
            gate.fire()
        await trio.testing.wait_all_tasks_blocked()
        assert exports.open_holds == 0


@in_trio
async def test_zeroes_and_trim(path: Path, exports: FixedExports) -> None:
    async with serving(exports, path), await Client.go(path) as client:
        for command, flags in [(ZEROES, 0), (ZEROES, NO_HOLE), (ZEROES, FAST), (TRIM, 0)]:
            assert await client.write(0, some(16 * KIB)) == 0
            assert await client.command(command, 4096, 8192, flags=flags) == 0
            expected = some(16 * KIB)[:4096] + bytes(8192) + some(16 * KIB)[12288:]
            assert await client.read_data(0, 16 * KIB) == expected
        assert await client.command(ZEROES, 0, 4096, flags=FAST | NO_HOLE) == ENOTSUP
        assert await client.command(CACHE, 0, 200 * MIB) == 0


@in_trio
async def test_structured_reads(path: Path, exports: FixedExports, device: MemoryDevice) -> None:
    data = some(3 * MIB)
    async with serving(exports, path), await Client.go(path, "disk", STRUCTURED) as client:
        assert await client.write(5, data) == 0
        await client.send(wire.request(READ, 1, 5, 1000))
        chunk = await client.chunk()
        assert (chunk.flags, chunk.kind) == (1, 1)
        assert chunk.payload == struct.pack(">Q", 5) + data[:1000]

        await client.send(wire.request(READ, 2, 5, len(data)))
        found = bytearray(len(data))
        done = 0
        while not done:
            chunk = await client.chunk()
            assert (chunk.cookie, chunk.kind) == (2, 1)
            (at,) = struct.unpack_from(">Q", chunk.payload)
            found[at - 5 : at - 5 + len(chunk.payload) - 8] = chunk.payload[8:]
            done = chunk.flags & 1
        assert found == data

        await client.send(wire.request(READ, 3, 5, 65536, DF))
        assert (await client.chunk()).payload[8:] == data[:65536]
        await client.send(wire.request(READ, 4, 5, len(data), DF))
        assert (await client.chunk()).error == EOVERFLOW
        await client.send(wire.request(READ, 5, 0, 0))
        assert (await client.chunk()).kind == 0
        await client.send(wire.request(READ, 6, 200 * MIB, 1))
        assert (await client.chunk()).error == EINVAL


@pytest.mark.parametrize("immediate", [True, False])
@in_trio
async def test_block_status(
    path: Path, exports: FixedExports, device: MemoryDevice, immediate: bool
) -> None:
    device.immediate = immediate
    async with (
        serving(exports, path),
        await Client.go(path, "disk", STRUCTURED, CONTEXT) as client,
    ):
        assert await client.write(8192, some(4096)) == 0
        await client.send(wire.request(STATUS, 1, 4096, MIB))
        chunk = await client.chunk()
        assert chunk.kind == 5
        fields = struct.unpack(">7I", chunk.payload)
        assert fields == (1, 4096, 3, 4096, 0, MIB - 8192, 3)
        await client.send(wire.request(STATUS, 2, 4096, MIB, REQ_ONE))
        assert struct.unpack(">3I", (await client.chunk()).payload) == (1, 4096, 3)
        device.failures["extents"] = OSError(5, "bad sector")
        await client.send(wire.request(STATUS, 3, 4096, MIB, REQ_ONE))
        assert (await client.chunk()).error == EIO


@in_trio
async def test_a_block_status_that_need_not_wait_is_answered_in_its_batch(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    """While whatever has to wait waits."""
    async with (
        serving(exports, path),
        await Client.go(path, "disk", STRUCTURED, CONTEXT) as client,
    ):
        assert await client.write(0, some(4096)) == 0
        device.gate = Signal()
        await client.send(wire.request(STATUS, 2, 0, MIB))
        assert struct.unpack(">5I", (await client.chunk()).payload) == (1, 4096, 0, MIB - 4096, 3)


@in_trio
async def test_extended_headers(path: Path, exports: FixedExports) -> None:
    async with (
        serving(exports, path),
        await Client.go(path, "disk", EXTENDED, CONTEXT) as client,
    ):
        await client.send(wire.extended_write(1, 8192, some(4096)))
        assert (await client.extended_chunk(8192)).kind == 0
        await client.send(wire.extended(READ, 2, 8192, 4096))
        chunk = await client.extended_chunk(8192)
        assert chunk.payload == struct.pack(">Q", 8192) + some(4096)
        await client.send(wire.extended(STATUS, 3, 0, 200 * MIB))
        chunk = await client.extended_chunk(0)
        assert chunk.kind == 6
        fields = struct.unpack(">II6Q", chunk.payload)
        assert fields == (1, 3, 8192, 3, 4096, 0, 200 * MIB - 12288, 3)
        await client.send(wire.extended(ZEROES, 4, 0, 1 << 33))
        assert (await client.extended_chunk(0)).error == ENOSPC
        # a payload where none belongs is consumed
        await client.send(wire.extended(TRIM, 5, 0, 100, 32) + bytes(100))
        assert (await client.extended_chunk(0)).error == EINVAL
        await client.send(wire.extended(FLUSH, 6))
        assert (await client.extended_chunk(0)).cookie == 6


@pytest.mark.parametrize("length", [0, 512, 65536, 65537, 3 * MIB])
@pytest.mark.parametrize("way", ["at once", "slow"])
@in_trio
async def test_an_extended_write_need_not_say_that_it_has_a_payload(
    path: Path,
    exports: FixedExports,
    device: MemoryDevice,
    caplog: pytest.LogCaptureFixture,
    length: int,
    way: str,
) -> None:
    caplog.set_level(logging.DEBUG, "bockd.nbd.server")
    device.immediate = way == "at once"
    async with serving(exports, path):
        async with await Client.go(path, "disk", EXTENDED) as client:
            await client.send(wire.unflagged_write(1, 8192, some(length)))
            assert (await client.extended_chunk(8192)).kind == 0
            assert "flush" not in device.calls
            await client.send(wire.unflagged_write(2, 8192, some(length), FUA))
            assert (await client.extended_chunk(8192)).kind == 0
            assert device.calls.count("flush") == (1 if length else 0)
            await client.send(wire.extended(READ, 3, 8192, 512))
            assert (await client.extended_chunk(8192)).payload[8:] == (
                some(length)[:512].ljust(512, b"\0")
            )
            await client.send(wire.extended(DISC, 4))
            await client.closes()
        assert caplog.text.count("without PAYLOAD_LEN") == 1


@in_trio
async def test_an_error_behind_a_streamed_header_closes(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    async with serving(exports, path), await Client.go(path) as client:
        reads = 0

        def fail_late(offset: int, into: memoryview) -> bool:
            nonlocal reads
            reads += 1
            if reads > 1:
                raise OSError(5, "bad sector")
            return True

        device.try_read = fail_late  # type: ignore[method-assign]
        await client.send(wire.request(READ, 1, 0, 3 * MIB))
        assert await client.simple() == (1, 0)
        with pytest.raises(Closed):
            await client.read(3 * MIB)


@in_trio
async def test_an_error_among_structured_chunks_is_a_chunk(
    path: Path, exports: FixedExports, device: MemoryDevice
) -> None:
    async with serving(exports, path), await Client.go(path, "disk", STRUCTURED) as client:
        reads = 0

        def fail_late(offset: int, into: memoryview) -> bool:
            nonlocal reads
            reads += 1
            if reads > 1:
                raise OSError(5, "bad sector")
            return True

        device.try_read = fail_late  # type: ignore[method-assign]
        await client.send(wire.request(READ, 1, 0, 3 * MIB))
        assert (await client.chunk()).kind == 1
        last = await client.chunk()
        assert (last.error, last.flags) == (EIO, 1)
        assert await client.write(0, some(10)) == 0


@in_trio
async def test_a_read_only_export(path: Path, exports: FixedExports) -> None:
    async with serving(exports, path), await Client.go(path, "snapshot/monday") as client:
        assert await client.write(0, some(512)) == 1
        assert await client.write(0, some(512), flags=FUA) == 1
        assert await client.write(0, some(MIB)) == 1
        assert await client.command(TRIM, 0, 4096) == 1
        assert await client.command(ZEROES, 0, 4096) == 1
        assert await client.command(FLUSH) == 0
        assert await client.read_data(0, 512) == bytes(512)
