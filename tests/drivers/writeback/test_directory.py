"""The directory of the logs: whose they are, which are void, and which are too old."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.descriptors import SEGMENTS_SHARE
from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.writeback import segment
from bockd.drivers.writeback.binding import FILE, LoggedPool
from bockd.drivers.writeback.directory import WriteBackDirectory
from bockd.drivers.writeback.progress import ProgressFile
from bockd.drivers.writeback.records import seed_of
from bockd.errors import BockdError, ConflictError, DamagedError, InUseError
from bockd.model import BLOCK_SIZE, MIB
from bockd.publictexts import UNREADABLE_LOG
from bockd.runtime.steps import Background, Signal

from .opened import BOUND_BYTES, IMAGE, SEGMENT_BYTES, SIZE_BYTES, Opened, holding

ONE = b"1" * BLOCK_SIZE
TWO = b"2" * BLOCK_SIZE


@pytest.fixture
def below() -> MemoryDevice:
    return MemoryDevice(SIZE_BYTES)


@pytest.fixture
def opened(tmp_path: Path, below: MemoryDevice) -> Iterator[Opened]:
    one = Opened(tmp_path / "logs", below)
    yield one
    one.dispose()


def serve(path: Path, pool: str, begun: int) -> None:
    """Open the directory as the daemon of a pool does, and end."""
    directory = WriteBackDirectory.open_directory(
        path,
        BOUND_BYTES,
        Background().spawn,
        LoggedPool(pool, f"pool {pool}", lambda _directory: begun),
        segment_bytes=SEGMENT_BYTES,
    )
    directory.release()


def files(path: Path) -> dict[str, bytes]:
    return {str(one): one.read_bytes() for one in path.rglob("*") if one.is_file()}


# -- whose it is ---------------------------------------------------------------------------------


def test_a_directory_has_one_daemon(opened: Opened) -> None:
    with pytest.raises(InUseError):
        opened._directory()


def put_log(directory: Path, name: str = f"{IMAGE}.0123456789abcdef") -> None:
    (directory / name).mkdir()


def test_logs_belong_to_the_pool_that_made_them(tmp_path: Path) -> None:
    serve(tmp_path / "logs", "first", 7)
    put_log(tmp_path / "logs")
    before = files(tmp_path)
    with pytest.raises(ConflictError, match=r"of another pool: pool first.*write_back.directory"):
        serve(tmp_path / "logs", "second", 9)
    assert files(tmp_path) == before
    serve(tmp_path / "logs", "first", 7)


def test_a_directory_without_logs_is_anybodys(opened: Opened) -> None:
    """Also of a pool that was made anew, or put back to an older state; and what an operator has
    moved aside is no log."""
    opened.write(0, ONE)
    opened.close()
    opened.directory.release()
    aside = opened.log_path().rename(opened.path / "aside.old")
    serve(opened.path, "one", opened.begun - 1)
    serve(opened.path, "second", 3)
    put_log(opened.path)
    with pytest.raises(ConflictError, match="of another pool: pool second"):
        serve(opened.path, "one", opened.begun)
    assert aside.is_dir()


def test_an_index_that_is_older_than_the_logs_is_refused(opened: Opened) -> None:
    """It may not know of them; what it says of a volume is not what it said last."""
    opened.write(0, ONE)
    opened.flush()
    opened.die()
    before = files(opened.path)
    with pytest.raises(ConflictError, match="an older one was put in its place"):
        serve(opened.path, "one", opened.begun - 1)
    assert files(opened.path) == before
    serve(opened.path, "one", opened.begun)
    opened.directory = opened._directory()
    opened.open()
    assert opened.read() == ONE


def test_a_log_counts_from_when_the_index_knows_of_it(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its directory cannot note is written through."""

    def fails(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        opened.write(0, ONE)
        assert holding(below, 0, BLOCK_SIZE) == ONE
        why = opened.device.trouble or ""
        assert why.startswith("it cannot be noted that the volume is dirty: ")
        assert FILE in why, "no word of the pool"
        assert "Input/output error" in why
        log_id = opened.record
        for _ in range(4):
            opened.look()
            opened.write(0, TWO)
        assert opened.record is None
        assert [one for one in opened.commits if one] == [log_id], "it was made dirty again"
        assert holding(below, 0, BLOCK_SIZE) == TWO
    opened.look()
    opened.write(0, ONE)
    assert opened.record is not None
    assert opened.device.trouble is None


def test_logs_of_no_pool_are_refused(tmp_path: Path) -> None:
    serve(tmp_path / "logs", "first", 7)
    (tmp_path / "logs" / FILE).unlink()
    put_log(tmp_path / "logs", "aside.old")
    serve(tmp_path / "logs", "first", 7)
    (tmp_path / "logs" / FILE).unlink()
    put_log(tmp_path / "logs")
    with pytest.raises(DamagedError, match="which says of which pool"):
        serve(tmp_path / "logs", "first", 7)
    assert (tmp_path / "logs" / f"{IMAGE}.0123456789abcdef").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"format":2,"id":"i","pool":"a","name":"b","begun":1}']
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    serve(tmp_path / "logs", "first", 7)
    (tmp_path / "logs" / FILE).write_bytes(content)
    with pytest.raises(DamagedError, match=FILE):
        serve(tmp_path / "logs", "first", 7)


