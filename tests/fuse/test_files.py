"""What system calls on the files do, with devices in memory behind a real mount."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bockd.drivers.memory.device import FailedError, MemoryDevice
from bockd.errors import (
    BockdError,
    DamagedError,
    InUseError,
    NoSpaceError,
    OverLimitError,
    UnavailableError,
    VolumeFailedError,
)
from bockd.fuse.limits import MAX_DELAYED
from bockd.model import DeviceOperation, DeviceProfile, ErrorRule, IoLimits, IoRate, Stall, VolumeId
from bockd.runtime.steps import Signal
from bockd.throttle.gates import Applied
from tests.nbd.server.takeable import Takeable

from .descriptor import opened
from .memory_nodes import MemoryNodes, mounted

MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture
def nodes() -> MemoryNodes:
    return MemoryNodes(
        {
            "disk": MemoryDevice(SIZE),
            "other": MemoryDevice(SIZE),
            "frozen": MemoryDevice(SIZE, read_only=True),
        }
    )


@pytest.fixture
def disk(nodes: MemoryNodes, mount: Path) -> Iterator[Path]:
    """The file of the device "disk"."""
    with mounted(nodes, mount):
        yield mount / "volumes" / "disk"
    assert nodes.exports.open_holds == 0


@contextmanager
def fails_with(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is what counts
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


@pytest.mark.parametrize("immediate", [True, False])
def test_what_is_written_is_read(disk: Path, nodes: MemoryNodes, immediate: bool) -> None:
    """Any offset and length, in memory or through a thread; a large one is one request."""
    device = nodes.devices["disk"]
    device.immediate, device.blocking = immediate, not immediate
    payload = os.urandom(MIB)
    with opened(disk) as file:
        for offset, length in ((0, 1), (511, 2), (4095, 4098), (MIB, MIB), (3 * MIB + 7, 70_001)):
            assert os.pwrite(file, payload[:length], offset) == length
            assert os.pread(file, length, offset) == payload[:length]
        pages = mmap.mmap(-1, MIB)  # aligned: 1 MiB elsewhere is a page too many for one request
        before = nodes.counters.writes, nodes.counters.reads
        os.pwritev(file, [pages], 4 * MIB)
        os.preadv(file, [pages], 4 * MIB)
        assert (nodes.counters.writes, nodes.counters.reads) == (before[0] + 1, before[1] + 1)


def test_reads_and_writes_stop_at_the_end_of_the_volume(disk: Path) -> None:
    """A write that crosses the end is short, one behind it is EFBIG; reads end there."""
    with opened(disk) as file:
        assert os.pwrite(file, b"x" * 8192, SIZE - 4096) == 4096
        with fails_with(errno.EFBIG):
            os.pwrite(file, b"x", SIZE)
        with fails_with(errno.EFBIG):
            os.pwrite(file, b"x" * 4096, 2 * SIZE)
        assert os.pread(file, 8192, SIZE - 4096) == b"x" * 4096
        assert os.pread(file, 1, SIZE) == b""
        assert os.lseek(file, 0, os.SEEK_END) == SIZE


def test_a_write_is_answered_after_its_commit(disk: Path, nodes: MemoryNodes) -> None:
    device = nodes.devices["disk"]
    with opened(disk) as file:
        os.pwrite(file, b"x" * 4096, 0)
        assert device.calls == ["write", "commit"]
        device.failures["commit"] = VolumeFailedError("no")
        with fails_with(errno.EIO):
            os.pwrite(file, b"x" * 4096, 0)
        device.failures.clear()
        device.commit()


def test_fsync_and_synchronous_writes_flush(disk: Path, nodes: MemoryNodes) -> None:
    """fsync and fdatasync; O_DSYNC and O_SYNC after every write; closing flushes nothing."""
    device = nodes.devices["disk"]
    with opened(disk) as file:
        os.pwrite(file, b"x", 0)
        assert "flush" not in device.calls
        os.fsync(file)
        os.fdatasync(file)
        assert device.calls == ["write", "commit", "flush", "flush"]
    for flag in (os.O_DSYNC, os.O_SYNC):
        with opened(disk, os.O_RDWR | flag) as file:
            device.calls.clear()
            os.pwrite(file, b"x", 0)
            assert device.calls == ["write", "commit", "flush"]
    device.failures["flush"] = VolumeFailedError("no")
    with opened(disk) as file, fails_with(errno.EIO):
        os.fsync(file)


def test_a_failed_sync_fails_a_durable_write(disk: Path, nodes: MemoryNodes) -> None:
    nodes.devices["disk"].failures["flush"] = VolumeFailedError("no")
    with opened(disk, os.O_RDWR | os.O_DSYNC) as file, fails_with(errno.EIO):
        os.pwrite(file, b"x", 0)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (NoSpaceError("full"), errno.ENOSPC),
        (VolumeFailedError("failed"), errno.EIO),
        (DamagedError("damaged"), errno.EIO),
        (InUseError("used"), errno.EBUSY),
        (OverLimitError("quota"), errno.EDQUOT),
        (UnavailableError("stopping"), errno.EIO),
        (OSError(errno.ENOSYS, "never ask again"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (RuntimeError("a bug"), errno.EIO),
    ],
)
@pytest.mark.parametrize("immediate", [True, False])
def test_errors_have_their_errno(
    disk: Path, nodes: MemoryNodes, error: Exception, number: int, immediate: bool
) -> None:
    """And the file goes on."""
    device = nodes.devices["disk"]
    device.immediate = immediate
    device.failures = {"read": error, "write": error}
    with opened(disk) as file:
        with fails_with(number):
            os.pwrite(file, b"x", 0)
        with fails_with(number):
            os.pread(file, 1, 0)
        assert nodes.counters.errors == 2
        device.failures.clear()
        os.pwrite(file, b"x", 0)
        assert os.pread(file, 1, 0) == b"x"


def test_every_error_has_an_errno_that_a_file_may_have() -> None:
    """Whatever is raised below: never ENOSYS, never one that the kernel does not take."""
    from bockd.fuse.errors import fuse_errno

    waiting: list[type[BockdError]] = [BockdError, FailedError]
    while waiting:
        kind = waiting.pop()
        waiting.extend(kind.__subclasses__())
        # Made without its own __init__, whose fields differ from kind to kind.
        number = fuse_errno(kind.__new__(kind, "x"))
        assert number in errno.errorcode
        assert number != errno.ENOSYS


def test_a_snapshot_is_read_only(disk: Path, nodes: MemoryNodes) -> None:
    frozen = disk.parents[1] / "snapshots" / "frozen"
    for flags in (os.O_WRONLY, os.O_RDWR):
        with fails_with(errno.EROFS):
            os.open(frozen, flags)
    with opened(frozen, os.O_RDONLY) as file:
        assert os.pread(file, 10, 0) == bytes(10)
        with fails_with(errno.EBADF):
            os.pwrite(file, b"x", 0)
    with fails_with(errno.ENOENT):
        os.stat(disk.parent / "frozen")


CHANGES: dict[str, Callable[[Path], object]] = {
    "truncate": lambda file: os.truncate(file, SIZE - 4096),
    "grow": lambda file: os.truncate(file, SIZE + 4096),
    "open with O_TRUNC": lambda file: os.open(file, os.O_WRONLY | os.O_TRUNC),
    "unlink": os.unlink,
    "rename": lambda file: os.rename(file, file.with_name("new")),
    "rename over another": lambda file: os.rename(file, file.with_name("other")),
    "create": lambda file: os.open(file.with_name("new"), os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda file: os.mkdir(file.with_name("new")),
    "mkdir in the root": lambda file: os.mkdir(file.parents[1] / "new"),
    "rmdir": lambda file: os.rmdir(file.parent),
    "symlink": lambda file: os.symlink("disk", file.with_name("new")),
    "link": lambda file: os.link(file, file.with_name("new")),
    "mknod": lambda file: os.mknod(file.with_name("new")),
    "chmod": lambda file: os.chmod(file, 0o666),
    "chown": lambda file: os.chown(file, 1, 1),
    "utime": lambda file: os.utime(file, (1, 1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_only_bock_may_change(disk: Path, nodes: MemoryNodes, name: str) -> None:
    with fails_with(errno.EPERM):
        CHANGES[name](disk)
    assert sorted(os.listdir(disk.parent)) == ["disk", "other"]
    assert nodes.devices["disk"].calls == []
    os.truncate(disk, SIZE)  # the size that it has


def test_each_file_is_listed_once_and_found_by_name_or_id(disk: Path) -> None:
    """Each file is listed once, and found by name or id, with one inode number."""
    root = disk.parents[1]
    assert sorted(os.listdir(root)) == ["snapshots", "volumes"]
    assert sorted(os.listdir(disk.parent)) == ["disk", "other"]
    assert os.listdir(root / "snapshots") == ["frozen"]
    assert os.stat(disk).st_ino == os.stat(disk.with_name("1")).st_ino
    assert (os.stat(disk).st_mode, os.stat(disk).st_blocks) == (0o100600, 8)
    for missing in ("3", "4", "frozen", "x" * 300, b"\xff".decode(errors="surrogateescape")):
        with suppress(FileNotFoundError):
            os.stat(disk.parent / missing)
            raise AssertionError(missing)
    assert os.statvfs(disk).f_bsize == 4096


def test_many_files_are_listed_once(mount: Path) -> None:
    """More than fit one reply of the kernel's; they are looked up once, and again for who begins
    again."""
    names = {f"a rather long name, so that replies fill up, of volume {i}" for i in range(500)}
    nodes = MemoryNodes({name: MemoryDevice(MIB) for name in names})
    with mounted(nodes, mount):
        listed = os.listdir(mount / "volumes")
        assert nodes.listings == 1
        with opened(mount / "volumes", os.O_RDONLY) as directory:
            assert len(os.listdir(directory)) == len(names)
            del nodes.devices[listed[-1]]
            assert len(os.listdir(directory)) == len(names) - 1  # rewinds first
    assert len(listed) == len(names)
    assert set(listed) == names


def test_names_that_no_file_can_have_give_way_to_ids(mount: Path) -> None:
    devices = {name: MemoryDevice(MIB) for name in ("a/b", "..", ".", "späße", "fine")}
    with mounted(MemoryNodes(devices), mount):
        listed = os.listdir(mount / "volumes")
        assert sorted(listed) == ["1", "2", "3", "fine", "späße"]
        for name in listed:
            assert os.stat(mount / "volumes" / name).st_size == MIB


@pytest.mark.parametrize(
    ("offset", "length", "holes"),
    [(0, 65536, True), (MIB, MIB, True), (512, 65536, True), (0, 61440, False)],
)
def test_large_writes_of_zeros_make_holes(
    disk: Path, nodes: MemoryNodes, offset: int, length: int, holes: bool
) -> None:
    """No fallocate arrives here; zeros are how a file's space is given back."""
    device = nodes.devices["disk"]
    with opened(disk) as file:
        os.pwrite(file, b"x" * 3 * MIB, 0)
        device.calls.clear()
        assert os.pwritev(file, [mmap.mmap(-1, length)], offset) == length
        assert device.calls == (["zero"] if holes else ["write", "commit"])
        assert os.pread(file, length, offset) == bytes(length)
        assert os.pread(file, 1, offset + length) == b"x"
        os.pwrite(file, bytes(MIB - 1) + b"y", 0)
        assert os.pread(file, 1, MIB - 1) == b"y"


