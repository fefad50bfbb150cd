"""However the view or its daemon ends: nothing hangs, and the next start finds its way."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from bockd.drivers.local.format.layout import Layout
from bockd.fuse.mountpoint import FILE_SYSTEM_TYPE, mounts, source_name
from tests.daemon.process import Bockd

from .watchdog import is_mounted, watched

MIB = 1 << 20


def fill(daemon: Bockd, mount: Path) -> Path:
    daemon.bock("volume", "create", "v", "--size", "8M")
    path = mount / "volumes" / "v"
    with path.open("r+b") as file:
        file.write(b"kept")
    return path


def read(path: Path, length: int = 4) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def abandon(file: int) -> None:
    """Close a file whose view is gone, which may say so."""
    with suppress(OSError):
        os.close(file)


def wait_for_log(daemon: Bockd, text: str) -> None:
    """Returns when the daemon has logged it; the watchdog bounds the wait."""
    follow = subprocess.Popen(
        ["tail", "--lines=+1", "--follow", daemon.log], stdout=subprocess.PIPE, text=True
    )
    try:
        assert follow.stdout is not None
        next(line for line in follow.stdout if text in line)
    finally:
        follow.kill()
        follow.wait()
        assert follow.stdout is not None
        follow.stdout.close()


def test_a_stop_with_files_open(daemon: Bockd, mount: Path) -> None:
    """Lazily unmounted, with a line that names them; what was written is there."""
    path = fill(daemon, mount)
    file = os.open(path, os.O_RDWR)
    os.pwrite(file, b"last", 4)
    daemon.stop()
    assert not is_mounted(mount)
    assert "with files open: v" in daemon.log.read_text()
    with pytest.raises(OSError, match="not connected"):
        os.pread(file, 1, 0)
    abandon(file)
    assert os.listdir(mount) == []
    assert Layout(daemon.data_dir).journal_segments() == []
    daemon.start()
    assert read(path, 8) == b"keptlast"


def test_a_stop_while_files_are_written(daemon: Bockd, mount: Path) -> None:
    """Writers get an error and end; the daemon ends as cleanly as ever."""
    path = fill(daemon, mount)
    writers = [
        subprocess.Popen(
            ["sh", "-c", 'while dd if=/dev/urandom of="$1" bs=64k conv=notrunc; do :; done', "sh",
             path],
            stderr=subprocess.DEVNULL,
        )
        for _ in range(4)
    ]  # fmt: skip
    with daemon.control() as control:
        while sum(entry.writes for entry in control.statistics()) < 500:
            pass
    daemon.stop()
    for writer in writers:
        assert writer.wait(60) == 0  # a loop ends well when its condition fails
    daemon.check()


UNMOUNTS = {"umount": ["umount"], "fusermount3": ["fusermount3", "-u"]}


@pytest.mark.parametrize("tool", UNMOUNTS)
def test_an_unmount_leaves_the_daemon_running(daemon: Bockd, mount: Path, tool: str) -> None:
    """Refused while a file is open; then NBD goes on, and the next start mounts again."""
    path = fill(daemon, mount)
    file = os.open(path, os.O_RDONLY)
    busy = daemon.run(*UNMOUNTS[tool], mount)
    assert busy.status != 0
    assert "busy" in busy.err
    assert os.pread(file, 4, 0) == b"kept"
    os.close(file)
    daemon.wait_until_unused("v")
    daemon.tool(*UNMOUNTS[tool], mount)
    wait_for_log(daemon, "was unmounted")
    assert os.listdir(mount) == []
    with daemon.connected("v") as client:
        assert client.pread(4, 0) == b"kept"
    daemon.restart()
    assert read(path) == b"kept"


def test_a_lazy_unmount_with_a_file_open(daemon: Bockd, mount: Path) -> None:
    """The file goes on until it is closed; only then the view ends."""
    path = fill(daemon, mount)
    file = os.open(path, os.O_RDWR)
    daemon.tool("umount", "--lazy", mount)
    os.pwrite(file, b"more", 0)
    assert os.pread(file, 4, 0) == b"more"
    os.close(file)
    wait_for_log(daemon, "was unmounted")
    daemon.wait_until_unused("v")


def test_an_aborted_connection_frees_what_was_open(daemon: Bockd, mount: Path) -> None:
    """`umount --force` fails all requests; the holds are given up, the daemon serves NBD on."""
    path = fill(daemon, mount)
    daemon.expect_in_log("connection to the kernel has ended")
    file = os.open(path, os.O_RDWR)
    daemon.run("umount", "--force", mount)
    with pytest.raises(OSError):  # noqa: PT011 - ENOTCONN or ECONNABORTED
        os.pread(file, 1, 0)
    wait_for_log(daemon, "was unmounted")
    daemon.wait_until_unused("v")
    assert not is_mounted(mount)
    with daemon.connected("v") as client:
        assert client.pread(4, 0) == b"kept"
    abandon(file)


def test_after_sigkill_nothing_hangs(daemon: Bockd, mount: Path) -> None:
    """Requests under way and later ones fail at once, and the next start clears the mount."""
    path = fill(daemon, mount)
    reader = subprocess.Popen(
        ["sh", "-c", 'while dd if="$1" of=/dev/null bs=64k; do :; done', "sh", path],
        stderr=subprocess.DEVNULL,
    )
    with daemon.control() as control:
        while sum(entry.reads for entry in control.statistics()) < 100:
            pass
    file = os.open(path, os.O_RDONLY)
    daemon.kill()
    assert reader.wait(60) == 0
    assert is_mounted(mount)
    looks: list[Callable[[], object]] = [
        lambda: os.pread(file, 1, 0),
        lambda: os.stat(path),
        lambda: os.listdir(mount),
    ]
    for look in looks:
        with pytest.raises(OSError, match="not connected"):
            look()
    abandon(file)
    daemon.start()
    assert "mount that a killed daemon left" in daemon.log.read_text()
    assert read(path) == b"kept"
    daemon.stop()
    assert not is_mounted(mount)


def test_a_stale_mount_can_be_removed_by_hand(daemon: Bockd, mount: Path) -> None:
    """As docs/fuse.md says."""
    fill(daemon, mount)
    daemon.kill()
    daemon.tool("umount", mount)
    assert os.listdir(mount) == []


def test_a_place_that_cannot_be_mounted_on_is_refused(
    daemon: Bockd, mount: Path, tmp_path: Path
) -> None:
    """Each refusal is one line that says what to do, and the pool is as it was."""
    daemon.stop()
    file = tmp_path / "file"
    file.touch()
    full = tmp_path / "full"
    (full / "something").mkdir(parents=True)
    other = tmp_path / "other"
    other.mkdir()
    daemon.tool("mount", "-t", "tmpfs", "other", other)
    cases = {
        file: "not a directory",
        file / "below": "not a directory",
        full: "not empty; choose another",
        daemon.data_dir: "is inside; choose a directory beside it",
        daemon.data_dir.parent: "is inside; choose a directory beside it",
        other: "tmpfs other is mounted there; unmount it",
        Path("/proc/new"): "no directory can be made there",
    }
    try:
        for path, message in cases.items():
            refused = Bockd(daemon.data_dir, daemon.log, mount=path).refusal_to_start()
            assert message in refused, refused
            assert refused.startswith(f"bockd: --mount {path}: ")
    finally:
        daemon.tool("umount", other)
    daemon.start()
    assert sorted(os.listdir(mount)) == ["snapshots", "volumes"]


def test_another_pool_s_view_is_left_alone(daemon: Bockd, mount: Path, tmp_path: Path) -> None:
    fill(daemon, mount)
    second = Bockd(tmp_path / "second", tmp_path / "second.log", mount=mount)
    assert "is mounted there" in second.refusal_to_start()
    daemon.kill()
    assert "is mounted there" in second.refusal_to_start()
    daemon.start()


def test_a_path_through_a_symbolic_link_and_odd_names(tmp_path: Path) -> None:
    """Spaces, commas and backslashes mean something to mount options and in mountinfo."""
    real = tmp_path / "a, b\\ ü"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    mount = real / "view"
    daemon = Bockd(real / "pool", tmp_path / "log", mount=link / "view")
    with watched(mount):
        try:
            daemon.start()
            fill(daemon, mount)
            daemon.kill()
            daemon.start()
            assert read(link / "view/volumes/v") == b"kept"
            daemon.stop()
        finally:
            daemon.end()
    text = Path("/proc/self/mountinfo").read_text()
    assert str(mount) not in [found.path for found in mounts(text)]


def test_mountinfo_is_read_right() -> None:
    """proc_pid_mountinfo(5): optional fields before the dash, octal escapes."""
    line = (
        r"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime shared:1 master:2 - "
        r"fuse.bockd bockd:/var/lib/bockd rw,errors=continue"
    )
    (found,) = mounts(line + "\n")
    assert found.path == r"/mnt 2\x"
    assert (found.type, found.source) == (FILE_SYSTEM_TYPE, source_name(Path("/var/lib/bockd")))
