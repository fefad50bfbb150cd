"""The disk of `disk.py`, mounted: a process that serves it as a file system until its standard
input ends.

    python -m tests.crash.powercut.filesystem MOUNTPOINT

Orders come as extended attributes. Of the root: `user.power` is set to "new LIFE", "arm LIFE
CHANGES [BEYOND]", "restore LIFE NEW SEED" or "drop LIFE", and reads as "CUT CHANGES". Of a file:
`user.punch` and `user.zero` are set to "OFFSET LENGTH", of whole pages; `user.ranges` reads as what
is written, `user.unwritten` as what is allocated and not written (pyfuse3 has no handlers for
fallocate, lseek and FIEMAP).
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Sequence

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, StatvfsData

from tests.crash.powercut.disk import PAGE_BYTES, Change, Content, Directory, Disk, File

VOLATILE = (b"lock.mdb",)
"""LMDB's table of readers, shared between processes through a mapping: the kernel writes it back
when it likes, and what is in it after a cut nobody reads."""

_CACHED_SECONDS = 3600
"""Nothing changes but through the kernel."""


class PowerCutFileSystem(pyfuse3.Operations):
    """See the module's docstring."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk(pyfuse3.ROOT_INODE)
        self.opened: dict[int, tuple[File, bool]] = {}
        self._handles = itertools.count(1)

    def _file(self, number: int) -> File:
        node = self.disk.nodes[number]
        if not isinstance(node, File):
            raise FUSEError(errno.EISDIR)
        return node

    def _directory(self, number: int) -> Directory:
        node = self.disk.nodes[number]
        if not isinstance(node, Directory):
            raise FUSEError(errno.ENOTDIR)
        return node

    # -- orders ------------------------------------------------------------------------------

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        order, *words = value.decode().split(" ")
        if name == b"user.punch":
            self._punch(self._file(inode), pages_of(order, words[0]))
        elif name == b"user.zero":
            self._zero(self._file(inode), pages_of(order, words[0]))
        elif name != b"user.power":
            raise FUSEError(errno.ENOTSUP)
        elif order == "new":
            self.disk.root.live[words[0].encode()] = self.disk.new_directory(words[0])
        elif order == "arm":
            self.disk.arm(words[0], *map(int, words[1:]))
        elif order == "restore":
            self.disk.restore(*words)
        elif order == "drop":
            self.disk.drop(words[0])
        else:
            raise FUSEError(errno.EINVAL)

    def _punch(self, file: File, pages: range) -> None:
        changes: list[Change] = [
            lambda content, page=page: content.punch(page)  # type: ignore[misc]
            for page in pages
            if page in file.live.pages or page in file.live.unwritten
        ]
        self.disk.change_file(file, changes)

    def _zero(self, file: File, pages: range) -> None:
        changes: list[Change] = [
            lambda content, page=page: content.zero(page)  # type: ignore[misc]
            for page in pages
        ]
        self.disk.change_file(file, changes)

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if name in (b"user.ranges", b"user.unwritten"):
            ranges = self._file(inode).live.ranges(unwritten=name == b"user.unwritten")
            return " ".join(f"{start} {end}" for start, end in ranges).encode()
        if name == b"user.power":
            return f"{int(self.disk.cut)} {self.disk.counted}".encode()
        raise FUSEError(pyfuse3.ENOATTR)

    # -- looking -----------------------------------------------------------------------------

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        node = self._directory(parent_inode).live.get(name)
        if node is None:
            raise FUSEError(errno.ENOENT)
        return _attributes(node)

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return _attributes(self.disk.nodes[inode])

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        # By number, which never changes, so that removing some skips no others.
        entries = sorted((node.number, name) for name, node in self._directory(fh).live.items())
        for number, name in entries:
            if number > start_id and not pyfuse3.readdir_reply(
                token, name, _attributes(self.disk.nodes[number]), number
            ):
                return

    async def releasedir(self, fh: int) -> None:
        """Nothing is remembered."""

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        space = StatvfsData()
        space.f_bsize = space.f_frsize = PAGE_BYTES
        space.f_blocks = space.f_bfree = space.f_bavail = 1 << 24
        space.f_namemax = 255
        return space

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Numbers are not used again; `drop` forgets."""

    # -- names -------------------------------------------------------------------------------

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._directory(parent_inode)
        made = self.disk.new_directory(parent.life)
        self.disk.change_directory(parent, {name: made})
        return _attributes(made)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        parent = self._directory(parent_inode)
        made = self.disk.new_file(parent.life, Content(), volatile=name in VOLATILE)
        self.disk.change_directory(parent, {name: made})
        return self._opened(made, flags), _attributes(made)

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._directory(new_parent_inode)
        if new_name in parent.live:
            raise FUSEError(errno.EEXIST)
        self.disk.change_directory(parent, {new_name: self.disk.nodes[inode]})
        return _attributes(self.disk.nodes[inode])

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.disk.change_directory(self._directory(parent_inode), {name: None})

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if parent_inode_old != parent_inode_new or flags:
            raise FUSEError(errno.ENOTSUP)
        parent = self._directory(parent_inode_old)
        self.disk.change_directory(parent, {name_old: None, name_new: parent.live[name_old]})

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        self.disk.sync(self._directory(fh))

    # -- files -------------------------------------------------------------------------------

    def _opened(self, file: File, flags: int) -> FileInfo:
        handle = next(self._handles)
        self.opened[handle] = file, bool(flags & os.O_DSYNC)
        return FileInfo(fh=handle, direct_io=False, keep_cache=True)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        file = self._file(inode)
        if flags & os.O_TRUNC:
            self._resize(file, 0)
        return self._opened(file, flags)

    async def release(self, fh: int) -> None:
        del self.opened[fh]

    async def flush(self, fh: int) -> None:
        """Closing syncs nothing."""

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return self.opened[fh][0].live.read(off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file, synced = self.opened[fh]
        self.disk.change_file(file, file.write(off, bytes(buf)), synced=synced)
        return len(buf)

    async def fsync(self, fh: int, datasync: bool) -> None:
        file, synced = self.opened[fh]
        # The kernel asks for one after each write through O_DSYNC, which concerns that write alone.
        if not synced:
            self.disk.sync(file)

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        if fields.update_size:
            self._resize(self._file(inode), attr.st_size)
        return _attributes(self.disk.nodes[inode])

    def _resize(self, file: File, size: int) -> None:
        self.disk.change_file(file, [lambda content: content.resize(size)])


def pages_of(offset: str, length: str) -> range:
    """The whole pages of a range in bytes."""
    return range(-(-int(offset) // PAGE_BYTES), (int(offset) + int(length)) // PAGE_BYTES)


def _attributes(node: File | Directory) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = node.number
    entry.entry_timeout = entry.attr_timeout = _CACHED_SECONDS
    entry.st_uid, entry.st_gid = os.geteuid(), os.getegid()
    entry.st_mode = stat.S_IFDIR | 0o700
    if isinstance(node, File):
        entry.st_mode = stat.S_IFREG | 0o600
        entry.st_size = node.live.size
        entry.st_blksize = PAGE_BYTES
        entry.st_blocks = node.live.allocated * PAGE_BYTES // 512
    return entry


async def serve(mountpoint: str, operations: PowerCutFileSystem) -> None:
    """Serve until standard input ends, or a signal says so: the mount must not be left behind."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        pyfuse3.init(operations, mountpoint, {"fsname=bockd-powercut", *_OPTIONS})
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3.main, 1)
                nursery.start_soon(_end_at_signal, signals, nursery.cancel_scope)
                sys.stdout.write("mounted\n")
                sys.stdout.flush()
                await trio.lowlevel.wait_readable(sys.stdin)
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=True)


async def _end_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


_OPTIONS = pyfuse3.default_options - {"default_permissions"}

if __name__ == "__main__":
    trio.run(serve, sys.argv[1], PowerCutFileSystem())
