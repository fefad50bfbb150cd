"""The view of a running daemon: the same volumes as over NBD, at every moment."""

from __future__ import annotations

import errno
import mmap
import os
import random
import subprocess
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from bockd.drivers.local.format.catalogue import MAPS
from bockd.index.ballast import Ballast
from bockd.index.index import LmdbIndex
from bockd.index.keys import id_key
from tests.daemon.process import Bockd

from .descriptor import opened

MIB = 1 << 20
BLOCK = 4096


def test_both_views_agree_at_once(daemon: Bockd, mount: Path) -> None:
    """Two writers, one through each view, four rounds over the same blocks: after each round
    either view shows what the other wrote, and a write is visible as soon as it is answered."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    daemon.bock("volume", "create", "v", "--size", "16M")
    blocks = 16 * MIB // BLOCK

    def through_file(file: int, mine: list[int], value: bytes) -> None:
        for block in mine:
            os.pwrite(file, value * BLOCK, block * BLOCK)
            assert client.pread(BLOCK, block * BLOCK) == value * BLOCK

    def through_nbd(file: int, mine: list[int], value: bytes) -> None:
        for block in mine:
            other.pwrite(value * BLOCK, block * BLOCK)
            assert os.pread(file, BLOCK, block * BLOCK) == value * BLOCK

    with (
        daemon.connected("v") as client,
        daemon.connected("v") as other,
        opened(mount / "volumes" / "v") as file,
        ThreadPoolExecutor(2) as threads,
    ):
        for turn in range(4):
            order = random.Random(seed + turn).sample(range(blocks), 800)
            values = bytes([1 + 2 * turn]), bytes([2 + 2 * turn])
            tasks = [
                threads.submit(through_file, file, order[:400], values[0]),
                threads.submit(through_nbd, file, order[400:], values[1]),
            ]
            for task in tasks:
                task.result(120)
            if turn == 1:  # from here on blocks are redirected
                daemon.bock("snapshot", "create", "v", "s")
        whole = os.pread(file, 16 * MIB, 0)
        assert whole == client.pread(16 * MIB, 0)
    daemon.check()


def test_an_answered_write_survives_sigkill(daemon: Bockd, mount: Path) -> None:
    """Promise D1 through a file, over a snapshot, so that the map changes as well."""
    daemon.bock("volume", "create", "v", "--size", "8M")
    daemon.bock("snapshot", "create", "v", "s")
    file = os.open(mount / "volumes" / "v", os.O_WRONLY)
    for block in range(0, 2048, 3):
        os.pwrite(file, block.to_bytes(4) * (BLOCK // 4), block * BLOCK)
    daemon.kill()
    with suppress(OSError):
        os.close(file)
    daemon.start()
    with opened(mount / "volumes" / "v") as file:
        for block in range(2048):
            expected = b"" if block % 3 else block.to_bytes(4) * (BLOCK // 4)
            assert os.pread(file, BLOCK, block * BLOCK) == expected.ljust(BLOCK, b"\0")
    daemon.check()


def test_names_sizes_and_times(daemon: Bockd, mount: Path) -> None:
    made = daemon.bock("volume", "create", "v", "--size", "8M")
    assert os.listdir(mount / "volumes") == ["v"]
    path = mount / "volumes" / "v"
    found = os.stat(path)
    assert os.stat(mount / "volumes" / str(made["id"])).st_ino == found.st_ino
    assert (found.st_size, found.st_blocks) == (8 * MIB, 0)
    assert found.st_mtime >= int(made["created_at"])
    with opened(path) as file:
        os.pwrite(file, os.urandom(MIB), 4 * MIB)
        written = os.fstat(file)
        assert written.st_blocks == MIB // 512
        assert found.st_mtime <= written.st_mtime <= time.time() + 1
        daemon.bock("volume", "extend", "v", "--size", "16M")
        assert os.fstat(file).st_size == 16 * MIB
        assert os.pread(file, 4096, 12 * MIB) == bytes(4096)
        assert os.pwrite(file, b"new", 15 * MIB) == 3
    snapshot = daemon.bock("snapshot", "create", "v", "s")
    assert os.listdir(mount / "snapshots") == ["s"]
    assert os.stat(mount / "snapshots" / "s").st_mtime == pytest.approx(snapshot["created_at"])
    assert os.stat(mount / "snapshots" / str(snapshot["id"])).st_size == 16 * MIB
    clone = daemon.bock("volume", "create", "c", "--from-snapshot", "s")
    assert sorted(os.listdir(mount / "volumes")) == ["c", "v"]
    # A clone that has written nothing shows data, and says so: `tar --sparse` believes it.
    assert os.stat(mount / "volumes" / str(clone["id"])).st_blocks > 0
    daemon.tool(
        "tar", "--create", "--sparse", "--file", mount.with_name("t"), "-C", path.parent, "c"
    )
    with tarfile.open(mount.with_name("t")) as archive:
        saved = archive.extractfile("c")
        assert saved is not None
        assert saved.read() == path.read_bytes()


def test_every_change_leaves_its_time(daemon: Bockd, mount: Path) -> None:
    """Also one that only makes holes where a snapshot's blocks were: nothing is written then."""
    daemon.bock("volume", "create", "v", "--size", "8M")
    with opened(mount / "volumes" / "v") as file, daemon.connected("v") as client:
        os.pwrite(file, b"x" * 4 * MIB, 0)
        daemon.bock("snapshot", "create", "v", "s")
        frozen = os.stat(mount / "snapshots" / "s").st_mtime_ns
        changes: list[Callable[[], object]] = [
            lambda: client.trim(MIB, 0),
            lambda: client.zero(MIB, MIB),
            lambda: os.pwritev(file, [mmap.mmap(-1, MIB)], 2 * MIB),  # zeros, aligned: one request
            lambda: client.pwrite(b"y", 3 * MIB),
            lambda: client.trim(BLOCK, 3 * MIB),
        ]
        before = os.fstat(file).st_mtime_ns
        for number, change in enumerate(changes):
            while time.time_ns() < before + 50_000_000:  # the clock of inodes is coarse
                pass
            change()
            after = os.fstat(file).st_mtime_ns
            assert after > before, number
            before = after
        assert os.pread(file, 3 * MIB, 0) == bytes(3 * MIB)
        assert os.stat(mount / "snapshots" / "s").st_mtime_ns == frozen


