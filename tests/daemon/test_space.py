"""Deleting returns space to the file system."""

from __future__ import annotations

import time
from pathlib import Path

from .process import Bockd

MIB = 1 << 20

RETURN_SECONDS = 10.0
"""Within this the background has given back what was deleted; it takes milliseconds."""


def allocated(daemon: Bockd) -> int:
    """What the layers take of the file system (st_blocks), in bytes."""
    layers = (daemon.data_dir / "layers").iterdir()
    return sum(path.stat().st_blocks * 512 for path in layers)


def wait_for(daemon: Bockd, files: int, most_bytes: int) -> None:
    """Return when background reclaim has left that many layer files and no more than that."""
    deadline = time.monotonic() + RETURN_SECONDS
    with daemon.control() as control:
        while control.check().pending_reclaim:
            assert time.monotonic() < deadline, "reclaim has not come to its end"
    assert len(daemon.layer_files()) == files
    assert allocated(daemon) <= most_bytes


def fill(daemon: Bockd, export: str, value: bytes, at: int, length: int) -> None:
    with daemon.connected(export) as client:
        client.pwrite(value * length, at)
        client.flush()
    daemon.wait_until_unused(export)


SLACK = 256 * 1024
"""A file system's own blocks: extents of sparse files."""


def test_deleting_a_volume_removes_its_files(daemon: Bockd) -> None:
    daemon.bock("volume", "create", "gone", "--size", "64M")
    daemon.bock("volume", "create", "stays", "--size", "64M")
    fill(daemon, "gone", b"g", 0, 16 * MIB)
    fill(daemon, "stays", b"s", 0, 4 * MIB)
    assert allocated(daemon) >= 20 * MIB
    daemon.bock("volume", "delete", "gone", "--yes")
    wait_for(daemon, 1, 4 * MIB + SLACK)
    daemon.check()


def test_a_deleted_snapshot_returns_what_only_it_held(daemon: Bockd) -> None:
    """Of three generations of the same 8 MiB, partly overwritten, the blocks that neither the
    volume nor the other snapshot shows are punched; the rest is still read."""
    daemon.bock("volume", "create", "v", "--size", "64M")
    fill(daemon, "v", b"0", 0, 8 * MIB)
    daemon.bock("snapshot", "create", "v", "s0")
    fill(daemon, "v", b"1", 0, 6 * MIB)
    daemon.bock("snapshot", "create", "v", "s1")
    fill(daemon, "v", b"2", 0, 4 * MIB)
    assert allocated(daemon) >= 18 * MIB

    # s1 alone shows the first 4 MiB of "1"; the volume needs the other 2 MiB.
    daemon.bock("snapshot", "delete", "s1", "--yes")
    wait_for(daemon, 3, 14 * MIB + SLACK)
    # s0 alone shows the first 6 MiB of "0"; its last 2 MiB are the volume's, too.
    daemon.bock("snapshot", "delete", "s0", "--yes")
    wait_for(daemon, 3, 8 * MIB + SLACK)
    expected = b"2" * (4 * MIB) + b"1" * (2 * MIB) + b"0" * (2 * MIB)
    with daemon.connected("v") as client:
        assert client.pread(8 * MIB, 0) == expected
    assert daemon.bock("volume", "show", "v")["space"] == {
        "exclusive_bytes": 8 * MIB,
        "shared_bytes": 0,
    }
    daemon.wait_until_unused("v")
    daemon.bock("volume", "delete", "v", "--yes")
    wait_for(daemon, 0, 0)
    daemon.check()


def test_a_trim_returns_space(daemon: Bockd) -> None:
    daemon.bock("volume", "create", "v", "--size", "64M")
    fill(daemon, "v", b"x", 0, 16 * MIB)
    with daemon.connected("v") as client:
        client.trim(12 * MIB, 2 * MIB)
    daemon.restart()  # ends what is punched in the background
    assert allocated(daemon) <= 4 * MIB + SLACK
    with daemon.connected("v") as client:
        assert client.pread(16 * MIB, 0) == b"x" * (2 * MIB) + bytes(12 * MIB) + b"x" * (2 * MIB)


def test_reclaim_goes_on_after_a_kill(daemon: Bockd) -> None:
    """Killed right after a deletion was acknowledged: the next daemon returns the space."""
    daemon.bock("volume", "create", "v", "--size", "256M")
    fill(daemon, "v", b"x", 0, 48 * MIB)
    daemon.bock("snapshot", "create", "v", "s")
    fill(daemon, "v", b"y", 0, 24 * MIB)
    daemon.bock("volume", "create", "w", "--from-snapshot", "s")
    with daemon.storage() as storage:
        doomed = [storage.find_volume(name).id for name in ("v", "w")]
        snapshot = storage.find_snapshot("s").id
        for volume in doomed:
            storage.delete_volume(volume)
        storage.delete_snapshot(snapshot)
    daemon.kill()
    daemon.check()
    daemon.start()
    wait_for(daemon, 0, 0)
    assert list((daemon.data_dir / "layers").iterdir()) == []
    daemon.check()


def test_locks_and_journals_go_with_their_volumes(daemon: Bockd) -> None:
    """A thousandth volume leaves no more behind than the first."""
    for name in ("first", "second"):
        daemon.bock("volume", "create", name, "--size", "1M")
        fill(daemon, name, b"x", 0, MIB)
        daemon.bock("volume", "delete", name, "--yes")
        wait_for(daemon, 0, 0)
        left = sorted(
            str(path.relative_to(daemon.data_dir))
            for folder in ("layers", "journal", "locks")
            for path in Path(daemon.data_dir / folder).rglob("*")
            if path.suffix != ".spare"
        )
        assert left == ["journal/discarded", "locks/backup", "locks/guests", "locks/pool"]
