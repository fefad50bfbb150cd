"""The file system below the pool meets an error and turns read-only, as ext4's do by default: what
reads goes on, what does not says why, and the daemon ends cleanly."""

from __future__ import annotations

import errno
import signal
import subprocess
from pathlib import Path

import nbd
import pytest

from bockd.errors import BockdError

from .filesystems import mounted
from .process import Bockd, program, serving

MIB = 1 << 20


def make_read_only(mount_point: Path) -> None:
    """Let an ext4 meet an error, which it answers as its mount options say."""
    source = subprocess.run(
        [program("findmnt"), "-no", "SOURCE", str(mount_point)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    trigger = Path("/sys/fs/ext4") / Path(source).name / "trigger_fs_error"
    trigger.write_text("a test")
    with pytest.raises(OSError, match="Read-only file system"):
        (mount_point / "new").touch()


def test_a_file_system_that_turns_read_only(tmp_path: Path) -> None:
    with mounted("ext4", tmp_path, 96 * MIB, options="errors=remount-ro") as root:
        with serving(root / "pool", log=tmp_path / "log") as daemon:
            use_it_read_only(daemon, root)
        log = (tmp_path / "log").read_text()
        assert "Traceback" not in log
        assert "Damaged" not in log


def use_it_read_only(daemon: Bockd, root: Path) -> None:
    daemon.expect_in_log("(?i)read-only file system")
    with daemon.storage() as storage:
        for name in ("written", "open", "closed"):
            storage.create_volume(name, 16 * MIB)
            with daemon.connected(name) as client:
                client.pwrite(name.encode()[:4] * (MIB // 4), 0)
        snapshot = storage.create_snapshot(storage.find_volume("open").id, "s").id
    daemon.restart()
    with daemon.connected("written") as written, daemon.connected("open") as reader:
        written.pwrite(b"more" * (MIB // 4), 4 * MIB)
        assert reader.pread(4, 0) == b"open"
        make_read_only(root)

        # New logins, lists, and what is open or is opened now.
        with daemon.storage() as storage:
            assert {volume.name for volume in storage.list_volumes()} == {
                "written",
                "open",
                "closed",
            }
            assert storage.list_snapshots()
            for refused in (
                lambda: storage.create_volume("more", MIB),
                lambda: storage.create_snapshot(storage.find_volume("open").id, "t"),
                lambda: storage.delete_snapshot(snapshot),
                lambda: storage.delete_volume(storage.find_volume("closed").id),
            ):
                with pytest.raises(BockdError, match=r"(?i)read-only file system"):
                    refused()
        daemon.bock("volume", "list")
        assert written.pread(4, 0) == b"writ"
        assert written.pread(4, 4 * MIB) == b"more"
        assert reader.pread(MIB, 0) == b"open" * (MIB // 4)
        for name in ("closed", "snapshot/s"):
            with daemon.connected(name) as client:
                assert client.pread(4, 0) in (b"clos", b"open")
        for client in (written, reader):
            with pytest.raises(nbd.Error) as refused_write:
                client.pwrite(b"x" * 4096, 8 * MIB)
            assert refused_write.value.errnum == errno.EPERM
        assert written.pread(4, 4 * MIB) == b"more"
    # Not all could be closed, and it says so.
    assert daemon.status_of_stop_by(signal.SIGTERM) == 1
