"""`bockd backup`: whole, of one moment, only what changed, and never half of one for a whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.cli.backup import back_up
from bockd.cli.checking import check_pool
from bockd.cli.client import ControlClient
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.format.locks import FileLock
from bockd.drivers.local.pool import LocalPool
from bockd.errors import BockdError, ConflictError, DamagedError, InUseError, NotFoundError
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import Background, run_inline
from tests.crash.scenarios.serving import BLOCKS, SIZE, Serving, block_of
from tests.daemon.process import program
from tests.drivers.local.named import volume_named

OLD, NEW, LATER = block_of(b"old"), block_of(b"new"), block_of(b"later")
ANOTHER_BOOT = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    serving = Serving(tmp_path / "pool", tmp_path / "log")
    yield serving
    serving.end()


def backed_up(pool: Path, target: Path) -> dict[str, Any]:
    command = [program("bockd"), "backup", "--json", str(pool), str(target)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def content(root: Path, name: str = "v") -> bytes:
    """Of a volume of a pool, on another machine."""
    pool = LocalPool.open(root, Background().spawn, boot=ANOTHER_BOOT)
    try:
        volume = run_inline(pool.registry.use_volume(volume_named(pool, name))).volume
        buffer = bytearray(SIZE)
        run_inline(volume.read(0, memoryview(buffer)))
        run_inline(pool.close_all())
    finally:
        pool.release()
    return bytes(buffer)


def test_a_pool_in_use_is_backed_up_again_and_again(serving: Serving, tmp_path: Path) -> None:
    """With what was answered and not flushed; a backup is not changed by what comes later, and the
    next one reads what has changed only."""
    target = tmp_path / "backup"
    client = serving.prepared("v", "idle")
    writer = client.connect("v")
    writer.pwrite(NEW * 64, 0)
    writer.trim(BLOCK_SIZE * 8, BLOCK_SIZE * 100)
    expected = bytearray(NEW * 64 + OLD * (BLOCKS - 64))
    expected[BLOCK_SIZE * 100 : BLOCK_SIZE * 108] = bytes(BLOCK_SIZE * 8)
    first = backed_up(serving.pool, target)
    writer.pwrite(LATER * 16, BLOCK_SIZE * 32)
    assert first["written_bytes"] >= 2 * SIZE
    # Young files count, too, though the next backup looks at them again.
    assert first["files"] >= first["copied_files"] > 0
    assert content(target) == expected
    assert content(target, "idle") == OLD * BLOCKS

    expected[BLOCK_SIZE * 32 : BLOCK_SIZE * 48] = LATER * 16
    second = backed_up(serving.pool, target)
    assert second["written_bytes"] <= MIB
    assert content(target) == expected
    assert content(target, "idle") == OLD * BLOCKS
    assert [shot.name for shot in client.control.list_snapshots()] == ["v-s", "idle-s"]
    assert client.control.check().clean
    assert bytes(writer.pread(SIZE, 0)) == expected

    serving.kill()
    back_up(serving.pool, target, lambda _done, _total: None)  # it is recovered first
    assert content(target) == expected
    assert content(serving.pool) == expected


def test_an_interrupted_backup_is_no_pool_and_goes_on(serving: Serving, tmp_path: Path) -> None:
    """The earlier backup that it was made into is none any more either."""
    target = tmp_path / "backup"
    client = serving.prepared("v")
    client.connect("v").pwrite(NEW, 0)
    backed_up(serving.pool, target)
    serving.kill()

    class InterruptedRunError(Exception):
        pass

    def interrupt(_done: int, _total: int) -> None:
        raise InterruptedRunError

    for _ in range(2):
        with pytest.raises(InterruptedRunError):
            back_up(serving.pool, target, interrupt)
        with pytest.raises(DamagedError, match="backup that was not finished"):
            LocalPool.open(target, Background().spawn)
    backed_up(serving.pool, target)
    assert content(target) == NEW + OLD * (BLOCKS - 1)


def test_a_backup_whose_maker_dies_lets_the_pool_go(serving: Serving) -> None:
    client = serving.prepared("v")
    lock = FileLock.acquire(Layout(serving.pool).backup_lock, shared=False, held_message="held")
    with ControlClient(serving.pool / "api.sock") as maker:
        frozen = maker.begin_backup()
        assert len(client.control.list_snapshots()) == 2
        with pytest.raises(InUseError):
            maker.begin_backup()
        with pytest.raises(NotFoundError):
            maker.end_backup("another")
        lock.release()  # as its death does
        while len(client.control.list_snapshots()) > 1:
            pass
        with pytest.raises(NotFoundError, match="begin again"):
            maker.end_backup(frozen.id)
    client.delete_snapshot("v-s")
    while client.control.check().pending_reclaim:
        pass


def test_a_volume_that_cannot_be_frozen_leaves_nothing_frozen(
    serving: Serving, tmp_path: Path
) -> None:
    """The backup is refused, and what it had frozen before is let go at once."""
    client = serving.prepared("v")
    client.create("elsewhere", SIZE)
    elsewhere = next(one.id for one in client.control.list_volumes() if one.name == "elsewhere")
    layout = Layout(serving.pool)
    lock = FileLock.acquire(layout.volume_lock(elsewhere), shared=False, held_message="held")
    try:
        with pytest.raises(InUseError):
            back_up(serving.pool, tmp_path / "backup", lambda _done, _total: None)
        assert [shot.name for shot in client.control.list_snapshots()] == ["v-s"]
    finally:
        lock.release()
    backed_up(serving.pool, tmp_path / "backup")


def test_nothing_is_punched_or_removed_while_a_backup_is_made(serving: Serving) -> None:
    client = serving.prepared("v")
    layer = serving.pool / "layers" / "1.0"
    before = layer.stat().st_blocks
    lock = FileLock.acquire(Layout(serving.pool).backup_lock, shared=False, held_message="held")
    with ControlClient(serving.pool / "api.sock") as maker:
        frozen = maker.begin_backup()
        client.connect("v").pwrite(NEW * BLOCKS, 0)
        client.delete_snapshot("v-s")
        assert client.control.check().pending_reclaim
        assert layer.stat().st_blocks == before
        maker.end_backup(frozen.id)
    lock.release()
    while layer.exists() and layer.stat().st_blocks:
        client.control.check()  # brings the index up to date, so that more can go


def test_check_finds_a_copy_of_two_moments(serving: Serving, tmp_path: Path) -> None:
    """Its layers were copied first, and its index later. What lies at its own offset is a hole
    then, and what lies in cells is behind the end of the file."""
    client = serving.prepared("v")
    writer = client.connect("v")
    writer.pwrite(NEW, 0)
    copy = tmp_path / "copy"
    subprocess.run([program("cp"), "-a", serving.pool, copy], check=True)
    writer.pwrite(NEW * 16, BLOCK_SIZE * 16)
    writer.flush()
    client.snapshot("v", "later")
    while client.control.scrub(65536, False).unread_layers:
        pass
    writer.shutdown()
    serving.kill()
    for folder in ("index", "journal"):
        shutil.rmtree(copy / folder)
        shutil.copytree(serving.pool / folder, copy / folder)
    missing = copy / "layers" / "3.0"
    if not missing.exists():  # the new head
        missing.touch()
        os.truncate(missing, SIZE)
    found = check_pool(copy, repair=False)
    said = r"16 blocks of layer 2 are holes, and held data|layers/2\.0 is truncated: it has 4096 "
    assert any(re.search(said, one) for one in found.problems)
    assert check_pool(serving.pool, repair=False).clean


@pytest.mark.parametrize("inside", [True, False])
def test_other_directories_are_refused(serving: Serving, tmp_path: Path, inside: bool) -> None:
    serving.prepared("v")
    serving.kill()
    target = serving.pool / "sub" if inside else tmp_path
    with pytest.raises(BockdError, match="lie in one another"):
        back_up(serving.pool, target, lambda _done, _total: None)
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").touch()
    with pytest.raises(ConflictError, match="is no backup"):
        back_up(serving.pool, other, lambda _done, _total: None)
    assert [path.name for path in other.iterdir()] == ["precious"]


def test_a_backup_of_another_pool_is_refused(serving: Serving, tmp_path: Path) -> None:
    serving.prepared("v")
    backed_up(serving.pool, tmp_path / "backup")
    other = LocalPool.open(tmp_path / "other", Background().spawn)
    other.release()
    with pytest.raises(ConflictError, match="backup of another pool"):
        back_up(tmp_path / "other", tmp_path / "backup", lambda _done, _total: None)
    assert content(tmp_path / "backup") == OLD * BLOCKS


def test_files_are_shared_where_the_file_system_can(tmp_path: Path) -> None:
    """XFS, on a loop device; and what is written later to the pool is not in the backup."""
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run([program("mkfs.xfs"), "-q", image], check=True)
    subprocess.run([program("mount"), "-o", "loop", image, mounted], check=True)
    serving = Serving(mounted / "pool", tmp_path / "log")
    try:
        writer = serving.prepared("v").connect("v")
        report = backed_up(serving.pool, mounted / "backup")
        assert report["shared_files"] == report["copied_files"] > 0
        assert report["written_bytes"] == 0
        writer.pwrite(NEW * BLOCKS, 0)
        writer.flush()
        assert content(mounted / "backup") == OLD * BLOCKS
    finally:
        serving.end()
        subprocess.run([program("umount"), mounted], check=True)
