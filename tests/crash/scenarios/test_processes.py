"""The scenarios that need processes, sockets or a file system of the kernel's, by name."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nbd
import pytest

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.catalogue import LocalVolumeRecord
from bockd.drivers.local.format.journal import RECORD_BYTES
from bockd.drivers.local.format.journalreading import SegmentContents
from bockd.drivers.local.volume import recovery
from bockd.failpoints import Failpoint
from bockd.model import BLOCK_SIZE, NodeKind
from tests.crash.scenarios.serving import BLOCKS, SIZE, Serving, block_of
from tests.crash.storm.client import GONE
from tests.crash.storm.mutations import Replacements, break_for_good
from tests.daemon.process import program

RECOVERY = [point for point in Failpoint if point.startswith("recover.")]

Make = Callable[..., Serving]


@pytest.fixture
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes a pool's daemons, which are ended."""
    work = tmp_path_factory.mktemp("scenario")
    made: list[Serving] = []

    def make(pool: Path = work / "pool", prepare: Callable[[], None] | None = None) -> Serving:
        made.append(Serving(pool, work / "log", prepare))
        return made[-1]

    yield make
    for serving in made:
        serving.end()


# -- recovery killed half-way, and started again ---------------------------------------------------


def kill_recovery(serving: Serving, point: Failpoint) -> None:
    """Twice, if the second one comes to it; then what was acknowledged is there."""
    client = serving.prepared("v")
    writer = client.connect("v")
    for block in range(0, 64, 2):
        writer.pwrite(block_of(b"new"), block * BLOCK_SIZE)
    writer.trim(8 * BLOCK_SIZE, 100 * BLOCK_SIZE)
    serving.kill()
    (journal,) = serving.journals()
    with journal.open("r+b") as file:  # a record that the kill tore: some of it does not count
        file.seek(-RECORD_BYTES, os.SEEK_END)
        file.write(b"torn")
    assert serving.dies_at(point)
    serving.dies_at(point)
    content = serving.start().read("v")
    for block in range(BLOCKS):
        value = b"new" if block < 64 and block % 2 == 0 else b"old"
        expected = bytes(BLOCK_SIZE) if 100 <= block < 108 else block_of(value)
        assert content[block * BLOCK_SIZE :][:BLOCK_SIZE] == expected, f"block {block}"


@pytest.mark.parametrize("point", RECOVERY)
def test_recovery_killed_half_way_and_started_again(make: Make, point: Failpoint) -> None:
    kill_recovery(make(), point)


def journal_goes_before_it_is_in_the_index() -> Replacements:
    real = recovery._read_segments

    def read(store: StoreAccess, record: LocalVolumeRecord) -> list[SegmentContents]:
        segments = real(store, record)
        for segment in segments:
            os.unlink(store.layout.journal_segment(segment.name))
        return segments

    return [(recovery, "_read_segments", read)]


def test_recovery_killed_half_way_needs_the_journal(make: Make) -> None:
    """It fails when recovery removes the journal before the index has it."""
    broken = make(prepare=partial(break_for_good, journal_goes_before_it_is_in_the_index))
    with pytest.raises((AssertionError, *GONE)):
        kill_recovery(broken, Failpoint.RECOVER_PLANNED)


# -- a journal segment missing ---------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0, 1])
def test_a_journal_segment_missing(make: Make, missing: int) -> None:
    """Of a volume whose daemon died between a segment's seal and its commit, each of the two: the
    volume is refused, the file named; another volume is served; and with the file back all is
    there."""
    serving = make()
    serving.prepared("kept", "v")
    serving.kill()
    client = serving.start(Failpoint.CHECKPOINT_SEALED)
    writers = {name: client.connect(name) for name in ("kept", "v")}
    for name in ("v", "kept"):
        writers[name].pwrite(block_of(b"new"), 0)
    with pytest.raises(GONE):
        client.control.space(NodeKind.VOLUME, "v")
    assert serving.died()
    two = [path for path in serving.journals() if of_two(path, serving.journals())]
    assert len(two) == 2, serving.journals()
    gone = two[missing]
    away = serving.pool / "away"
    gone.rename(away)

    client = serving.start()
    refused = {v.name: v.error for v in client.control.list_volumes() if v.error}
    assert len(refused) == 1, refused
    ((name, reason),) = refused.items()
    assert f"its journal {gone} is missing" in str(reason)
    with pytest.raises(nbd.Error):
        client.connect(name)
    (other,) = {"kept", "v"} - {name}
    assert client.read(other)[:BLOCK_SIZE] == block_of(b"new")
    assert not client.control.check().clean
    serving.kill()

    away.rename(gone)
    client = serving.start()
    assert client.read(name)[:BLOCK_SIZE] == block_of(b"new")
    assert client.control.check().clean


def of_two(path: Path, journals: list[Path]) -> bool:
    """Its volume has another one."""
    volume = path.name.partition(".")[0]
    return sum(other.name.partition(".")[0] == volume for other in journals) == 2