# -- which logs stay -----------------------------------------------------------------------------


def test_a_log_is_void_when_the_record_names_none(
    opened: Opened, below: MemoryDevice, caplog: pytest.LogCaptureFixture
) -> None:
    below.gate = Signal()
    opened.write(0, ONE)
    opened.close()
    below.gate, opened.record = None, None
    with caplog.at_level(logging.WARNING):
        opened.open()
    assert "is kept in" in caplog.text
    assert opened.read() == bytes(BLOCK_SIZE)
    assert opened.directory.images() == []


def aside(opened: Opened) -> list[str]:
    """Return the names of what is put aside: the same as of what is there."""
    found = [one.name for one in opened.directory.aside()]
    assert found == sorted(one.name for one in opened.path.glob("*.discarded"))
    return found


def test_what_was_given_up_is_put_aside_if_it_has_something(
    opened: Opened, below: MemoryDevice
) -> None:
    """The disk that has it may come back when it was given up for lost."""
    below.gate = Signal()
    opened.write(0, ONE)
    opened.die()
    below.gate = None
    name, given_up, opened.record = opened.log_path().name, files(opened.path), None
    opened.directory = opened._directory()
    opened.open()
    assert aside(opened) == [f"{name}.discarded"]
    assert [*files(opened.path).values()] == [*given_up.values()]
    assert opened.directory.space.used_bytes == on_disk(opened) == SEGMENT_BYTES
    opened.again()
    assert aside(opened) == [f"{name}.discarded"]
    assert opened.directory.space.used_bytes == on_disk(opened) == SEGMENT_BYTES
    shutil.rmtree(opened.path / f"{name}.discarded")
    opened.look()
    assert aside(opened) == []
    assert opened.directory.space.used_bytes == 0


