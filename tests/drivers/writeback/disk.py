"""The local disk as a power cut sees it: what was not synced may be there, or not, in any part.

The page cache is that of the real files: what was written is read, whatever became of it. A sector
of 512 bytes that was written is *dirty* until a sync, and only dirty ones are written by it. A sync
that fails has written some of them, and leaves all clean, as kernels do: the next one succeeds, and
writes nothing of them. After a cut a file has what is on the disk, of what is dirty any part, and
the names that its directory had when that was synced; names that have changed since may be either.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

SECTOR = 512
_PAGE = 4096
_pwrite = os.pwrite

_REASON = "for a test, and so long that the slot of a progress that says so has two sectors " * 5


class DeathError(BaseException):
    """The machine ends within a sync."""


class Disk:
    """Of the files below one directory, which has directories of files in it."""

    def __init__(self, root: Path, shadow: Path, chance: random.Random) -> None:
        self.root = root
        self.failing = 0.0
        """How many of the syncs fail, and of the writes a tenth of that."""
        self.full = False
        """Switch: no file becomes longer."""
        self.dies_in = -1
        """After how many syncs the machine ends; negative: it does not."""
        self.syncs = 0
        self.failures = 0
        self._shadow = shadow
        """Keeps files that have no name any more."""
        self._chance = chance
        self._on_disk: dict[int, bytearray] = {}
        self._dirty: dict[int, set[int]] = {}
        self._names: dict[Path, dict[str, int]] = {}
        """Durable entries of directories: a file's inode, 0 for a directory."""
        shutil.rmtree(shadow, ignore_errors=True)
        shadow.mkdir(parents=True)
        root.mkdir(parents=True, exist_ok=True)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of the system's syncs and writes."""
        patch.setattr(os, "fsync", self._sync)
        patch.setattr(os, "fdatasync", self._sync)
        patch.setattr(os, "pwrite", self._write)
        patch.setattr(os, "pwritev", self._write_vector)

    def _write(self, fd: int, data: bytes | memoryview, at: int) -> int:
        return self._write_vector(fd, (data,), at)

    def _write_vector(
        self, fd: int, buffers: Sequence[bytes | memoryview], at: int, flags: int = 0
    ) -> int:
        found, fails = os.fstat(fd), self._chance.random() < self.failing / 10
        length = sum(len(one) for one in buffers)
        if self.full and at + length > found.st_size:
            raise OSError(errno.ENOSPC, "for a test")
        if fails:  # at the end of a page
            self.failures += 1
            length = min(length, self._chance.randrange(3) * _PAGE - at % _PAGE)
        if length > 0:
            data = b"".join(buffers)[:length]
            assert _pwrite(fd, data, at) == length
            first, end = at // SECTOR, -(-(at + length) // SECTOR)
            self._dirty.setdefault(found.st_ino, set()).update(range(first, end))
        if fails:
            raise OSError(errno.EIO, _REASON)
        return length

    def _sync(self, fd: int) -> None:
        self.syncs += 1
        if self.dies_in >= 0:
            self.dies_in -= 1
            if self.dies_in < 0:
                raise DeathError
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))
            self._names[path] = {one.name: self._keep(one) for one in path.iterdir()}
            return
        self._keep(Path(os.readlink(f"/proc/self/fd/{fd}")))
        fails = self._chance.random() < self.failing
        self._write_out(found.st_ino, os.pread(fd, found.st_size, 0), fails=fails)
        if fails:
            self.failures += 1
            raise OSError(errno.EIO, _REASON)

    def _write_out(self, inode: int, now: bytes, *, fails: bool) -> None:
        """Have nothing of a file dirty any more."""
        there = self._of(inode, len(now))
        share = self._chance.choice((0.0, 0.5, 1.0)) if fails else 0.0
        for number in sorted(self._dirty.pop(inode, ())):
            if not fails or self._chance.random() >= share:
                part = slice(number * SECTOR, (number + 1) * SECTOR)
                there[part] = now[part]

    def _of(self, inode: int, length: int) -> bytearray:
        there = self._on_disk.setdefault(inode, bytearray())
        there.extend(bytes(max(0, length - len(there))))
        return there

    def fail_unheard(self) -> None:
        """Write some of what is dirty, as kernels do after a while, and fail: the process that
        would have heard of it at its next sync is no more."""
        for path in sorted(self.root.glob("*/*")):
            inode = path.stat().st_ino
            if inode in self._dirty:
                self._keep(path)
                self._write_out(inode, path.read_bytes(), fails=True)

    def leave(self, path: Path, content: bytes | bytearray) -> None:
        """Have a file hold this, on the disk, too."""
        self._keep(path)
        path.write_bytes(content)
        inode = path.stat().st_ino
        self._on_disk[inode] = bytearray(content)
        self._dirty.pop(inode, None)

    def _keep(self, path: Path) -> int:
        """Keep a file though its name may go, so that no other one gets its number."""
        if path.is_dir():
            return 0
        inode = path.stat().st_ino
        link = self._shadow / str(inode)
        if not link.exists():
            os.link(path, link)
        return inode

    def cut(self) -> None:
        """Lose some of what was not synced."""
        self._cut_directory(self.root)
        self._on_disk.clear()
        self._dirty.clear()
        for one in self._shadow.iterdir():
            one.unlink()
        self._names.clear()
        for path in (self.root, *(one for one in self.root.iterdir() if one.is_dir())):
            self._names[path] = {one.name: self._keep(one) for one in path.iterdir()}
        for path in (one for one in self.root.rglob("*") if one.is_file()):
            self._on_disk[path.stat().st_ino] = bytearray(path.read_bytes())

    def _cut_directory(self, path: Path) -> None:
        durable = self._names.get(path, {})
        path.mkdir(exist_ok=True)
        there = {one.name for one in path.iterdir() if not one.name.endswith(".lock")}
        for name in sorted(there - set(durable)):
            if self._chance.random() < 0.5:
                one = path / name
                shutil.rmtree(one) if one.is_dir() else one.unlink()
        for name, inode in sorted(durable.items()):
            one = path / name
            if name in there or name.endswith(".lock") or self._chance.random() < 0.5:
                continue
            if inode:
                os.link(self._shadow / str(inode), one)
            else:
                one.mkdir()
        for one in sorted(path.iterdir()):
            if one.is_dir():
                self._cut_directory(one)
            elif not one.name.endswith(".lock"):
                self._cut_file(one)

    def _cut_file(self, path: Path) -> None:
        now, inode = path.read_bytes(), path.stat().st_ino
        mixed = bytearray(self._of(inode, len(now)))
        share = self._chance.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        for number in sorted(self._dirty.get(inode, ())):
            if self._chance.random() < share:
                part = slice(number * SECTOR, (number + 1) * SECTOR)
                mixed[part] = now[part]
        with path.open("r+b") as file:
            file.write(mixed)