def test_both_views_agree_about_holes_and_snapshots(daemon: Bockd, mount: Path) -> None:
    """Trims, zeros, an extension and a revert are seen through the other view at once."""
    daemon.bock("volume", "create", "v", "--size", "8M")
    path = mount / "volumes" / "v"
    with opened(path) as file, daemon.connected("v") as client:
        os.pwrite(file, b"x" * 2 * MIB, 0)
        daemon.bock("snapshot", "create", "v", "s")
        client.trim(MIB // 2, 0)
        assert os.pread(file, MIB, 0) == bytes(MIB // 2) + b"x" * (MIB // 2)
        client.zero(MIB // 4, MIB // 2)
        assert os.pread(file, MIB // 4, MIB // 2) == bytes(MIB // 4)
        os.pwritev(file, [mmap.mmap(-1, MIB)], MIB)
        assert client.pread(MIB, MIB) == bytes(MIB)
        daemon.bock("volume", "extend", "v", "--size", "16M")
        os.pwrite(file, b"z", 16 * MIB - 1)
        with daemon.connected("v") as later:
            assert later.pread(2, 16 * MIB - 2) == b"\0z"
        with opened(mount / "snapshots" / "s", os.O_RDONLY) as frozen:
            with daemon.connected("snapshot/s") as other:
                assert os.pread(frozen, 2 * MIB, 0) == other.pread(2 * MIB, 0) == b"x" * 2 * MIB
            assert os.fstat(frozen).st_size == 8 * MIB
    daemon.wait_until_unused("v")
    daemon.bock("snapshot", "revert", "s", "--yes")
    with opened(path) as file, daemon.connected("v") as client:
        for read in (os.pread(file, 2 * MIB, 0), client.pread(2 * MIB, 0)):
            assert read == b"x" * 2 * MIB
        assert os.pread(file, 1, 16 * MIB - 1) == b"\0"
    daemon.check()


def test_one_damaged_volume_hides_no_other(daemon: Bockd, mount: Path) -> None:
    """It is listed, and refused when it is opened."""
    for name in ("bad", "good"):
        daemon.bock("volume", "create", name, "--size", "1M")
    daemon.stop()
    index = LmdbIndex.open(daemon.data_dir / "index", Ballast(daemon.data_dir / "ballast").release)
    index.update(lambda txn: txn.delete(MAPS, id_key(1)))
    index.close()
    daemon.expect_in_log("map 1 is missing")
    daemon.start()
    assert sorted(os.listdir(mount / "volumes")) == ["bad", "good"]
    assert os.stat(mount / "volumes" / "bad").st_size == MIB
    with opened(mount / "volumes" / "good") as file:
        assert os.pread(file, 4, 0) == bytes(4)
    with pytest.raises(OSError, match="Input/output error"):
        os.open(mount / "volumes" / "bad", os.O_RDONLY)


def test_an_open_file_counts_as_a_connection(daemon: Bockd, mount: Path) -> None:
    """Refused like under a connected client; allowed when the file is closed."""
    daemon.bock("volume", "create", "v", "--size", "1M")
    daemon.bock("snapshot", "create", "v", "s")
    with opened(mount / "volumes" / "v", os.O_RDONLY):
        with daemon.control() as control:
            assert (control.show_volume("v").status, control.show_volume("v").connections) == (
                "available",
                1,
            )
        assert "1 connection(s)" in daemon.refusal("volume", "delete", "v", "--yes")
        assert "connection" in daemon.refusal("snapshot", "revert", "s", "--yes")
    with opened(mount / "snapshots" / "s", os.O_RDONLY):
        assert "disconnect" in daemon.refusal("snapshot", "delete", "s", "--yes")
    daemon.wait_until_unused("v")
    daemon.bock("volume", "delete", "v", "--yes")
    assert os.listdir(mount / "volumes") == []
    with pytest.raises(FileNotFoundError):
        os.stat(mount / "volumes" / "v")


def test_requests_are_counted_with_those_of_nbd(daemon: Bockd, mount: Path) -> None:
    daemon.bock("volume", "create", "v", "--size", "1M")
    with opened(mount / "volumes" / "v") as file, daemon.connected("v") as client:
        os.pwrite(file, b"x" * 512, 0)
        client.pwrite(b"y" * 512, 512)
        os.pread(file, 100, 0)
        os.fsync(file)
        with daemon.control() as control:
            (counted,) = control.statistics()
    assert (counted.connections, counted.name) == (2, "v")
    assert (counted.writes, counted.written_bytes) == (2, 1024)
    assert (counted.reads, counted.read_bytes, counted.flushes) == (1, 100, 1)
    assert counted.latency_p99_us > 0


def test_a_full_disk_image_is_copied_thin(daemon: Bockd, mount: Path) -> None:
    """cp into a volume's file keeps empty areas empty, and zeros give space back."""
    image = mount.with_name("image")
    data = os.urandom(MIB)
    image.write_bytes(bytes(8 * MIB) + data + bytes(7 * MIB))
    daemon.bock("volume", "create", "v", "--size", "16M")
    path = mount / "volumes" / "v"
    daemon.tool("dd", f"if={image}", f"of={path}", "bs=1M", "conv=notrunc,fsync")
    assert path.read_bytes() == image.read_bytes()
    assert os.stat(path).st_blocks == MIB // 512
    with daemon.connected("v") as client:
        extents: list[tuple[int, int]] = []

        def found(_: str, __: int, entries: list[int], ___: object) -> int:
            extents.extend(zip(entries[::2], entries[1::2], strict=True))
            return 0

        client.block_status(16 * MIB, 0, found)
    assert [length for length, flags in extents if not flags] == [MIB]


def test_what_the_kernel_does_not_pass_on(daemon: Bockd, mount: Path) -> None:
    """As docs/fuse.md says: should this fail, pyfuse3 or libfuse has learnt something."""
    daemon.bock("volume", "create", "v", "--size", "8M")
    path = mount / "volumes" / "v"
    with opened(path) as file:
        for mode in ("--punch-hole", "--zero-range", "--keep-size"):
            refused = daemon.run("fallocate", mode, "--offset", "0", "--length", "4096", path)
            assert refused.status == 1
            assert "supported" in refused.err
        assert os.lseek(file, 4096, os.SEEK_DATA) == 4096
        assert os.lseek(file, 4096, os.SEEK_HOLE) == 8 * MIB
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is what counts
            mmap.mmap(file, 4096)
        assert caught.value.errno == errno.ENODEV
        with mmap.mmap(file, 4096, flags=mmap.MAP_PRIVATE) as private:
            assert private[:4] == bytes(4)
        with daemon.control() as control:
            before = control.statistics()[0].flushes
            os.pwritev(file, [b"x"], 0, os.RWF_DSYNC)
            assert control.statistics()[0].flushes == before


def test_fio_verifies_what_it_wrote(daemon: Bockd, mount: Path) -> None:
    """Eight jobs at depth 8 with O_DIRECT, each in a part of its own, all sizes of blocks."""
    daemon.bock("volume", "create", "v", "--size", "64M")
    daemon.bock("snapshot", "create", "v", "s")
    result = subprocess.run(
        [
            "fio", "--name=verify", f"--filename={mount / 'volumes' / 'v'}", "--ioengine=libaio",
            "--direct=1", "--iodepth=8", "--numjobs=8", "--size=8M", "--offset_increment=8M",
            "--rw=randwrite", "--bsrange=512-1M", "--verify=crc32c", "--verify_fatal=1",
            "--verify_state_save=0", "--group_reporting",
        ],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    daemon.check()
