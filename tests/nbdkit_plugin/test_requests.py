"""Every kind of request through nbdkit, and the clients that people use."""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path
from typing import Any

import nbd
import pytest

from ..daemon.filesystems import mounted
from ..daemon.process import Bockd
from ..interop.images import same_bytes, write_sparse_image
from .conftest import MIB, PoolDirectory, serving
from .nbdkit import Nbdkit, served

BLOCK = 4096
PIECE = 256 * 1024


def extents(client: Any, offset: int, length: int) -> list[tuple[int, int]]:
    """(length, flags) from `offset` on."""
    found: list[tuple[int, int]] = []

    def take(_context: str, _offset: int, entries: list[int], _error: object) -> None:
        found.extend(zip(entries[::2], entries[1::2], strict=True))

    client.block_status(length, offset, take)
    return found


def test_writes_holes_and_zeros(pool: PoolDirectory) -> None:
    pool.create("disk1")
    hole = nbd.STATE_HOLE | nbd.STATE_ZERO
    with serving(pool, "volume=disk1") as client:
        assert extents(client, 0, 8 * MIB) == [(8 * MIB, hole)]
        client.pwrite(b"a" * MIB, MIB)
        client.pwrite(b"b" * 700, MIB - 350, nbd.CMD_FLAG_FUA)  # across the edge of a block
        assert client.pread(700, MIB - 350) == b"b" * 700
        assert client.pread(MIB - 350, MIB + 350) == b"a" * (MIB - 350)
        assert extents(client, 0, 8 * MIB) == [
            (MIB - BLOCK, hole),
            (MIB + BLOCK, 0),
            (6 * MIB, hole),
        ]
        client.trim(MIB // 2, MIB + BLOCK)
        assert client.pread(MIB // 2, MIB + BLOCK) == bytes(MIB // 2)
        client.zero(BLOCK, MIB, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
        client.zero(MIB // 4, MIB + MIB // 2 + BLOCK, nbd.CMD_FLAG_FAST_ZERO)
        assert client.pread(BLOCK, MIB) == bytes(BLOCK)
        assert extents(client, MIB, 2 * BLOCK) == [(BLOCK, 0), (BLOCK, hole)]
        client.set_strict_mode(0)
        with pytest.raises(nbd.Error) as refused:
            client.zero(BLOCK, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
        assert refused.value.errnum == errno.ENOTSUP
        client.cache(MIB, 0)
        client.flush()
        with pytest.raises(nbd.Error):  # beyond the end
            client.pread(BLOCK, 8 * MIB - 512)
    assert pool.daemon.check()["stray_blocks"] == 0


def test_large_requests(pool: PoolDirectory) -> None:
    """As large as nbdkit lets through, at an odd offset."""
    pool.create("disk1", 80 * MIB)
    data = random.Random(5).randbytes(32 * MIB)
    with serving(pool, "volume=disk1") as client:
        client.pwrite(data, 12345)
        assert client.pread(32 * MIB, 12345) == data
        client.zero(64 * MIB, 0)
        assert client.pread(32 * MIB, 12345) == bytes(32 * MIB)


def test_more_changes_than_a_journal_holds(pool: PoolDirectory) -> None:
    """Checkpoints run in the background while clients write; after SIGKILL all is there."""
    pool.create("disk1", 512 * MIB)
    count = 100_000  # of 131,072 blocks; a journal segment has 65,408 places
    choose = random.Random(9)
    blocks = choose.sample(range(512 * MIB // BLOCK), count)
    with Nbdkit(pool.path.parent, pool.parameter, "volume=disk1") as nbdkit:
        client = nbdkit.connect()
        buffers = {}
        for number, block in enumerate(blocks):
            buffers[number % 64] = nbd.Buffer.from_bytearray(bytearray(b"%08d" % block * 512))
            while client.aio_in_flight() >= 64:
                client.poll(-1)
            client.aio_pwrite(buffers[number % 64], block * BLOCK, completion=lambda _: 1)
        while client.aio_in_flight():
            client.poll(-1)
        nbdkit.kill()
    with serving(pool, "volume=disk1") as client:
        for block in choose.sample(blocks, 5_000):
            assert client.pread(BLOCK, block * BLOCK) == b"%08d" % block * 512
    assert pool.daemon.check()["stray_blocks"] == 0


def test_nbdcopy_and_qemu(pool: PoolDirectory, tmp_path: Path) -> None:
    """An image in and out again keeps its bytes and its holes; the walk of the documentation."""
    image, out = tmp_path / "image", tmp_path / "out"
    size = 48 * MIB
    written = write_sparse_image(image, size, seed=31)
    pool.create("disk1", size)
    served(f'nbdcopy --flush {image} "$uri"', pool.parameter, "volume=disk1")
    assert list(pool.daemon.layer_files().values()) == [written]
    served(f'nbdcopy "$uri" {out}', pool.parameter, "volume=disk1")
    assert same_bytes(image, out)
    snapshot = pool.snapshot("disk1", "before")
    commands = "-c 'write -P 7 1M 3M' -c 'write -z 9M 64k' -c 'discard 12M 1M' -c flush"
    reading = "-c 'read -P 7 1M 3M' -c 'read -P 0 9M 64k' -c 'read -P 0 12M 1M'"
    said = served(f'qemu-io -f raw {commands} {reading} "$uri"', pool.parameter, "volume=disk1")
    assert "verification failed" not in said
    said = served(f'qemu-img compare -f raw -F raw {image} "$uri"', pool.parameter, snapshot)
    assert "Images are identical." in said


@pytest.mark.parametrize("sizes", ["--bs=4k", "--bsrange=512-13824 --blockalign=512"])
def test_fio_verifies(pool: PoolDirectory, sizes: str) -> None:
    """Four connections at once, each at queue depth 16."""
    pool.create("disk1", 32 * MIB)
    options = (
        "--ioengine=nbd --rw=randwrite --iodepth=16 --verify=crc32c --verify_fatal=1 --thread "
        f"--numjobs=4 --size=6M --offset_increment=8M --verify_state_save=0 {sizes}"
    )
    for _ in range(2):
        said = served(
            f'fio --name=job {options} --uri="$uri" --aux-path={pool.path.parent}',
            pool.parameter,
            "volume=disk1",
        )
        assert said.count("err= 0") == 4, said
        if len(pool.daemon.layer_files()) == 1:
            pool.snapshot("disk1", "between")


def test_a_client_that_falls_silent_stops_nobody(pool: PoolDirectory) -> None:
    pool.create("disk1")
    with (
        Nbdkit(pool.path.parent, pool.parameter, "volume=disk1") as nbdkit,
        socket.socket(socket.AF_UNIX) as silent,
    ):
        silent.connect(str(nbdkit.socket))
        assert silent.recv(18, socket.MSG_WAITALL).startswith(b"NBDMAGIC")
        with nbdkit.connected() as client:
            client.pwrite(b"x" * 512, 0)


def fill(client: Any) -> int:
    """Write pieces until there is no room; their number."""
    for number in range(128 * MIB // PIECE):
        try:
            client.pwrite(b"%08d" % number * (PIECE // 8), number * PIECE)
        except nbd.Error as error:
            if error.errnum != errno.ENOSPC:
                raise
            return number
    raise AssertionError("the disk did not get full")


def test_a_full_disk(tmp_path: Path) -> None:
    """Promise D5: ENOSPC, nothing acknowledged is lost, and trimming makes room."""
    with mounted("ext4", tmp_path, 48 * MIB) as root:
        daemon = Bockd(root / "pool", tmp_path / "bockd.log")
        daemon.start()
        daemon.bock("volume", "create", "disk1", "--size", "128M")
        daemon.stop()
        pool = PoolDirectory(root / "pool", daemon)
        # The socket and the log must not need room there.
        with Nbdkit(tmp_path, pool.parameter) as nbdkit:
            with nbdkit.connected("disk1") as client:
                number = fill(client)
                assert number > 50
                for n in range(number):
                    assert client.pread(PIECE, n * PIECE) == b"%08d" % n * (PIECE // 8)
                client.trim(20 * PIECE, 0)
                client.flush()
            # The space is back when the volume has been closed, which is after its last client.
            with nbdkit.connected("disk1") as client:
                for n in range(number, number + 15):
                    client.pwrite(b"%08d" % n * (PIECE // 8), n * PIECE)
                assert client.pread(PIECE, 20 * PIECE) == b"%08d" % 20 * (PIECE // 8)
        daemon.check()