# -- a read queued to a stalled socket while its layer is reclaimed --------------------------------


@pytest.mark.parametrize("lengths", [[SIZE], [64 * 1024] * 128], ids=["one large", "many small"])
def test_a_read_queued_to_a_stalled_socket_while_its_layer_is_reclaimed(
    make: Make, lengths: list[int]
) -> None:
    """The client takes nothing while every block is overwritten, and the snapshot's layer, which
    its reads began with, is given back. Then each block is the old one or the new one."""
    client = make().prepared("v")
    reader, writer = client.connect("v"), client.connect("v")
    buffers = [nbd.Buffer(length) for length in lengths]
    failed: list[int] = []

    def completed(error: Any) -> int:
        failed.extend([error.value] if error.value else [])
        return 1  # retired

    offset = 0
    for buffer in buffers:
        reader.aio_pread(buffer, offset, completion=completed)
        offset += buffer.size()
    select.select([reader.aio_get_fd()], [], [])  # it answers, and nobody reads that
    writer.pwrite(block_of(b"new") * BLOCKS, 0)
    writer.flush()
    client.delete_snapshot("v-s")
    while client.control.check().pending_reclaim:
        pass
    while reader.aio_in_flight():
        reader.poll(-1)
    assert failed == []
    content = b"".join(bytes(buffer.to_bytearray()) for buffer in buffers)
    found = {content[at : at + BLOCK_SIZE] for at in range(0, SIZE, BLOCK_SIZE)}
    assert found <= {block_of(b"old"), block_of(b"new")}
    assert content[:BLOCK_SIZE] == block_of(b"old"), "it was not stalled"
    assert client.read("v") == block_of(b"new") * BLOCKS


# -- a pool remounted without its unsynced pages under the same boot id ----------------------------

SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32) (fs/ext4/ext4.h)."""

WITHOUT_LOG_FLUSH = 2
"""EXT4_GOING_FLAGS_NOLOGFLUSH: what is not on disk stays off it."""


class LostPages:
    """An ext4 in a file that can be made to forget what was not synced."""

    def __init__(self, work: Path) -> None:
        self.path = work / "mounted"
        self._image = work / "image"
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(1 << 30)
        subprocess.run([program("mkfs.ext4"), "-q", self._image], check=True)
        self._mount()

    def _mount(self) -> None:
        subprocess.run([program("mount"), "-o", "loop", self._image, self.path], check=True)

    def unmount(self) -> None:
        subprocess.run([program("umount"), self.path], check=True)

    def remount_without_unsynced_pages(self) -> None:
        root = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(root, SHUTDOWN, struct.pack("I", WITHOUT_LOG_FLUSH))
        finally:
            os.close(root)
        self.unmount()
        self._mount()


@contextmanager
def losing_pages(work: Path) -> Iterator[LostPages]:
    lossy = LostPages(work)
    try:
        yield lossy
    finally:
        lossy.unmount()


def remount(
    make: Make, work: Path, prepare: Callable[[], None] | None = None, *, copied: bool = False
) -> None:
    """The journal's page reached the disk by itself, and the data's did not. A block of zeros,
    which may well be a hole, is none of the evidence."""
    with losing_pages(work) as lossy:
        serving = make(lossy.path / "pool", prepare)
        try:
            client = serving.prepared("v")
            writer = client.connect("v")
            writer.pwrite(bytes(BLOCK_SIZE), 4 * BLOCK_SIZE)
            writer.pwrite(block_of(b"new"), 5 * BLOCK_SIZE)
            writer.pwrite(b"part", 6 * BLOCK_SIZE)
            (journal,) = serving.journals()
            with journal.open("rb") as file:
                os.fdatasync(file.fileno())
            serving.kill()
            lossy.remount_without_unsynced_pages()
            if copied:
                plain = work / "plain"
                words = ("-a", "--sparse=never", str(serving.pool), str(plain))
                subprocess.run([program("cp"), *words], check=True)
                serving.pool = plain
            content = serving.start().read("v")
            assert (
                "3 journal records were never flushed and do not count" in serving.log.read_text()
            )
            assert content == block_of(b"old") * BLOCKS
        finally:
            serving.end()


def test_a_pool_remounted_without_its_unsynced_pages_under_the_same_boot_id(
    make: Make, tmp_path: Path
) -> None:
    remount(make, tmp_path)


def test_a_copy_of_a_pool_that_lost_its_unsynced_pages(make: Make, tmp_path: Path) -> None:
    """In which what was lost is no hole any more."""
    remount(make, tmp_path, copied=True)


def redirects_count_without_their_data() -> Replacements:
    return [(recovery, "find_lost_pages", lambda _segments, _head: False)]


def test_a_remounted_pool_needs_a_look_for_lost_pages(make: Make, tmp_path: Path) -> None:
    """It fails when recovery takes every redirect of the same boot for good."""
    with pytest.raises(AssertionError):
        remount(make, tmp_path, partial(break_for_good, redirects_count_without_their_data))
