"""Directories that a process makes for itself: they outlast a power cut, whoever was killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.cli.backup import back_up
from bockd.directories import claim_directory, make_durable
from bockd.drivers.local.newpool import make_pool
from bockd.errors import DeviceError

LOCK = "a.lock"


class Disk:
    """What a power cut leaves of the names below a directory: those that were synced."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.durable: set[Path] = {root}
        self.fails = False
        self._fsync = os.fsync
        patch.setattr(os, "fsync", self._sync)

    def _sync(self, fd: int) -> None:
        if self.fails:
            raise OSError(5, "Input/output error")
        self._fsync(fd)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.is_relative_to(self.root) and path.is_dir():
            self.durable.update(path.iterdir())

    def has(self, path: Path) -> bool:
        """Return whether a path is there after a power cut."""
        return path == self.root or (path in self.durable and self.has(path.parent))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    with monkeypatch.context() as patch:
        yield Disk(tmp_path, patch)


def claim(path: Path) -> None:
    os.close(claim_directory(path, LOCK, "a test"))


def test_what_is_made_for_a_claim_outlasts_a_power_cut(disk: Disk) -> None:
    path = disk.root / "one" / "two" / "three"
    claim(path)
    assert disk.has(path / LOCK)
    assert path.stat().st_mode & 0o777 == 0o700
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("there", ["one", "one/two", "one/two/three"])
def test_what_an_earlier_process_has_made_and_not_synced_does_too(disk: Disk, there: str) -> None:
    """It was killed in between."""
    disk.fails = True
    path = disk.root / "one" / "two" / "three"
    (disk.root / there).mkdir(parents=True)
    # Each was synced before the next was made.
    above = (disk.root / there).parent
    disk.durable.update(one for one in above.parents if one.is_relative_to(disk.root))
    disk.durable.add(above)
    disk.fails = False
    claim(path)
    assert disk.has(path / LOCK)


def test_what_cannot_be_synced_is_an_error_of_ours(disk: Disk) -> None:
    disk.fails = True
    with pytest.raises(DeviceError, match="opening a test"):
        claim(disk.root / "one")


@pytest.mark.parametrize("denied_mode", [os.R_OK, os.W_OK])
def test_what_may_not_be_read_or_written_above_a_directory_is_not_synced(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, denied_mode: int
) -> None:
    """Only others can have made what is in it, or it cannot be opened."""
    (disk.root / "one").mkdir()
    disk.fails = True

    def denied(path: Path, mode: int) -> bool:
        return path != disk.root or not mode & denied_mode

    monkeypatch.setattr(os, "access", denied)
    make_durable(disk.root / "one")


def test_a_new_pool_and_a_backup_of_it_outlast_a_power_cut(disk: Disk) -> None:
    pool, backup = disk.root / "of pools" / "one", disk.root / "of backups" / "one"
    make_pool(pool)
    back_up(pool, backup, lambda _done, _total: None)
    for root in (pool, backup):
        assert disk.has(root / "index" / "data.mdb")
        assert disk.has(root / "layers")