def test_no_disk_that_hangs_stops_the_owner_thread(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that asks the disk of the logs, at an opening and a discard, is a call for a thread of
    its own: here, one that the scheduler makes between two steps."""
    below.gate = Signal()
    opened.write(0, ONE)
    opened.close()
    below.gate = None
    asked, resuming = list[str](), [False]

    def watched(name: str) -> Callable[[Path], Any]:
        real = getattr(Path, name)

        def ask(path: Path) -> Any:
            asked.append(name)
            assert not resuming[0], f"{name} on the owner thread"
            return real(path)

        return ask

    for name in ("iterdir", "is_dir", "exists"):
        monkeypatch.setattr(Path, name, watched(name))
    advance = opened.scheduler.advance

    def advancing(task: Any) -> None:
        resuming[0] = task.call is None
        try:
            advance(task)
        finally:
            resuming[0] = False

    monkeypatch.setattr(opened.scheduler, "advance", advancing)
    opened.open()
    opened.close()
    opened.run(opened.directory.discard(IMAGE, keep=False))
    opened.record = None
    opened.open()
    assert {"iterdir", "is_dir"} <= set(asked)


def test_what_was_put_aside_on_a_disk_that_fails_counts_on(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for every second: that ends with no error, and goes on."""
    below.gate = Signal()
    opened.write(0, ONE)
    opened.close()
    below.gate, opened.record = None, None
    opened.open()
    kept = aside(opened)
    looked = list[Path]()

    def fails(path: Path) -> bool:
        looked.append(path)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", fails)
        opened.look()
        opened.look()
    assert len(looked) == 2
    assert aside(opened) == kept
    assert opened.directory.space.used_bytes == SEGMENT_BYTES


def test_a_log_that_is_put_back_and_given_up_again_is_put_aside_again(
    opened: Opened, below: MemoryDevice
) -> None:
    """What was put aside before is not touched, and the volume is served."""
    below.gate = Signal()
    opened.write(0, ONE)
    opened.close()
    below.gate = None
    path, opened.record = opened.log_path(), None
    shutil.copytree(path, rescued := opened.path.parent / "rescued")
    for _ in range(3):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(rescued, path)
        opened.run(opened.directory.discard(IMAGE, keep=True))
    assert aside(opened) == [f"{path.name}{nth}.discarded" for nth in (".2", ".3", "")]
    assert opened.directory.images() == []
    assert opened.directory.space.used_bytes == on_disk(opened) == 3 * SEGMENT_BYTES
    opened.open()
    assert opened.read() == bytes(BLOCK_SIZE)


def test_a_log_of_which_all_is_below_is_not_put_aside(opened: Opened) -> None:
    opened.write(0, ONE)
    opened.flush()
    opened.settle()
    opened.die()
    opened.record = None
    opened.directory = opened._directory()
    opened.open()
    assert list(opened.path.glob(f"{IMAGE}*")) == []
    assert opened.directory.space.used_bytes == 0


@pytest.mark.parametrize("what", ["progress", "00000001.seg"])
@pytest.mark.parametrize("at", [40, 4096 + 40, 4096 + 4096 - 1])
def test_a_log_that_cannot_be_read_is_put_aside(
    opened: Opened, below: MemoryDevice, what: str, at: int
) -> None:
    below.gate = Signal()
    opened.write(0, ONE)
    opened.close()
    path, opened.record = opened.log_path() / what, None
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    opened.run(opened.directory.discard(IMAGE, keep=True))
    assert len(aside(opened)) == 1


@pytest.mark.parametrize("progress", [None, b"", bytes(8192), b"torn"])
def test_a_log_that_was_not_made_to_its_end_is_not_put_aside(
    opened: Opened, progress: bytes | None
) -> None:
    """The process or the power has ended before the driver was told of it."""
    opened.close()
    put_log(opened.path)
    torn = opened.path / f"{IMAGE}.0123456789abcdef"
    header = segment.header_of(1, seed_of("0123456789abcdef"))
    (torn / "00000001.seg").write_bytes(header.ljust(SEGMENT_BYTES, b"\0"))
    if progress is not None:
        (torn / "progress").write_bytes(progress)
    opened.open()
    assert aside(opened) == []
    assert opened.directory.images() == []


def test_of_a_deleted_volume_nothing_is_put_aside(opened: Opened, below: MemoryDevice) -> None:
    below.gate = Signal()
    opened.write(0, ONE)
    opened.close()
    opened.run(opened.directory.discard(IMAGE, keep=False))
    assert aside(opened) == []


def test_while_the_record_names_a_log_that_is_missing_all_others_stay(opened: Opened) -> None:
    opened.write(0, ONE)
    opened.close()
    known, before = opened.record, files(opened.path)
    opened.record = "0123456789abcdef"
    with pytest.raises(DamagedError, match=r"which is missing.*bock volume discard-cache"):
        opened.open()
    assert files(opened.path) == before
    opened.record = known
    opened.open()
    assert opened.read() == ONE


@pytest.mark.parametrize("blocks", [3, 20])
def test_a_log_may_be_put_back_while_the_daemon_runs(
    opened: Opened, below: MemoryDevice, blocks: int
) -> None:
    """As the error says; what is there now counts, whatever was there at the start."""
    below.gate = Signal()
    for number in range(blocks):
        opened.write(number * BLOCK_SIZE, ONE)
    opened.die()
    below.gate = None
    there = opened.log_path()
    there.rename(opened.path.parent / "aside")
    opened.directory = opened._directory()
    with pytest.raises(
        DamagedError, match=r"put it back.*bock volume reopen.*Only if it is lost"
    ) as caught:
        opened.open()
    assert caught.value.public_text == UNREADABLE_LOG, "clients are told no path"
    (opened.path.parent / "aside").rename(there)
    opened.open()
    assert opened.read() == ONE
    assert opened.directory.space.used_bytes == on_disk(opened) > 0
    opened.run(opened.device.drain())
    for _ in range(3):
        opened.look()
    opened.close()
    assert opened.directory.space.used_bytes == on_disk(opened)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_a_disk_that_does_not_say_whether_a_log_is_there_is_an_error_of_ours(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The log may be intact, so it is not called missing; whoever tries again catches it."""
    opened.write(0, ONE)
    opened.close()
    log, is_dir = opened.log_path(), Path.is_dir

    def fails(path: Path) -> bool:
        if path == log:
            raise OSError(code, os.strerror(code))
        return is_dir(path)

    def refuse() -> None:
        opened.run(opened.directory.refuse_missing(IMAGE, log.suffix[1:]))

    asking: list[Callable[[], object]] = [refuse, opened.open]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", fails)
        for ask in asking:
            with pytest.raises(BockdError, match=f"looking for .*{log.name}") as caught:
                ask()
            assert not isinstance(caught.value, DamagedError)
            assert caught.value.public_text == UNREADABLE_LOG, "clients are told no path"
        with pytest.raises(BockdError, match="looking for"):
            opened.directory.has(IMAGE, log.suffix[1:])
    opened.open()
    assert opened.read() == ONE


@pytest.mark.parametrize("name", ["foo.seg", "1.seg", "foo.new", "00000001.seg.bak"])
def test_a_strange_file_in_a_log_is_left_alone(
    opened: Opened, below: MemoryDevice, name: str
) -> None:
    below.gate = Signal()
    opened.write(0, ONE)
    (opened.log_path() / name).write_bytes(b"mine")
    opened.again()
    assert opened.read() == ONE
    assert (opened.log_path() / name).read_bytes() == b"mine"


def test_a_log_that_is_discarded_is_gone(opened: Opened) -> None:
    opened.write(0, ONE)
    opened.close()
    assert opened.directory.images() == [IMAGE]
    opened.run(opened.directory.discard(IMAGE, keep=False))
    opened.run(opened.directory.discard("another", keep=False))
    assert opened.directory.images() == []
    assert opened.directory.space.used_bytes == 0


def test_what_cannot_be_removed_is_an_error_of_ours(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.write(0, ONE)
    opened.close()

    def fails(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "rmtree", fails)
    with pytest.raises(BockdError, match="removing the logs"):
        opened.run(opened.directory.discard(IMAGE, keep=False))


# -- the bound -----------------------------------------------------------------------------------


def on_disk(opened: Opened) -> int:
    """Return what the bound is to count."""
    return sum(one.stat().st_size for one in opened.path.glob("*/*.seg"))


def half_removed(opened: Opened, patch: pytest.MonkeyPatch) -> None:
    """Have each removal of a log remove one segment, and fail."""
    unlink, removed = Path.unlink, set[Path]()

    def fails(path: Path) -> None:
        if path.parent in removed:
            raise OSError(5, "Input/output error")
        removed.add(path.parent)
        unlink(path)

    patch.setattr(Path, "unlink", fails)


def fill(opened: Opened, below: MemoryDevice) -> None:
    """Have two segments, and nothing below."""
    below.gate = Signal()
    for number in range(SEGMENT_BYTES // BLOCK_SIZE):
        opened.write(number * BLOCK_SIZE, ONE)
    assert on_disk(opened) == opened.directory.space.used_bytes == 2 * SEGMENT_BYTES


def test_what_could_not_be_discarded_counts_until_it_is(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(opened, below)
    opened.close()
    with monkeypatch.context() as patch:
        half_removed(opened, patch)
        with pytest.raises(BockdError, match="removing the logs"):
            opened.run(opened.directory.discard(IMAGE, keep=False))
    assert on_disk(opened) == opened.directory.space.used_bytes == SEGMENT_BYTES
    opened.run(opened.directory.discard(IMAGE, keep=False))
    assert opened.directory.space.used_bytes == 0


def test_what_could_not_be_removed_when_it_was_clean_counts_until_it_is(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(opened, below)
    assert below.gate is not None
    gate, below.gate = below.gate, None
    gate.fire()
    opened.settle()
    with monkeypatch.context() as patch:
        half_removed(opened, patch)
        opened.device.write_through()
        opened.run(opened.device.drain())
    assert opened.record is None
    assert on_disk(opened) == opened.directory.space.used_bytes
    opened.close()
    opened.open()
    assert opened.directory.space.used_bytes == on_disk(opened) == 0


@pytest.mark.parametrize("removed", [True, False])
def test_a_log_that_cannot_be_made_counts_as_far_as_it_is_there(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    def fails(*_arguments: object, **_more: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(ProgressFile, "create", fails)
        if not removed:
            patch.setattr(Path, "unlink", fails)
        opened.write(0, ONE)
    assert on_disk(opened) == opened.directory.space.used_bytes
    assert on_disk(opened) == (0 if removed else SEGMENT_BYTES)
    opened.close()
    opened.open()
    assert opened.directory.space.used_bytes == on_disk(opened) == 0


def full_of_files(*_arguments: object) -> None:
    raise OSError(28, "No space left on device")


def silent(*_arguments: object) -> Any:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("is_silent", [False, True])
def test_attempts_to_make_a_log_leave_nothing_behind(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    """There is one each second, on a disk that takes no directory; it may not say either whether
    there is one."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full_of_files)
        if is_silent:
            patch.setattr(Path, "iterdir", silent)
        for _ in range(5):
            opened.write(0, ONE)
            opened.look()
    assert opened.directory.space.void == set()
    assert opened.directory.space.used_bytes == 0
    assert holding(below, 0, BLOCK_SIZE) == ONE
    opened.write(0, ONE)
    assert opened.device.way.log is not None, "the disk does it again"


def test_a_log_that_the_disk_does_not_show_is_not_one_given_up(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is below, and removing it has failed without a word of what is left: it counts as
    before, and is removed at the next opening, though its progress is not that of its end."""
    opened.write(0, ONE)
    log = opened.log_path()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", silent)
        patch.setattr(ProgressFile, "write", silent)
        opened.device.write_through()
        opened.run(opened.device.drain())
    assert opened.record is None
    assert opened.directory.space.void == {log}
    assert opened.directory.space.used_bytes == on_disk(opened) == SEGMENT_BYTES
    opened.close()
    opened.open()
    assert aside(opened) == []
    assert opened.directory.space.void == set()
    assert opened.directory.space.used_bytes == on_disk(opened) == 0


def test_a_log_that_somebody_else_removes_counts_no_more(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.write(0, ONE)
    log = opened.log_path()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", silent)
        opened.device.write_through()
        opened.run(opened.device.drain())
    shutil.rmtree(log)
    opened.close()
    opened.open()
    assert opened.directory.space.void == set()
    assert opened.directory.space.used_bytes == 0


def test_a_segment_that_cannot_be_made_counts_as_far_as_it_is_there(
    opened: Opened, below: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.write(0, ONE)
    below.gate = Signal()

    def fails(*_arguments: object, **_more: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(segment, "sync_directory", fails)
        patch.setattr(Path, "unlink", fails)
        assert opened.device.way.log is not None
        opened.run(opened.device.way.log.prepare())
    assert on_disk(opened) == opened.directory.space.used_bytes == 2 * SEGMENT_BYTES
    opened.close()
    opened.record = None
    opened.run(opened.directory.discard(IMAGE, keep=False))
    assert opened.directory.space.used_bytes == on_disk(opened) == 0


def test_one_log_leaves_room_for_others(opened: Opened, below: MemoryDevice) -> None:
    opened.directory.space._log_limit_bytes = 2 * SEGMENT_BYTES
    fill(opened, below)
    assert opened.device.way.log is not None
    opened.run(opened.device.way.log.prepare())
    assert opened.device.way.log.no_room
    assert opened.directory.space.take(opened.path / "two.0123456789abcdef", SEGMENT_BYTES)
    assert opened.directory.space.used_bytes == 3 * SEGMENT_BYTES < BOUND_BYTES


# -- logs of a disk that was restored ------------------------------------------------------------


def restore(opened: Opened, copy: Path) -> None:
    """Put a copy of the logs in their place, while nothing runs."""
    shutil.rmtree(opened.path)
    shutil.copytree(copy, opened.path)
    opened.directory = opened._directory()


def test_an_older_log_is_refused_if_more_of_it_was_below(
    opened: Opened, below: MemoryDevice, tmp_path: Path
) -> None:
    """It would be written over what is newer."""
    opened.write(0, ONE)
    opened.flush()
    shutil.copytree(opened.path, tmp_path / "older")
    opened.write(0, TWO)
    opened.flush()
    below.gate = Signal()
    opened.write(BLOCK_SIZE, TWO)
    opened.note()
    assert opened.noted is not None
    assert opened.noted.done > 0
    opened.die()
    below.gate = None
    shutil.copytree(opened.path, tmp_path / "newest")
    restore(opened, tmp_path / "older")
    with pytest.raises(DamagedError, match=r"restored from a backup.*discard-cache"):
        opened.open()
    assert holding(below, 0, BLOCK_SIZE) == TWO
    opened.directory.release()
    restore(opened, tmp_path / "newest")
    opened.open()
    assert opened.read(0, 2 * BLOCK_SIZE) == TWO + TWO


def test_an_older_log_is_refused_if_more_of_it_was_flushed(
    opened: Opened, below: MemoryDevice, tmp_path: Path
) -> None:
    """What is not in it would be lost without a word."""
    below.gate = Signal()
    opened.write(0, ONE)
    opened.flush()
    shutil.copytree(opened.path, tmp_path / "older")
    opened.write(BLOCK_SIZE, TWO)
    opened.flush()
    opened.note()
    opened.die()
    below.gate = None
    restore(opened, tmp_path / "older")
    with pytest.raises(DamagedError, match="restored from a backup"):
        opened.open()
    assert holding(below, 0, BLOCK_SIZE) == bytes(BLOCK_SIZE)


def test_how_far_a_log_has_come_is_known_while_the_driver_knows_it(opened: Opened) -> None:
    assert opened.device.reach() is None
    opened.write(0, ONE)
    reach = opened.device.reach()
    assert reach is not None
    assert reach.log == opened.record
    opened.run(opened.device.drain())
    assert opened.device.reach() is None


def test_a_record_that_is_older_than_the_log_is_refused(
    opened: Opened, below: MemoryDevice
) -> None:
    """The pool was rolled back, and lacks an epoch that the log does not have any more; what the
    log has would be written over a state that it does not follow."""
    opened.write(0, ONE)
    opened.flush()
    opened.note()
    then, content = opened.noted, holding(below, 0, SIZE_BYTES)
    opened.write(BLOCK_SIZE, ONE)
    opened.flush()
    opened.note()
    below.gate = Signal()
    opened.write(2 * BLOCK_SIZE, ONE)
    opened.flush()
    opened.die()
    now, opened.noted, below.gate = opened.noted, then, None
    opened.below = rolled_back = MemoryDevice(SIZE_BYTES)
    opened.run(rolled_back.write(0, memoryview(content)))
    opened.directory = opened._directory()
    with pytest.raises(DamagedError, match="has gone on since the state of the pool"):
        opened.open()
    assert holding(rolled_back, 0, SIZE_BYTES) == content
    opened.noted, opened.below = now, below
    opened.open()
    assert opened.read(0, 3 * BLOCK_SIZE) == 3 * ONE


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """Let this process have 256 descriptors more than it uses. Return how many it may have."""
    before, count = resource.getrlimit(resource.RLIMIT_NOFILE), _open_files() + 256
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    yield count
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_long_log_leaves_descriptors_for_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_descriptors: int
) -> None:
    """Also when it is read back."""
    monkeypatch.setattr("tests.drivers.writeback.opened.BOUND_BYTES", 1000 * SEGMENT_BYTES)
    below = MemoryDevice(32 * MIB)
    before, most = _open_files(), few_descriptors // SEGMENTS_SHARE
    opened = Opened(tmp_path / "logs", below)
    below.gate = Signal()  # nothing gets below
    data, written, waits = memoryview(ONE), 0, False
    while not waits and written < 6000:
        waits = not opened.begin(opened.device.write(written * BLOCK_SIZE, data))
        written += not waits
    assert waits, "the log grows without a bound"
    assert len(list(opened.log_path().glob("*.seg"))) == most
    assert _open_files() - before <= most + 4
    opened.again()
    assert _open_files() - before <= most + 4
    assert opened.read((written - 1) * BLOCK_SIZE) == ONE
    # A limit that is lower yet than when the log was written.
    opened.die()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + most // 2, hard))
    opened.directory = opened._directory()
    with pytest.raises(BockdError, match="Too many open files") as caught:
        opened.open()
    assert not isinstance(caught.value, DamagedError)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    opened.open()
    assert opened.read((written - 1) * BLOCK_SIZE) == ONE
    opened.dispose()
