"""Promise D5: on a full disk writes fail with ENOSPC, nothing acknowledged is lost, and reading,
trimming and deleting still work; then so does writing."""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from random import Random
from typing import Any

import nbd
import pytest

from bockd.cli.storage import StorageClient
from bockd.errors import UnavailableError

from .filesystems import mounted
from .process import Bockd, serving

MIB = 1 << 20
PIECE = 256 * 1024

RETURN_SECONDS = 20.0
"""Within this the background has given back what was trimmed or deleted."""


@pytest.fixture
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bockd]:
    """A daemon whose pool is alone on a file system of 80 MiB."""
    work = tmp_path_factory.mktemp("full")
    with (
        mounted(request.param, work, 80 * MIB) as root,
        serving(root / "pool", log=work / "log") as running,
    ):
        yield running


@pytest.fixture
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    """A daemon whose pool is on an ext4 of 96 MiB that the test fills."""
    work = tmp_path_factory.mktemp("full")
    with (
        mounted("ext4", work, 96 * MIB) as root,
        serving(root / "pool", log=work / "log") as running,
    ):
        yield running


class Content:
    """What was acknowledged, by piece of PIECE bytes; pieces whose write failed hold anything."""

    def __init__(self) -> None:
        self.pieces: dict[int, bytes] = {}

    def write(self, client: Any, number: int, round_number: int) -> bool:
        """Write a piece; False when the disk is full. Any other error is an error."""
        data = b"%07d %07d\n" % (number, round_number) * (PIECE // 16)
        self.pieces.pop(number, None)
        try:
            client.pwrite(data, number * PIECE)
        except nbd.Error as error:
            if error.errnum != errno.ENOSPC:
                raise
            return False
        self.pieces[number] = data
        return True

    def fill(self, client: Any, first: int, round_number: int) -> int:
        """Write pieces from `first` on until the disk is full; the first that failed."""
        while self.write(client, first, round_number):
            first += 1
        return first

    def verify(self, client: Any) -> None:
        for number, data in self.pieces.items():
            assert client.pread(PIECE, number * PIECE) == data, f"piece {number}"


def until_written(content: Content, client: Any, number: int, round_number: int) -> None:
    """Write a piece as soon as there is room for it again."""
    deadline = time.monotonic() + RETURN_SECONDS
    while not content.write(client, number, round_number):
        assert time.monotonic() < deadline, "the space has not come back"


@pytest.mark.parametrize("daemon", ["ext4", "tmpfs"], indirect=True)
def test_a_full_disk(daemon: Bockd) -> None:
    """Fill it; read, flush and trim; fill it again; delete a snapshot and a volume; write again.
    The pool is in order at each step, and after a restart everything is there."""
    daemon.expect_in_log("full")
    daemon.bock("volume", "create", "victim", "--size", "16M")
    with daemon.connected("victim") as client:
        client.pwrite(b"v" * (8 * MIB), 0)
    daemon.bock("volume", "create", "filled", "--size", "256M")
    content = Content()
    client = daemon.connect("filled")
    for number in range(16):
        assert content.write(client, number, 0)
    daemon.bock("snapshot", "create", "filled", "early")
    frozen = bytes(client.pread(16 * PIECE, 0))
    for number in range(8):
        assert content.write(client, number, 1)
    full = content.fill(client, 16, 1)
    assert full * PIECE > 20 * MIB
    assert not content.write(client, full + 1, 1)
    said = r"volume \d+: (a|\d+) writes? failed with ENOSPC: .*full"
    assert re.search(said, daemon.log.read_text())

    content.verify(client)
    client.flush()
    with daemon.connected("snapshot/early") as reader:
        assert reader.pread(16 * PIECE, 0) == frozen
    daemon.check()

    client.trim(8 * PIECE, 20 * PIECE)
    assert client.pread(8 * PIECE, 20 * PIECE) == bytes(8 * PIECE)
    for number in range(20, 28):
        del content.pieces[number]
    until_written(content, client, full, 2)
    full = content.fill(client, full + 1, 2)
    content.verify(client)

    daemon.wait_until_unused("victim")
    daemon.bock("volume", "delete", "victim", "--yes")
    until_written(content, client, full, 3)
    full = content.fill(client, full + 1, 3)
    with daemon.storage() as storage:
        while storage.find_snapshot("early").connections:
            pass
    daemon.bock("snapshot", "delete", "early", "--yes")
    until_written(content, client, full, 4)
    content.verify(client)
    client.flush()
    client.shutdown()
    daemon.check()

    daemon.restart()
    with daemon.connected("filled") as client:
        content.verify(client)
    daemon.stop()
    daemon.check()


@pytest.mark.parametrize("daemon", ["ext4"], indirect=True)
@pytest.mark.parametrize("unclean", [False, True], ids=["stopped", "killed"])
def test_a_start_on_a_full_disk(daemon: Bockd, unclean: bool) -> None:
    """A daemon that is stopped or killed on a full disk starts again there: what was acknowledged
    can be read, and deleting makes room to write."""
    daemon.expect_in_log("full")
    daemon.bock("volume", "create", "victim", "--size", "16M")
    daemon.bock("volume", "create", "filled", "--size", "256M")
    content, other = Content(), Content()
    client = daemon.connect("filled")
    victim = daemon.connect("victim")
    for number in range(32):
        assert other.write(victim, number, 0)
    full = content.fill(client, 0, 1)
    if unclean:
        daemon.kill()
    else:
        client.shutdown()
        victim.shutdown()
        daemon.stop()
    daemon.check()

    daemon.start()
    with daemon.connected("filled") as client, daemon.connected("victim") as victim:
        content.verify(client)
        other.verify(victim)
    daemon.wait_until_unused("victim")
    daemon.bock("volume", "delete", "victim", "--yes")
    with daemon.connected("filled") as client:
        until_written(content, client, full, 2)
        content.verify(client)
    daemon.check()


@pytest.mark.parametrize("daemon", ["tmpfs"], indirect=True)
def test_creating_on_a_full_disk(daemon: Bockd) -> None:
    """A volume, a clone or a snapshot that finds no room is refused by name of the reason, or made
    in full; the volume below goes on, and afterwards the pool is in order."""
    daemon.expect_in_log("full|put off")
    daemon.bock("volume", "create", "filled", "--size", "256M")
    content = Content()
    with daemon.connected("filled") as client, daemon.storage() as storage:
        volume = storage.find_volume("filled").id
        full = content.fill(client, 0, 0)
        made = 0
        reasons: list[str] = []
        for number in range(20):
            try:
                storage.create_snapshot(volume, f"s{number}")
                made += 1
            except UnavailableError as error:
                reasons.append(str(error))
        assert all("the file system is full" in reason for reason in reasons), reasons
        content.verify(client)
        assert len(storage.list_snapshots()) == made
        client.trim(4 * PIECE, 0)
        for number in range(4):
            del content.pieces[number]
        for snapshot in storage.list_snapshots():
            storage.delete_snapshot(snapshot.id)
        until_written(content, client, full, 1)
        content.verify(client)
    daemon.check()
    daemon.restart()
    with daemon.connected("filled") as client:
        content.verify(client)
    daemon.check()


CLOSED = 8
"""More volumes than there are spare journal segments."""

WRITERS = 10

LOGINS = 5

PATIENCE_SECONDS = 120.0


def create(storage: StorageClient, name: str) -> int:
    return storage.create_volume(name, 64 * MIB).id


def fill_file_system(daemon: Bockd) -> None:
    """Take what is free, as any other program may."""
    with (daemon.data_dir.parent / "filler").open("wb", buffering=0) as filler:
        for size in (MIB, 4096):
            with suppress(OSError):
                while filler.write(bytes(size)):
                    pass


def test_closed_volumes_can_be_used_on_a_full_disk(full: Bockd) -> None:
    """All volumes that nobody has open can be read and trimmed, before and after a restart; what
    needs space is refused."""
    daemon = full
    daemon.expect_in_log("full")
    names = [f"v{number}" for number in range(CLOSED)]
    with daemon.storage() as storage:
        for name in names:
            create(storage, name)
            with daemon.connected(name) as client:
                client.pwrite(name.encode() * (2 * PIECE // len(name)), 0)
    daemon.restart()
    fill_file_system(daemon)
    for restarts in range(2):
        with ExitStack() as stack:
            clients = [stack.enter_context(daemon.connected(name)) for name in names]
            for name, client in zip(names, clients, strict=True):
                assert client.pread(PIECE, 0) == name.encode() * (PIECE // len(name))
            with pytest.raises(nbd.Error) as refused:
                clients[0].pwrite(bytes(PIECE), 8 * MIB)
            assert refused.value.errnum == errno.ENOSPC
            if restarts:
                clients[0].trim(2 * PIECE, 0)
                clients[0].flush()
        daemon.restart()
    with daemon.connected(names[0]) as client:
        assert client.pread(2 * PIECE, 0) == bytes(2 * PIECE)
    daemon.check()


def test_no_inodes_left(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Volumes that nobody has open are read and written; what needs a file is refused by that."""
    work = tmp_path_factory.mktemp("inodes")
    with (
        mounted("ext4", work, 64 * MIB, "-N", "128") as root,
        serving(root / "pool", log=work / "log") as daemon,
    ):
        daemon.expect_in_log("no inodes left")
        names = [f"v{number}" for number in range(4)]
        with daemon.storage() as storage:
            for name in names:
                create(storage, name)
        daemon.restart()
        with suppress(OSError):
            for number in range(1000):
                (root / f"filler{number}").touch()
        for name in names:
            with daemon.connected(name) as client:
                assert client.pread(PIECE, 0) == bytes(PIECE)
        with daemon.connected(names[0]) as client:
            client.pwrite(b"x" * PIECE, 0)
            client.flush()
        with daemon.storage() as storage, pytest.raises(UnavailableError, match="no inodes left"):
            create(storage, "more")
        daemon.check()


def test_what_is_put_off_waits_for_space_and_says_so(full: Bockd) -> None:
    """Reclaim ends with making the reserve whole, for which there is no room when the daemon
    starts. It is tried again when there is, without a deletion."""
    daemon = full
    daemon.expect_in_log("full|put off")
    daemon.stop()
    reserve = daemon.data_dir / "ballast"
    size = reserve.stat().st_size
    reserve.unlink()
    fill_file_system(daemon)
    daemon.start()
    with daemon.control() as control:
        until(lambda: control.info().waiting)
        (waiting,) = control.info().waiting
        assert waiting.startswith("reclaim: the file system is full")
        assert waiting in daemon.bock("info")["waiting"]
        (daemon.data_dir.parent / "filler").unlink()
        until(lambda: not control.info().waiting)
    assert reserve.stat().st_size == size


def until(seen: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not seen():
        assert time.monotonic() < deadline


class Writer(threading.Thread):
    """Writes scattered blocks on a full disk until it is told to stop."""

    def __init__(self, daemon: Bockd, volume: str) -> None:
        super().__init__()
        self.refused = threading.Event()
        """Set whenever a write finds no space."""
        self.wrong: BaseException | None = None
        self._daemon = daemon
        self._volume = volume
        self._over = threading.Event()

    def run(self) -> None:
        random = Random(self._volume)
        try:
            with self._daemon.connected(self._volume) as client:
                while not self._over.is_set():
                    self._write(client, random.randrange(64 * MIB // 4096) * 4096)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.wrong = error
        self.refused.set()

    def _write(self, client: Any, offset: int) -> None:
        try:
            client.pwrite(b"w" * 4096, offset)
        except nbd.Error as error:
            if error.errnum != errno.ENOSPC:
                raise
            self.refused.set()

    def end(self) -> None:
        self._over.set()
        self.join(PATIENCE_SECONDS)
        assert self.wrong is None, self.wrong


def until_refused(writers: list[Writer]) -> None:
    """Return when each of them has met the full disk once more."""
    for writer in writers:
        writer.refused.clear()
    for writer in writers:
        assert writer.refused.wait(PATIENCE_SECONDS)


def test_ten_writers_do_not_take_the_reserve(full: Bockd) -> None:
    """While they keep a full disk full, people log in, list, trim and delete."""
    daemon = full
    daemon.expect_in_log("full")
    names = [f"w{number}" for number in range(WRITERS)]
    with daemon.storage() as storage:
        for name in (*names, "trimmed"):
            create(storage, name)
        gone = create(storage, "gone")
        for name in ("gone", "trimmed"):
            with daemon.connected(name) as client:
                client.pwrite(b"g" * MIB, 0)
        snapshot = storage.create_snapshot(gone, "also-gone").id
    daemon.wait_until_unused("gone")
    fill_file_system(daemon)
    writers = [Writer(daemon, name) for name in names]
    for writer in writers:
        writer.start()
    try:
        until_refused(writers)
        for _ in range(LOGINS):
            with daemon.storage() as storage:
                assert len(storage.list_volumes()) == WRITERS + 2
        with daemon.connected("trimmed") as client:
            client.trim(MIB, 0)
            client.flush()
        with daemon.storage() as storage:
            storage.delete_snapshot(snapshot)
            storage.delete_volume(gone)
            until_refused(writers)
            assert {volume.name for volume in storage.list_volumes()} == {*names, "trimmed"}
    finally:
        for writer in writers:
            writer.end()
    daemon.check()