def test_direct_and_asynchronous_requests_see_the_same(disk: Path) -> None:
    """O_DIRECT and the rest go the same way: nothing is cached."""
    page = mmap.mmap(-1, 4096)
    with opened(disk) as file, opened(disk, os.O_RDWR | os.O_DIRECT) as direct:
        for value in (b"a", b"b"):
            os.pwrite(file, value * 4096, 4096)
            os.preadv(direct, [page], 4096)
            assert page[:] == value * 4096
            page[:] = value.upper() * 4096
            os.pwritev(direct, [page], 4096)
            assert os.pread(file, 4096, 4096) == value.upper() * 4096


def test_who_is_killed_in_a_request_holds_up_nobody(disk: Path, nodes: MemoryNodes) -> None:
    """The kernel interrupts the requests of a killed process, whose engine work is finished all the
    same: the write is whole, the hold is given up, and the file goes on."""
    device = nodes.devices["disk"]
    device.immediate, device.gate = False, Signal()
    writer = subprocess.Popen(
        ["dd", "if=/dev/urandom", f"of={disk}", "bs=64k", "count=1", "conv=notrunc"],
        stderr=subprocess.DEVNULL,
    )
    nodes.wait_until(lambda: nodes.counters.writes == 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        writer.send_signal(number)
    with opened(disk.with_name("other")) as other:
        os.pwrite(other, b"x", 0)
    assert device.calls == []
    nodes.call(device.gate.fire)
    assert writer.wait(60) < 0
    device.immediate, device.gate = True, None
    nodes.wait_until(lambda: nodes.exports.open_holds == 0)
    with opened(disk) as file:
        assert len(set(os.pread(file, 65536, 0))) > 200


def test_slow_requests_hold_up_nobody(disk: Path, nodes: MemoryNodes) -> None:
    """30 reads that wait for a disk, of one file: another file and names are served meanwhile."""
    device = nodes.devices["disk"]
    device.immediate, device.gate = False, Signal()
    slow = 30
    with opened(disk) as file, ThreadPoolExecutor(slow) as threads:
        waiting = [threads.submit(os.pread, file, 4096, i * 4096) for i in range(slow)]
        nodes.wait_until(lambda: nodes.counters.reads >= slow)
        try:
            with opened(disk.with_name("other")) as other:
                os.pwrite(other, b"x" * 4096, 0)
                assert os.pread(other, 1, 0) == b"x"
            assert sorted(os.listdir(disk.parent)) == ["disk", "other"]
            assert not any(read.done() for read in waiting)
        finally:
            nodes.call(device.gate.fire)
        assert [len(read.result(60)) for read in waiting] == [4096] * slow


def test_a_volume_that_another_gateway_takes_fails_until_it_is_opened_anew(
    disk: Path, nodes: MemoryNodes
) -> None:
    taken, nodes.exports.devices["disk"] = Takeable.over(nodes.devices["disk"])
    with opened(disk) as file:
        os.pwrite(file, b"before", 0)
        nodes.call(taken.take)
        nodes.wait_until(lambda: taken.lost.fired)
        for attempt in (
            lambda: os.pread(file, 6, 0),
            lambda: os.pwrite(file, b"after", 0),
            lambda: os.fsync(file),
        ):
            with fails_with(errno.EIO):
                attempt()
        _, nodes.exports.devices["disk"] = Takeable.over(nodes.devices["disk"])
        with opened(disk) as again:
            assert os.pread(again, 6, 0) == b"before"
            os.pwrite(again, b"again", 0)
            os.fsync(again)
        with fails_with(errno.EIO):
            os.pread(file, 6, 0)


def test_a_limited_file_waits_for_its_limits(nodes: MemoryNodes, disk: Path) -> None:
    """Reads and writes, until the limits are lifted."""
    limits = Applied()
    nodes.gates.look_up = lambda _: limits
    with opened(disk, os.O_RDWR) as file, ThreadPoolExecutor(1) as threads:
        for operation in (
            lambda: os.pread(file, 4096, 0) == bytes(4096),
            lambda: os.pwrite(file, b"x" * 4096, 0) == 4096,
        ):
            limits = Applied(IoLimits(iops=IoRate(1)))
            nodes.call(nodes.gates.refresh)
            nodes.wait_until(lambda: nodes.gates.gate(VolumeId(1)).limited)
            os.pread(file, 4096, 0)  # the one that there is
            waiting = threads.submit(operation)
            nodes.wait_until(lambda: bool(nodes.gates.gate(VolumeId(1)).throttle._flows))
            assert not waiting.done()
            limits = Applied()
            nodes.call(nodes.gates.refresh)
            assert waiting.result()
        assert os.pread(file, 4096, 0) == b"x" * 4096


def test_a_stuck_file_holds_up_no_other(nodes: MemoryNodes, disk: Path) -> None:
    """However many threads read it: what is too much is answered early."""
    stuck = DeviceProfile(name="stuck", stalls=(Stall(seconds=3600, after_requests=0),))
    applied = Applied(profile=stuck)
    nodes.gates.look_up = lambda volume: applied if volume == 1 else Applied()
    more = 6
    count = MAX_DELAYED + more
    with opened(disk) as file, ThreadPoolExecutor(count + 1) as threads:
        gate = nodes.gates.gate(VolumeId(1))
        waiting = [threads.submit(os.pread, file, 4096, i * 4096) for i in range(count)]
        try:
            nodes.wait_until(
                lambda: nodes.counters.reads == count and len(gate.on_other_device) == MAX_DELAYED
            )
            with opened(disk.with_name("other")) as other:
                os.pwrite(other, b"x" * 4096, 0)
                assert os.pread(other, 1, 0) == b"x"
            assert sorted(os.listdir(disk.parent)) == ["disk", "other"]
            for _ in zip(range(more), as_completed(waiting, 60), strict=False):
                pass
            assert sum(read.done() for read in waiting) == more
        finally:
            applied = Applied()
            nodes.call(nodes.gates.refresh)
        assert [len(read.result(60)) for read in waiting] == [4096] * count


def test_a_profiled_file_is_answered_when_its_device_says(nodes: MemoryNodes, disk: Path) -> None:
    """Or when the profile is taken away; and what fails is not done."""
    stuck = DeviceProfile(name="stuck", stalls=(Stall(seconds=3600, after_requests=0),))
    failing = DeviceProfile(
        name="failing",
        errors=(ErrorRule(operations=tuple(DeviceOperation), length_bytes=4096),),
    )
    applied = Applied()
    nodes.gates.look_up = lambda _: applied
    with opened(disk, os.O_RDWR) as file, ThreadPoolExecutor(1) as threads:

        def flushed() -> bool:
            os.fsync(file)
            return True

        def profile() -> DeviceProfile | None:
            device = nodes.gates.gate(VolumeId(1)).device
            return None if device is None else device.profile

        for operation in (
            lambda: os.pwrite(file, b"x" * 4096, 0) == 4096,
            lambda: os.pread(file, 4096, 0) == b"x" * 4096,
            flushed,
        ):
            applied = Applied(profile=stuck)
            nodes.call(nodes.gates.refresh)
            nodes.wait_until(lambda: profile() == stuck)
            waiting = threads.submit(operation)
            nodes.wait_until(lambda: bool(nodes.gates.gate(VolumeId(1)).on_other_device))
            assert not waiting.done()
            applied = Applied()
            nodes.call(nodes.gates.refresh)
            assert waiting.result()
        applied = Applied(profile=failing)
        nodes.call(nodes.gates.refresh)
        nodes.wait_until(lambda: profile() == failing)
        with fails_with(errno.EIO):
            os.pread(file, 4096, 0)
        with fails_with(errno.EIO):
            os.pwrite(file, b"y" * 4096, 0)
        with fails_with(errno.EIO):
            os.fsync(file)
        assert os.pread(file, 4096, 4096) == bytes(4096)
        applied = Applied()
        nodes.call(nodes.gates.refresh)
        nodes.wait_until(lambda: profile() is None)
        assert os.pread(file, 4096, 0) == b"x" * 4096
