"""The local disk as a power cut sees it: what was not synced may be there, or not, in any part.

A file's sectors of 512 bytes are durable as they were when it was last synced, its name as it was
when its directory was. Of what has changed since any part may be there after a cut.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
from pathlib import Path

import pytest

SECTOR = 512


class DeathError(BaseException):
    """The machine ends within a sync."""


class Disk:
    """Of the files below one directory, which has directories of files in it."""

    def __init__(self, root: Path, shadow: Path, chance: random.Random) -> None:
        self.root = root
        self.failing = 0.0
        """How many of the syncs fail."""
        self.dies_in = -1
        """After how many syncs the machine ends; negative: it does not."""
        self.syncs = 0
        self._shadow = shadow
        """Keeps files that have no name any more."""
        self._chance = chance
        self._synced: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}
        """Durable entries of directories: a file's inode, 0 for a directory."""
        shutil.rmtree(shadow, ignore_errors=True)
        shadow.mkdir(parents=True)
        root.mkdir(parents=True, exist_ok=True)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of the system's syncs."""
        patch.setattr(os, "fsync", self._sync)
        patch.setattr(os, "fdatasync", self._sync)

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
        elif self._chance.random() < self.failing:
            raise OSError(errno.EIO, "for a test")
        else:
            link = self._shadow / str(found.st_ino)
            if not link.exists():  # so that no other file gets its number
                os.link(os.readlink(f"/proc/self/fd/{fd}"), link)
            self._synced[found.st_ino] = os.pread(fd, found.st_size, 0)

    def _keep(self, path: Path) -> int:
        """Keep a file though its name may go."""
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
        self._synced.clear()
        for one in self._shadow.iterdir():
            one.unlink()
        self._names.clear()
        for path in (self.root, *(one for one in self.root.iterdir() if one.is_dir())):
            self._names[path] = {one.name: self._keep(one) for one in path.iterdir()}
        for path in (one for one in self.root.rglob("*") if one.is_file()):
            self._synced[path.stat().st_ino] = path.read_bytes()

    def _cut_directory(self, path: Path) -> None:
        durable = self._names.get(path, {})
        path.mkdir(exist_ok=True)
        there = {one.name for one in path.iterdir() if not one.name.endswith(".lock")}
        for name in there - set(durable):
            if self._chance.random() < 0.5:
                one = path / name
                shutil.rmtree(one) if one.is_dir() else one.unlink()
        for name, inode in durable.items():
            one = path / name
            if name in there or name.endswith(".lock") or self._chance.random() < 0.5:
                continue
            if inode:
                os.link(self._shadow / str(inode), one)
            else:
                one.mkdir()
        for one in path.iterdir():
            if one.is_dir():
                self._cut_directory(one)
            elif not one.name.endswith(".lock"):
                self._cut_file(one)

    def _cut_file(self, path: Path) -> None:
        now = path.read_bytes()
        mixed = bytearray(self._synced.get(path.stat().st_ino, b"").ljust(len(now), b"\0"))
        share = self._chance.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        for at in range(0, len(now), SECTOR):
            if self._chance.random() < share:
                mixed[at : at + SECTOR] = now[at : at + SECTOR]
        with path.open("r+b") as file:
            file.write(mixed)
